"""What a batch system has to do, and how its commands are run."""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from apflow.errors import BadRequest, ServiceError
from apflow.operate.batch.submission import Attempt, Submission

_TIMEOUT_S = 60.0


class Phase(enum.StrEnum):
    """How far a task is."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class TaskState:
    """What a batch system says of one task.

    Attributes
    ----------
    phase : `Phase`
    told : `str`
        In the system's own words.
    exit_code, signal : `int`, optional
        How the task ended, where the system knows.
    host : `str`
    died : `bool`
        It ended through no fault of its own: its node failed, or it was
        killed.
    """

    phase: Phase
    told: str
    exit_code: int | None = None
    signal: int | None = None
    host: str = ""
    died: bool = False


class BatchSystem(Protocol):
    """A batch system, by its commands.

    Every method raises `ServiceError` where it cannot be reached (nothing was
    sent then, or it is found by its name later), and `submit` raises
    `BadRequest` where the system refuses.
    """

    name: ClassVar[str]

    def submit(self, submission: Submission, attempt: Attempt) -> str:
        """Send the tasks of an attempt as one array; returns the id of the job."""

    def find(self, name: str) -> str:
        """Id of the job of a name; empty where there is none."""

    def states(self, job: str) -> Mapping[int, TaskState]:
        """State of each task, by its index, of which the system still knows."""

    def cancel(self, job: str) -> None:
        """End all tasks of a job."""


def job_environment() -> dict[str, str]:
    """Environment of this process, with what ``visit.sh`` needs to find this installation on another machine."""
    return {"APFLOW_BIN": str(Path(sys.executable).parent), **os.environ}


def run(command: Sequence[str], unreachable: Callable[[str], bool], environment: Mapping[str, str]) -> str:
    """Run a command of a batch system and return what it prints.

    Parameters
    ----------
    command : sequence of `str`
    unreachable : callable
        Whether what it says on failure means that the system can't be reached now.
    environment : mapping
        Which the jobs get too.

    Raises
    ------
    ServiceError
        The command isn't there or does not answer, or the system can't be reached.
    BadRequest
        The system refuses.
    """
    program = command[0]
    if shutil.which(program, path=environment.get("PATH")) is None:
        raise ServiceError(f"{program} is not on the PATH: is this a machine from which jobs are submitted?")
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ServiceError(f"{program} gave no answer within {_TIMEOUT_S:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    said = "; ".join(line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip())
    if unreachable(said):
        raise ServiceError(f"{program} cannot reach the batch system: {said}")
    raise BadRequest(f"{program} was refused: {said or f'exit code {done.returncode}'}")


def ranges(indices: Sequence[int]) -> str:
    """``0-3,7``: how batch systems spell lists of tasks."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def expand(text: str) -> tuple[int, ...]:
    """The list that `ranges` spelled."""
    bounds = (part.partition("-") for part in text.split(","))
    return tuple(i for low, dash, high in bounds for i in range(int(low), int(high if dash else low) + 1))


def open_system(name: str) -> BatchSystem:
    """A batch system by its name.

    Raises
    ------
    BadRequest
        It isn't known.
    """
    from apflow.operate.batch.htcondor import HTCondor
    from apflow.operate.batch.slurm import Slurm

    systems: dict[str, type[BatchSystem]] = {kind.name: kind for kind in (Slurm, HTCondor)}
    if name not in systems:
        raise BadRequest(f"--system {name!r} is not accepted: {', '.join(systems)}")
    return systems[name]()
