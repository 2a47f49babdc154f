"""What a run cost: CPU and memory of the worker processes; memory and disk of everything together."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import os
import resource
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
from distributed import Client

#: Between two looks at memory and disk.
_LOOK_S = 1.0


@dataclass(frozen=True)
class Meter:
    """CPU seconds of all workers between `start` and `stop`, and the largest memory of one.

    Attributes
    ----------
    core_s : `float`
        User and system time of all worker processes.
    driver_core_s : `float`
        The same of this process: scheduler, PPDB server, ingest, progress.
    peak_rss_mib : `float`
        Largest resident size that any worker process had since it started.
    """

    core_s: float = 0.0
    driver_core_s: float = 0.0
    peak_rss_mib: float = 0.0
    begun: dict[int, float] = field(default_factory=dict)
    driver_begun: float = 0.0

    @classmethod
    def start(cls, client: Client) -> Meter:
        """Begin to count."""
        return cls(begun={pid: cpu for pid, cpu, _ in _ask(client)}, driver_begun=_usage()[1])

    def stop(self, client: Client) -> Meter:
        """The counts so far; a worker that was restarted in between counts from its start."""
        now = _ask(client)
        return dataclasses.replace(
            self,
            core_s=sum(cpu - self.begun.get(pid, 0.0) for pid, cpu, _ in now),
            driver_core_s=_usage()[1] - self.driver_begun,
            peak_rss_mib=max((rss for _, _, rss in now), default=0.0),
        )

    def __add__(self, other: Meter) -> Meter:
        """Both together, one after the other."""
        return Meter(
            self.core_s + other.core_s,
            self.driver_core_s + other.driver_core_s,
            max(self.peak_rss_mib, other.peak_rss_mib),
        )


class Footprint:
    """The most memory and disk that this process, its children and some folders take, looked at now and then.

    Parameters
    ----------
    folders : sequence of `pathlib.Path`
        Each outside the others; they need not exist yet.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="apflow footprint", daemon=True)
        #: Resident sizes added up; pages that processes share count once for each.
        self.peak_memory_bytes = 0
        self.peak_disk_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Look now."""
        self.peak_memory_bytes = max(self.peak_memory_bytes, _memory_bytes())
        self.peak_disk_bytes = max(self.peak_disk_bytes, sum(map(_disk_bytes, self._folders)))

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self.look()


def give_back_memory() -> None:
    """Return to the system what this process has freed, and its allocator keeps for the next image."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _memory_bytes() -> int:
    me, total = psutil.Process(), 0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def _disk_bytes(folder: Path) -> int:
    """What the files below a folder take of the disk."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


def _ask(client: Client) -> list[tuple[int, float, float]]:
    return list(client.run(_usage).values())


def _usage() -> tuple[int, float, float]:
    """Process id, CPU seconds and peak resident size (MiB) of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kibibytes elsewhere
    return os.getpid(), used.ru_utime + used.ru_stime, used.ru_maxrss / unit
