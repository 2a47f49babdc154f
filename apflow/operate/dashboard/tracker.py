"""The step that each detector of each visit is in at the moment, from the scheduler's transitions of tasks."""

from __future__ import annotations

from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from apflow.model.ap_metrics import STEPS
from apflow.run.watch import note
from apflow.run.worker import STEP_TOPIC

_STEPS = frozenset(STEPS)


class Tracker(SchedulerPlugin):
    """Keeps the newest step of each detector, by the label it has in task keys (``("subtract-2025...", "R22_S11")``).

    Attributes
    ----------
    steps : `dict`
        visit -> label -> step.
    version : `int`
        Grows with each change.
    """

    name = "apflow-tracker"

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, str]] = {}
        self.version = 0

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Note a step that a worker was given: of several in one task, the first."""
        if finish != "processing" or type(key) is not tuple:
            return
        names, _, visit = key[0].rpartition("-")
        step = names.partition("+")[0]
        if step in _STEPS:
            self._note(int(visit), key[1], step)

    def log_event(self, topic: str, msg: Any) -> None:
        """Note a step that a worker came to within a task."""
        if topic == STEP_TOPIC:
            self._note(*msg[:3])

    def _note(self, visit: int, label: str, step: str) -> None:
        # A second attempt has its number behind the name: R22_S11.2.
        name, dot, attempt = str(label).rpartition(".")
        note(self.steps, visit, name if dot and attempt.isdecimal() else label, step)
        self.version += 1
