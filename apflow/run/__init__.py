"""The runner of this process: a visit in order, here and now, with the outcomes that Dask would give.

`apflow.run.on_dask.DaskRunner` runs the same graphs on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apflow.errors import ApflowError
from apflow.graph import Carried, Node, active, by_group, detector_of, guarded
from apflow.model.ledger import Ended, StepRecord

OnEvent = Callable[[object], None]


@dataclass(frozen=True)
class ChainEnded:
    """Event: the chain of a detector came to its end; `ended` is without its value.

    `attempts` is how often it was begun.
    """

    visit: int
    ended: Ended
    attempts: int = 1


@dataclass(frozen=True)
class GatherEnded:
    """Event: the steps of a batch (or of the visit itself) came to their end.

    On a cluster `result` has the value of a step that no other of the batch takes.
    """

    visit: int
    result: Carried


@dataclass(frozen=True)
class StepCounts:
    """Event, about once a second: tasks of each step, as ``{step: {"waiting" | "running" | "done": n}}``."""

    visit: int
    counts: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class WorkerChanged:
    """Event: a worker for detector chains was lost, or came."""

    worker: str
    is_lost: bool


@dataclass(frozen=True)
class Rerun:
    """Event: a detector that takes too long was begun on `worker` as well; the first to end is taken."""

    visit: int
    detector: int
    worker: str


@dataclass(frozen=True)
class Late:
    """Event: a detector ended after the batch of its group was closed, and follows in a later one."""

    visit: int
    detector: int


class VisitFailed(ApflowError):
    """The visit's last step did not give a report."""


class RunnerClosed(ApflowError):
    """The runner was closed while the visit was in flight."""


def result_of(visit: int, carried: Any) -> Any:
    """The value that a graph returned.

    Raises
    ------
    VisitFailed
        Its last step failed; the message has the step and the cause.
    """
    if not isinstance(carried, Carried):
        return carried
    if carried.failure is not None:
        raise VisitFailed(f"visit {visit}: {carried.failure.step} {carried.failure.state}: {carried.failure.cause}")
    return carried.value


def visit_id(visit: Any) -> int:
    """Number of a visit: of a `apflow.model.visit.Visit`, or the number itself."""
    return int(getattr(visit, "visit", visit))


class EagerRunner:
    """Runs a graph here, in order; what a step raises becomes its detector's outcome.

    Parameters
    ----------
    group_of
        Group (raft) of a detector: one batch each. Default: one batch for all.
    on_event
        Called with `ChainEnded` and `GatherEnded`.
    """

    def __init__(self, *, group_of: Callable[[int], Hashable] | None = None, on_event: OnEvent | None = None) -> None:
        self._group_of = group_of
        self._on_event = on_event or (lambda event: None)
        self._visit = 0

    def run(self, graph: Callable[..., Any], visit: Any, detectors: Sequence[int], config: Any) -> Any:
        """Run ``graph(visit, detectors, config)``; gives what it returns.

        Raises
        ------
        VisitFailed
            The last step of the graph failed.
        """
        self._visit = visit_id(visit)
        with active(self):
            end = graph(visit, detectors, config)
        self.steps: tuple[StepRecord, ...] = end.steps if isinstance(end, Carried) else ()
        return result_of(self._visit, end)

    def call(self, node: Node[..., Any], arguments: Mapping[str, Any]) -> Carried:
        """Run one step (the runner's side of `apflow.graph`)."""
        detector = detector_of(arguments)
        carried = guarded(node, arguments, detector, "here")
        if detector is None:
            self._on_event(GatherEnded(self._visit, Carried(None, carried.failure, carried.steps)))
        return carried

    def gathers(self, results: Sequence[Carried]) -> Iterator[tuple[Ended, ...]]:
        """Group by group, in order (the runner's side of `apflow.graph`)."""
        ends = {ended.detector: ended for ended in (result.ended() for result in results)}
        for ended in ends.values():
            self._on_event(ChainEnded(self._visit, Ended(ended.detector, None, ended.failure, ended.steps)))
        for detectors in by_group(list(ends), self._group_of).values():
            yield tuple(ends[detector] for detector in detectors)
