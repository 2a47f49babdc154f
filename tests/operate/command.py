"""The installed command, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: Beside the interpreter of these tests.
APFLOW = str(Path(sys.executable).with_name("apflow"))


def apflow(*arguments: str, timeout_s: float = 150.0) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run([APFLOW, *arguments], capture_output=True, text=True, timeout=timeout_s)
