"""One replay, by the installed command, that several modules look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operate.command import apflow

#: Two detectors, two visits, two worker processes.
SMALL = ("--camera", "comcam", "--detectors", "3,R22_S11", "--visits", "2", "--workers", "2")


@pytest.fixture(scope="session")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a replay's report, with its summary as run.json and its repository as butler/."""
    folder = tmp_path_factory.mktemp("replayed")
    run = apflow("replay", *SMALL, "--report", str(folder), "--json", str(folder / "run.json"))
    assert run.returncode == 0, run.stderr
    return folder
