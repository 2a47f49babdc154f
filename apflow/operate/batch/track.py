"""What became of each detector's job."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from apflow.cli import EXIT_CODES
from apflow.config import Config
from apflow.io.atomic import atomic
from apflow.io.ppdb import open_ppdb
from apflow.model.ids import parse_image_name
from apflow.model.ledger import Outcome, State
from apflow.operate.batch.submission import MAX_ATTEMPTS, STATES, Attempt, Submission
from apflow.operate.batch.system import BatchSystem, Phase, TaskState

_STATES = {code: state for state, code in EXIT_CODES.items()}
#: What an exit code that is no state's says; see `apflow.cli`.
_CAUSES = {
    2: "a bad request",
    69: "a service is not there",
    70: "a defect",
    74: "input or output failed",
    126: "the command cannot be run",
    127: "the command is not there",
    130: "interrupted",
}
#: A shell's exit codes where its command was ended by SIGKILL or SIGTERM: only the batch system knows why.
_CUT_SHORT = (128 + 9, 128 + 15)
#: Ends by the task itself, at which the batch system's exit code is the task's.
_BY_ITSELF = ("COMPLETED", "FAILED")
_FORGOTTEN = TaskState(Phase.ENDED, "not known to the batch system any more", died=True)


@dataclass(frozen=True)
class End:
    """What a task itself left at its end.

    Attributes
    ----------
    exit_code : `int`
    began_unix, ended_unix : `float`
    host : `str`
    """

    exit_code: int
    began_unix: float
    ended_unix: float
    host: str


@dataclass(frozen=True)
class TaskReport:
    """One detector of a submission.

    Attributes
    ----------
    detector : `int`
    name : `str`
    phase : `Phase`
        Of the last attempt.
    state : `State`, optional
        How the detector-visit ended: by the exit code of its job, or, where
        the job died, by the ledger. None while it is not at its end.
    cause : `str`
        Why it is not done.
    attempts : `int`
    told : `str`
        Last words of the batch system.
    exit_code : `int`, optional
    host : `str`
    began_unix, ended_unix : `float`, optional
    ledger : `str`
        State in the PPDB's ledger; empty where there is none.
    died : `bool`
        The last attempt ended through no fault of its own.
    """

    detector: int
    name: str
    phase: Phase
    state: State | None
    cause: str
    attempts: int
    told: str
    exit_code: int | None
    host: str
    began_unix: float | None
    ended_unix: float | None
    ledger: str
    died: bool


def look(submission: Submission, system: BatchSystem) -> dict[tuple[int, int], TaskState]:
    """State of each task by attempt and index, as the system tells it now; what it forgot, as it was told last.

    Raises
    ------
    ServiceError
        The batch system can't be reached.
    """
    path = submission.folder / STATES
    known = {
        (int(a), int(i)): TaskState(**state | {"phase": Phase(state["phase"])})
        for key, state in (json.loads(path.read_text()) if path.exists() else {}).items()
        for a, i in [key.split(".")]
    }
    for attempt in submission.attempts:
        keys = [(attempt.number, index) for index in attempt.indices]
        if not attempt.job or all(key in known and known[key].phase is Phase.ENDED for key in keys):
            continue
        told = system.states(attempt.job)
        for key in keys:
            before = known.get(key)
            if key[1] in told:
                known[key] = told[key[1]]
            elif before is None or before.phase is not Phase.ENDED:
                known[key] = _FORGOTTEN
    with atomic(path) as file:
        file.write(json.dumps({f"{a}.{i}": dataclasses.asdict(s) for (a, i), s in known.items()}).encode())
    return known


def report(
    submission: Submission, told: Mapping[tuple[int, int], TaskState], ledger: Mapping[int, Outcome]
) -> tuple[TaskReport, ...]:
    """A report for each detector, in the order of the tasks.

    Parameters
    ----------
    submission : `Submission`
    told : mapping
        See `look`.
    ledger : mapping
        Outcomes by detector; see `read_ledger`.
    """
    ends = dict(_ends(submission.folder / "ended"))
    reports = []
    for index, (detector, _) in enumerate(submission.detectors):
        last = max((a for a in submission.attempts if index in a.indices), key=lambda a: a.number)
        key = (last.number, index)
        state = told.get(key, TaskState(Phase.WAITING, "not sent yet"))
        reports.append(_report(submission, last, index, state, ends.get(key), ledger.get(detector)))
    return tuple(reports)


def read_ledger(submission: Submission, config: Config) -> dict[int, Outcome]:
    """What the PPDB's ledger says of the visit, by detector; nothing before a job has ended."""
    if not submission.arguments.images or not any(True for _ in _ends(submission.folder / "ended")):
        return {}
    from apflow.operate.detector import outcomes_of  # with the whole graph, which sending has no use for

    visit = parse_image_name(submission.arguments.images[0]).exposure
    # A job that timed out may have been the first to come, and have made no tables.
    with open_ppdb(config.ppdb_url, create=True) as database:
        return {outcome.detector: outcome for outcome in outcomes_of(database, [visit])}


def died(reports: tuple[TaskReport, ...]) -> tuple[int, ...]:
    """Indices of tasks that are to go once more."""
    return tuple(index for index, one in enumerate(reports) if one.died and one.attempts < MAX_ATTEMPTS)


def _report(
    submission: Submission, attempt: Attempt, index: int, told: TaskState, end: End | None, ledger: Outcome | None
) -> TaskReport:
    code = end.exit_code if end else told.exit_code if told.told in _BY_ITSELF else None
    whole = code is not None and code not in _CUT_SHORT
    phase = Phase.ENDED if end and whole else told.phase
    dead = phase is Phase.ENDED and not whole and (told.died or told.told in _BY_ITSELF)
    attempts = sum(index in one.indices for one in submission.attempts)
    state, cause = None, ""
    if dead and attempts < MAX_ATTEMPTS:
        cause = "the job died; whoever waits for the submission sends it once more"
    elif phase is Phase.ENDED:
        state, cause = _judge(code if whole else None, told.told, ledger)
        if state is not State.DONE:
            said = _last_words(submission.folder / "logs" / f"{index}.{attempt.number}.log")
            cause = "; ".join(part for part in (cause, said) if part)
    detector, name = submission.detectors[index]
    return TaskReport(
        detector=detector,
        name=name,
        phase=phase,
        state=state,
        cause=cause,
        attempts=attempts,
        told=told.told,
        exit_code=code,
        host=end.host if end else told.host,
        began_unix=end.began_unix if end else None,
        ended_unix=end.ended_unix if end else None,
        ledger=str(ledger.state) if ledger else "",
        died=dead,
    )


def _judge(code: int | None, told: str, ledger: Outcome | None) -> tuple[State, str]:
    """How a detector-visit ended whose job goes no more; `code` is None where the job did not come to its end."""
    if code in _STATES:
        return _STATES[code], ""
    if code is not None:
        return State.FAILED, _CAUSES.get(code, f"exit code {code}")
    if ledger and ledger.state is State.DONE:
        return State.DONE, f"the job died when the result was stored: {told}"
    if told.startswith(("CANCELLED", "REMOVED")):
        return State.CANCELLED, "the job was cancelled"
    return State.FAILED, f"the job died: {told}"


def _ends(folder: Path) -> Iterator[tuple[tuple[int, int], End]]:
    for path in folder.iterdir():
        attempt, _, index = path.name.partition(".")
        if index.isdigit():
            code, began, ended, host = path.read_text().split()
            yield (int(attempt), int(index)), End(int(code), float(began), float(ended), host)


def _last_words(log: Path) -> str:
    """The last line that a job printed."""
    try:
        lines = log.read_text(errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
