"""The installed command, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

#: Beside the interpreter of these tests.
APFLOW = str(Path(sys.executable).with_name("apflow"))


def apflow(
    *arguments: str, timeout_s: float = 150.0, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, in the environment of these tests unless another is given."""
    return subprocess.run([APFLOW, *arguments], capture_output=True, text=True, timeout=timeout_s, env=environment)
