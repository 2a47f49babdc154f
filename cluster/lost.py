"""Which workers of a cluster do not come back by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from distributed import SpecCluster
from distributed.core import Status

#: Commands that list the own jobs that wait or run, one id a line as dask-jobqueue has it.
_LISTED: Mapping[str, Sequence[str]] = {
    "slurm": ("squeue", "--me", "--noheader", "--format=%i"),
    "htcondor": ("condor_q", "-format", "%d.", "ClusterId", "-format", "%d\n", "ProcId"),
}


async def lost(cluster: SpecCluster, kind: str) -> list[str]:
    """Names of workers that did not start, whose job is over or whose connection is closed.

    A process that dies is none of them: its nanny, which is here or in the
    job, starts it again.
    """
    found = [name for name, worker in cluster.workers.items() if worker.status is not Status.running]
    arrived = {worker["name"] for worker in cluster.scheduler_info["workers"].values()}
    missing = {name: worker for name, worker in cluster.workers.items() if name not in {*arrived, *found}}
    if kind == "ssh":
        found += [name for name, worker in missing.items() if worker.is_closed]
    if kind in _LISTED and missing:
        jobs = await _jobs(_LISTED[kind])
        found += [name for name, worker in missing.items() if jobs is not None and worker.job_id not in jobs]
    return found


async def _jobs(command: Sequence[str]) -> set[str] | None:
    """Ids of jobs; None while the batch system does not answer."""
    pipe: Any = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
    except OSError:
        return None
    told, _ = await process.communicate()
    return None if process.returncode else set(told.decode().split())
