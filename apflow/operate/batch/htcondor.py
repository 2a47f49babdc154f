"""HTCondor, by condor_submit, condor_q, condor_history and condor_rm.

The description is checked against HTCondor's own bindings; its commands have
not been run against a pool.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, ClassVar

from apflow.errors import ServiceError
from apflow.operate.batch.submission import Attempt, Submission
from apflow.operate.batch.system import Phase, TaskState, job_environment, run

_UNREACHABLE = re.compile(
    r"can't find address|failed to connect|unable to connect|timed out|failed to fetch ads|communication|"
    r"can't (?:connect|contact)|attempt to connect|couldn't find",
    re.IGNORECASE,
)
_ATTRIBUTES = (
    "ApflowIndex,JobStatus,LastJobStatus,NumJobStarts,ExitCode,ExitBySignal,ExitSignal,RemoteHost,LastRemoteHost,"
    "HoldReason"
)
_STATUS = {1: "IDLE", 2: "RUNNING", 3: "REMOVED", 4: "COMPLETED", 5: "HELD", 6: "TRANSFERRING_OUTPUT", 7: "SUSPENDED"}
_SIGKILL = 9


class _Description(string.Template):
    delimiter = "@"


class HTCondor:
    """See `apflow.operate.batch.system.BatchSystem`."""

    name: ClassVar[str] = "htcondor"

    def submit(self, submission: Submission, attempt: Attempt) -> str:
        """One cluster of jobs, each one detector."""
        path = submission.folder / f"htcondor.{attempt.number}.sub"
        path.write_text(describe(submission, attempt))
        return _condor(["condor_submit", "-terse", str(path)]).partition(".")[0].strip()

    def find(self, name: str) -> str:
        """The newest cluster of that name, ended ones too."""
        wanted = ["-constraint", f'JobBatchName == "{name}"', "-json", "-attributes", "ClusterId"]
        ads = _ads(["condor_q", *wanted]) or _ads(["condor_history", *wanted, "-limit", "1"])
        return str(max((ad["ClusterId"] for ad in ads), default=""))

    def states(self, job: str) -> Mapping[int, TaskState]:
        """Those that ended are in the history, and no longer in the queue."""
        wanted = [job, "-json", "-attributes", _ATTRIBUTES]
        return parse([*_ads(["condor_history", *wanted]), *_ads(["condor_q", *wanted])])

    def cancel(self, job: str) -> None:
        """See `apflow.operate.batch.system.BatchSystem`."""
        _condor(["condor_rm", job])


def describe(submission: Submission, attempt: Attempt) -> str:
    """The submit description of an attempt."""
    limits = submission.limits
    script = str(resources.files("apflow.cluster") / "batch_task.sh")
    words = [script, str(submission.folder), str(attempt.number), str(submission.images_wait_s), submission.command]
    template = (resources.files("apflow.cluster") / "htcondor" / "array.sub").read_text()
    return _Description(template).substitute(
        name=attempt.name,
        arguments=" ".join(_quoted(word) for word in words),
        folder=submission.folder,
        attempt=attempt.number,
        memory_mb=limits.memory_mb,
        minutes=limits.minutes,
        throttle=f"max_materialize = {limits.throttle}" if limits.throttle else "",
        indices=", ".join(str(index) for index in attempt.indices),
    )


def parse(ads: Sequence[Mapping[str, Any]]) -> dict[int, TaskState]:
    """States from job ads; of several for one task the last counts."""
    return {int(ad["ApflowIndex"]): _state(ad) for ad in ads}


def _state(ad: Mapping[str, Any]) -> TaskState:
    told = _STATUS.get(ad["JobStatus"], str(ad["JobStatus"]))
    host = str(ad.get("RemoteHost", ad.get("LastRemoteHost", ""))).rpartition("@")[2]
    if told in ("IDLE", "HELD"):
        return TaskState(Phase.WAITING, f"{told} ({ad['HoldReason']})" if "HoldReason" in ad else told)
    if told == "COMPLETED":
        signal = ad.get("ExitSignal") if ad.get("ExitBySignal") else None
        return TaskState(Phase.ENDED, told, ad.get("ExitCode"), signal, host, died=signal == _SIGKILL)
    if told == "REMOVED":
        # One that waited again had lost its node; see periodic_remove in array.sub.
        lost = ad.get("LastJobStatus") == 1 and ad.get("NumJobStarts", 0) > 0
        return TaskState(Phase.ENDED, told, host=host, died=lost)
    return TaskState(Phase.RUNNING, told, host=host)


def _quoted(word: str) -> str:
    """A word of the new syntax of arguments, which is itself in double quotes."""
    return "'" + word.replace("'", "''").replace('"', '""') + "'"


def _ads(command: Sequence[str]) -> list[dict[str, Any]]:
    """Job ads that a command prints as JSON, which is nothing at all where there are none."""
    text = _condor(command).strip()
    try:
        ads: list[dict[str, Any]] = json.loads(text) if text else []
    except ValueError as error:
        raise ServiceError(f"{command[0]} printed no JSON: {error}") from error
    return ads


def _condor(command: Sequence[str]) -> str:
    return run(command, lambda said: _UNREACHABLE.search(said) is not None, job_environment())
