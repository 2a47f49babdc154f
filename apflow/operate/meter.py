"""What a run cost: CPU and memory of the worker processes."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
from dataclasses import dataclass, field

from distributed import Client


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


def _ask(client: Client) -> list[tuple[int, float, float]]:
    return list(client.run(_usage).values())


def _usage() -> tuple[int, float, float]:
    """Process id, CPU seconds and peak resident size (MiB) of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kibibytes elsewhere
    return os.getpid(), used.ru_utime + used.ru_stime, used.ru_maxrss / unit
