"""The detector chains of one visit on Dask: waits, admission, attempts, ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from distributed import Future

from apflow.graph import Carried, failure_of
from apflow.model.ledger import Ended, Failure, State
from apflow.run.admission import Admit, ChainId, Evict
from apflow.run.tasks import Promise, Tasks, units_of

Post = Callable[[str, Any, Any], None]


class Desk(Protocol):
    """What a visit asks of the runner that all visits share."""

    def admission(self, changes: Iterable[tuple[str, ChainId]]) -> None:
        """Change the state of admission; decisions come back as posts."""

    def label_of(self, detector: int) -> str:
        """Name of a detector in keys."""

    def attempt(self, visit: int, step: str, label: str) -> str:
        """The label with the number of the attempt at `step`, if not the first: a key is never used twice."""

    def where(self, visit: int) -> tuple[dict[str, str], list[str]]:
        """See `apflow.run.worker.where`."""

    def restart(self, workers: list[str]) -> None:
        """Have hung workers restarted by their nannies."""

    def ended(self, visit: int, detector: int, ended: Ended | None) -> None:
        """Tell of a chain that ended; None when its worker tells how."""

    def gathered(self, visit: int, carried: Carried) -> None:
        """Tell of gather steps that ended."""


@dataclass(eq=False)
class Chain:
    """The calls for one detector, and how far they are."""

    id: ChainId
    detector: int
    calls: list[Promise]
    waits: list[Promise]  # those that take nothing of the chain: submitted at once, holding nothing
    units: list[list[Promise]]  # the others, as tasks
    shared: set[Promise]  # of these what is needed outside its task
    label: str = ""
    tries: int = 0
    worker: str | None = None
    future: Future[Any] | None = None
    ended: bool = False
    revived: bool = False  # it ended, and its result was lost
    over: set[Promise] = field(default_factory=set)  # waits that came to their ends, be the result lost again or not

    @property
    def end(self) -> Promise:
        """The last call."""
        return self.calls[-1]

    def release(self) -> None:
        """Drop what was submitted on admission."""
        if self.future is not None:
            self.future.release()
            self.future = None

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
    assert end.detector is not None
    return Chain(chain_id, end.detector, kept, waits, units, shared)


@dataclass(eq=False)
class Chains:
    """All chains of a visit; lives in the visit's thread.

    Parameters
    ----------
    post
        Hands what becomes of futures to the visit's thread.
    """

    desk: Desk
    tasks: Tasks
    max_attempts: int
    fuse: bool
    post: Post
    by_index: dict[int, Chain] = field(default_factory=dict)
    _fresh: list[tuple[int, Future[Any] | Ended]] = field(default_factory=list)
    _regained: list[tuple[int, Future[Any] | Ended]] = field(default_factory=list)
    _changes: list[tuple[str, ChainId]] = field(default_factory=list)
    _admitted: list[Chain] = field(default_factory=list)

    def open(self, ends: Sequence[Promise], calls: Mapping[int, Sequence[Promise]]) -> None:
        """Submit all waits."""
        for index, end in enumerate(ends):
            assert end.detector is not None
            self.by_index[index] = chain_of(ChainId(self.tasks.visit, index), end, calls[end.detector], self.fuse)
        self._submit_waits([(chain, wait) for chain in self.by_index.values() for wait in chain.waits])

    def ask(self) -> None:
        """Ask for admission of all chains."""
        for chain in self.by_index.values():
            if not chain.ended:
                self._changes.append(("add", chain.id))
                self._note_ready(chain)

    def flush(self) -> None:
        """Tell admission what changed and submit the chains that were admitted, in one message each."""
        if self._changes:
            changes, self._changes = self._changes, []
            self.desk.admission(changes)
        admitted, self._admitted = [chain for chain in self._admitted if not chain.ended], []
        if admitted:
            self._submit(admitted)

    def take_ended(self) -> list[tuple[int, Future[Any] | Ended]]:
        """Detectors that ended since last asked."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def take_regained(self) -> list[tuple[int, Future[Any] | Ended]]:
        """Detectors that ended once more since last asked; see `revive`."""
        regained, self._regained = self._regained, []
        return regained

    def worker_of(self, future: Future[Any]) -> str | None:
        """The worker that the chain which gave a result was pinned to; None if it began anew since."""
        return self._chain_of(future).worker

    def revive(self, future: Future[Any]) -> int:
        """Begin a chain anew whose result is lost; gives its detector.

        Dask would compute it again only on the worker that it was pinned to, which may be gone.
        """
        chain = self._chain_of(future)
        chain.ended, chain.revived = False, True
        if not self._gave_up(chain, future):
            self._again(chain)
        return chain.detector

    def _chain_of(self, future: Future[Any]) -> Chain:
        _, label = cast(tuple[str, str], future.key)
        return next(chain for chain in self.by_index.values() if chain.label == label)

    # What is posted.

    def admit(self, decision: Admit) -> None:
        """Start a chain."""
        chain = self.by_index[decision.chain.index]
        chain.worker = decision.worker
        self._admitted.append(chain)

    def evict(self, decision: Evict) -> None:
        """Let a chain that only prefetched give its memory back."""
        chain = self.by_index[decision.chain.index]
        chain.release()
        chain.worker = None
        self._admitted = [other for other in self._admitted if other is not chain]

    def waited(self, chain: Chain, future: Future[Any]) -> None:
        """A wait came to its end."""
        wait = next((wait for wait in chain.waits if wait.future is future), None)
        if wait is None or chain.ended:
            return
        if future.status == "finished":
            chain.over.add(wait)
            self._note_ready(chain)
        elif not self._gave_up(chain, future):
            self._submit_waits([(chain, wait)])

    def lost(self, lost: Admit) -> None:
        """The worker of a chain died: begin anew, elsewhere and alone."""
        chain = self.by_index[lost.chain.index]
        if chain.ended or chain.worker != lost.worker:
            return
        self._admitted = [other for other in self._admitted if other is not chain]
        chain.tries += 1
        if chain.tries >= self.max_attempts:
            cause = f"KilledWorker: {chain.tries} workers died while they held this detector"
            self._end_here(chain, Failure(State.FAILED, self._step(chain, {}), cause))
        else:
            self._again(chain)

    def finished(self, chain: Chain, future: Future[Any]) -> None:
        """The last step of a chain came to its end, or was lost."""
        if chain.future is not future or chain.ended:
            return
        if future.status == "finished":
            chain.future = None  # from now on the batch's
            self._end(chain, future)
        elif not self._gave_up(chain, future):
            self._again(chain)

    def end_all(self, state: State, cause: str) -> None:
        """End every unfinished chain here and now, and restart workers that still compute for one."""
        steps, computing = self.desk.where(self.tasks.visit)
        for chain in self.by_index.values():
            if not chain.ended:
                self._end_here(chain, Failure(state, self._step(chain, steps), cause))
        if state is State.FAILED and computing:
            self.desk.restart(computing)

    def abandon(self) -> None:
        """Release everything."""
        for chain in self.by_index.values():
            chain.release()
            chain.release_waits()
        self.desk.admission([("leave", chain.id) for chain in self.by_index.values()])

    # Within.

    def _step(self, chain: Chain, steps: Mapping[str, str]) -> str:
        """The step that a chain is in, as far as the driver can tell."""
        waiting = [wait for wait in chain.waits if wait not in chain.over]
        return waiting[0].node.name if waiting else steps.get(chain.label, chain.calls[0].node.name)

    def _again(self, chain: Chain) -> None:
        chain.release()
        chain.worker = None
        failed = [wait for wait in chain.waits if wait.future is None or wait.future.status in ("error", "cancelled")]
        chain.over.difference_update(failed)
        self._submit_waits([(chain, wait) for wait in failed])
        self._changes += [("leave", chain.id), ("suspect", chain.id)]
        self._note_ready(chain)

    def _note_ready(self, chain: Chain) -> None:
        if len(chain.over) == len(chain.waits):
            self._changes.append(("ready", chain.id))

    def _gave_up(self, chain: Chain, future: Future[Any]) -> bool:
        chain.tries += 1
        if chain.tries < self.max_attempts:
            return False
        self._end_here(chain, failure_of_future(future, chain.end.node.name))
        return True

    def _end_here(self, chain: Chain, failure: Failure) -> None:
        chain.release()
        self._end(chain, Ended(chain.detector, failure=failure))

    def _end(self, chain: Chain, result: Future[Any] | Ended) -> None:
        chain.ended = True
        chain.release_waits()
        (self._regained if chain.revived else self._fresh).append((chain.detector, result))
        self.desk.ended(self.tasks.visit, chain.detector, result if isinstance(result, Ended) else None)
        self._changes.append(("leave", chain.id))

    def _submit_waits(self, waits: Sequence[tuple[Chain, Promise]]) -> None:
        made = [self.tasks.task([wait], self._label(chain, wait)) for chain, wait in waits]
        for (chain, wait), future in zip(waits, self.tasks.submit(made), strict=True):
            wait.future = future
            future.add_done_callback(lambda done, chain=chain: self.post("waited", chain, done))

    def _submit(self, chains: Sequence[Chain]) -> None:
        ends = []
        for chain in chains:
            chain.label = label = self._label(chain, chain.end)
            made: dict[Promise, Any] = {}
            for unit in chain.units:
                keep = [call for call in unit if call in chain.shared]
                made |= dict.fromkeys(unit, self.tasks.task(unit, label, made, chain.worker, keep))
            ends.append(self.tasks.delivery(made[chain.end], label))
        for chain, future in zip(chains, self.tasks.submit(ends), strict=True):
            chain.future = future
            future.add_done_callback(lambda done, chain=chain: self.post("finished", chain, done))

    def _label(self, chain: Chain, call: Promise) -> str:
        return self.desk.attempt(self.tasks.visit, call.node.name, self.desk.label_of(chain.detector))


def failure_of_future(future: Future[Any], step: str) -> Failure:
    """Why Dask gave a task up: its worker was killed again and again, or nobody could run it."""
    error = future.exception() if future.status in ("error", "cancelled") else None
    if error is None:
        return Failure(State.FAILED, step, f"the result was lost: {future.status}")
    return failure_of(error, str(getattr(error, "task", (step,))[0]).rpartition("-")[0] or step)
