"""The step that each detector of each visit is in at the moment, from the scheduler's transitions of tasks."""

from __future__ import annotations

from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from apflow.model.ap_metrics import STEPS

#: Visits whose steps are kept: those in flight, and a few that have just ended.
_KEPT = 12
_STEPS = frozenset(STEPS)


class Tracker(SchedulerPlugin):
    """Keeps the newest step of each detector, by the label it has in task keys (``("subtract-2025...", "R22_S11")``).

    Attributes
    ----------
    steps : `dict`
        visit -> label -> step; a task of several steps counts as its first.
    version : `int`
        Grows with each change.
    """

    name = "apflow-tracker"

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, str]] = {}
        self.version = 0

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Note a step that a worker was given."""
        if finish != "processing" or type(key) is not tuple:
            return
        names, _, visit = key[0].rpartition("-")
        step = names.partition("+")[0]
        if step not in _STEPS:
            return
        number = int(visit)
        if number not in self.steps:
            self.steps[number] = {}
            while len(self.steps) > _KEPT:
                del self.steps[min(self.steps)]
        self.steps.setdefault(number, {})[str(key[1]).partition("#")[0]] = step
        self.version += 1
