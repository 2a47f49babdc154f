"""SLURM, by sbatch, squeue, scontrol and scancel; no accounting database is needed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import ClassVar

from apflow.errors import BadRequest
from apflow.operate.batch.submission import Attempt, Submission
from apflow.operate.batch.system import Phase, TaskState, expand, job_environment, ranges, run

_UNREACHABLE = re.compile(
    r"unable to contact|could not establish a configuration|timed out|connection|communication|slurm backup|"
    r"temporarily|protocol authentication|socket",
    re.IGNORECASE,
)
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
#: Ends that say nothing of the task itself. A scancel is meant, and a limit would end it again.
_DIED = {"NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "LAUNCH_FAILED"}
_SIGKILL = 9


class Slurm:
    """See `apflow.operate.batch.system.BatchSystem`.

    Parameters
    ----------
    environment : mapping, optional
        What SLURM's commands, and the jobs, get beside and before this process's.
    """

    name: ClassVar[str] = "slurm"

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        # Without this, long lists of tasks are cut short.
        self._environment = {**job_environment(), **(environment or {}), "SLURM_BITSTR_LEN": "0"}

    def submit(self, submission: Submission, attempt: Attempt) -> str:
        """One job array, each task one detector.

        Site settings such as account and quality of service are taken from
        sbatch's own variables (SBATCH_ACCOUNT, SBATCH_QOS). All that differs
        between tasks is in the manifest, nothing in ``--export``: that splits
        values at commas, and without ALL each task begins with a login shell.
        """
        limits = submission.limits
        throttle = f"%{limits.throttle}" if limits.throttle else ""
        command = [
            "sbatch",
            "--parsable",
            f"--job-name={attempt.name}",
            f"--array={ranges(attempt.indices)}{throttle}",
            f"--chdir={submission.folder}",
            f"--output={submission.folder}/logs/%a.{attempt.number}.log",
            "--ntasks=1",
            "--cpus-per-task=1",
            f"--mem={limits.memory_mb}M",
            f"--time={limits.minutes}",
            "--no-requeue",
        ]
        if limits.partition:
            command.append(f"--partition={limits.partition}")
        script = str(resources.files("apflow.cluster") / "batch_task.sh")
        words = [str(submission.folder), str(attempt.number), str(submission.images_wait_s), submission.command]
        return self._run([*command, script, *words]).strip().partition(";")[0]

    def find(self, name: str) -> str:
        """The newest job of that name, ended ones too while SLURM knows them."""
        jobs = self._run(["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F"]).split()
        return max(jobs, key=int, default="")

    def states(self, job: str) -> Mapping[int, TaskState]:
        """Tasks that ended more than SLURM's MinJobAge ago (5 minutes by default) are forgotten."""
        try:
            return parse(self._run(["scontrol", "--oneliner", "show", "job", job]))
        except BadRequest as error:
            if "Invalid job id" in str(error):
                return {}
            raise

    def cancel(self, job: str) -> None:
        """Nothing happens where it ended."""
        self._run(["scancel", "--quiet", job])

    def _run(self, command: Sequence[str]) -> str:
        return run(command, lambda said: _UNREACHABLE.search(said) is not None, self._environment)


def parse(listing: str) -> dict[int, TaskState]:
    """States from what ``scontrol --oneliner show job`` prints for an array."""
    states: dict[int, TaskState] = {}
    for line in listing.splitlines():
        fields = dict(re.findall(r"(\S+?)=(\S*)", line))
        if "ArrayTaskId" not in fields:
            continue
        # The tasks that wait share a line, which may end in the throttle.
        indices = expand(fields["ArrayTaskId"].partition("%")[0])
        states |= dict.fromkeys(indices, _state(fields))
    return states


def _state(fields: Mapping[str, str]) -> TaskState:
    told, host = fields["JobState"], fields.get("BatchHost", "")
    if told in _WAITING:
        return TaskState(Phase.WAITING, f"{told} ({fields.get('Reason', '')})")
    if told in _RUNNING:
        return TaskState(Phase.RUNNING, told, host=host)
    code, _, signal = fields.get("ExitCode", "0:0").partition(":")
    killed = told == "FAILED" and int(signal) == _SIGKILL
    return TaskState(
        Phase.ENDED,
        told,
        exit_code=None if int(signal) else int(code),
        signal=int(signal) or None,
        host=host,
        died=told in _DIED or killed,
    )
