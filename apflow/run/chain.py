"""The detector chain of a visit on Dask: its calls, and how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Future

from apflow.run.admission import ChainId
from apflow.run.tasks import Promise, units_of


@dataclass(frozen=True, eq=False)
class Second:
    """A chain begun on another worker as well."""

    worker: str
    label: str
    future: Future[Any]


@dataclass(eq=False)
class Chain:
    """The calls for one detector, and how far they are."""

    id: ChainId
    detector: int
    calls: list[Promise]
    waits: list[Promise]  # those that take nothing of the chain: submitted at once, holding nothing
    units: list[list[Promise]]  # the others, as tasks
    shared: set[Promise]  # of these what is needed outside its task
    single: set[Promise]  # of these what one other task alone takes, and that one computes more than a step
    label: str = ""
    tries: int = 0
    worker: str | None = None
    future: Future[Any] | None = None
    second: Second | None = None
    rerun_unix: float = float("inf")  # when to ask for a second worker
    ended: bool = False
    revived: bool = False  # it ended, and its result was lost
    over: set[Promise] = field(default_factory=set)  # waits that came to their ends, be the result lost again or not

    @property
    def end(self) -> Promise:
        """The last call."""
        return self.calls[-1]

    @property
    def is_ready(self) -> bool:
        """Whether its image has come."""
        return len(self.over) == len(self.waits)

    @property
    def may_rerun(self) -> bool:
        """Whether it runs, on one worker, and is not suspected of having killed another."""
        return not self.ended and self.future is not None and self.second is None and self.tries == 0

    def release(self) -> None:
        """Drop what was submitted on admission."""
        self.release_second()
        if self.future is not None:
            self.future.release()
            self.future = None

    def release_second(self) -> None:
        """Drop what runs on the second worker."""
        if self.second is not None:
            self.second.future.release()
            self.second = None

    def take_second(self) -> None:
        """Drop what runs on the first worker; the second is the only one from now on."""
        assert self.second is not None
        if self.future is not None:
            self.future.release()
        self.worker, self.label, self.future = self.second.worker, self.second.label, self.second.future
        self.second = None

    def release_waits(self) -> None:
        """Drop the waits; one that still waits is told by `apflow.graph.cancelled`."""
        for wait in self.waits:
            wait.release()


def chain_of(chain_id: ChainId, end: Promise, calls: Sequence[Promise], fuse: bool) -> Chain:
    """The chain that ends with `end`: of the detector's calls those that it needs."""
    needed = {end}
    for call in reversed(calls):
        if call in needed:
            needed.update(call.inputs())
    kept = [call for call in calls if call in needed]
    waits = [c for c in kept if c.node.waits and c is not end and not any(i.detector is not None for i in c.inputs())]
    units = [unit for unit in (units_of(kept) if fuse else [[call] for call in kept]) if unit[0] not in waits]
    shared = {made for unit in units for call in unit for made in call.inputs() if made not in unit}
    takers = {made: [unit for unit in units if any(made in call.inputs() for call in unit)] for made in shared}
    single = {made for made, taking in takers.items() if len(taking) == 1 and len(taking[0]) > 1}
    assert end.detector is not None
    return Chain(chain_id, end.detector, kept, waits, units, shared, single - set(waits))
