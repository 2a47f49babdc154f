"""A holder as its own process, as the supervisor of a night starts it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from apflow.cluster.holder import REQUEST
from apflow.cluster.request import ClusterRequest

PATIENCE_S = 60.0


def words(folder: Path) -> list[str]:
    """The command."""
    return [sys.executable, "-m", "apflow.cluster.holder", str(folder)]


@contextlib.contextmanager
def holder(
    folder: Path, request: ClusterRequest, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start it, and end it with the block."""
    folder.mkdir(exist_ok=True)
    request.save(folder / REQUEST)
    process = subprocess.Popen(words(folder), env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def refused(folder: Path, request: ClusterRequest, environment: Mapping[str, str] | None = None) -> str:
    """What a holder says that does not start."""
    request.save(folder / REQUEST)
    done = subprocess.run(words(folder), capture_output=True, text=True, timeout=PATIENCE_S, env=environment)
    assert done.returncode == 1
    assert not (folder / "cluster.json").exists()
    return done.stderr


def until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
