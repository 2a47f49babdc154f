"""A visit as batch jobs, one per detector (DMTN-092 section 2.1)."""

from apflow.operate.batch.send import cancel, plan, refresh, submit, wait
from apflow.operate.batch.submission import Limits, Submission, VisitArguments, load
from apflow.operate.batch.system import Phase, open_system
from apflow.operate.batch.track import TaskReport

__all__ = [
    "Limits",
    "Phase",
    "Submission",
    "TaskReport",
    "VisitArguments",
    "cancel",
    "load",
    "open_system",
    "plan",
    "refresh",
    "submit",
    "wait",
]
