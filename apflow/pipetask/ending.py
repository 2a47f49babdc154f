"""How a detector-visit ended, told from the task to the script that started `pipetask`."""

from __future__ import annotations

from pathlib import Path

from apflow.cli import EXIT_CODES
from apflow.io.atomic import atomic
from apflow.model.ledger import Outcome, State

#: Environment variable that names a file: exit code in the first line, what happened in the second.
OUTCOME_FILE = "APFLOW_OUTCOME"


def line_of(outcome: Outcome) -> str:
    """What is printed of an outcome."""
    line = f"visit {outcome.visit} detector {outcome.detector}: {outcome.state}"
    if outcome.state is State.DONE:
        return f"{line}, {outcome.n_sources} DiaSources, {outcome.n_alerts} alerts"
    return f"{line} at {outcome.step}: {outcome.cause}"


def write_ending(path: Path, outcome: Outcome) -> None:
    """Leave exit code and line of an outcome; not of one that is done with something left to do.

    Alerts that were not sent and files that were not registered are looked
    after by whoever finds no ending (`apflow.pipetask.job.settle`).
    """
    if outcome.state is State.DONE and outcome.cause:
        return
    line = " ".join(line_of(outcome).split())
    with atomic(path) as file:
        file.write(f"{EXIT_CODES[outcome.state]}\n{line}\n".encode())
