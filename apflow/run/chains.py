"""The detector chains of one visit on Dask: waits, admission, attempts, ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from distributed import Future

from apflow.graph import Carried, failure_of
from apflow.model.ledger import Ended, Failure, State
from apflow.run.admission import Admit, ChainId, Evict
from apflow.run.chain import Chain, Second, chain_of
from apflow.run.tasks import Promise, Tasks

Post = Callable[[str, Any, Any], None]
#: A straggler for which no worker is idle asks again after so long, seconds.
_ASK_AGAIN_S = 1.0


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

    def rerun(self, visit: int, detector: int, worker: str) -> None:
        """Tell of a chain that was begun on a second worker."""

    def late(self, visit: int, detector: int) -> None:
        """Tell of a detector that missed the batch of its group."""

    def gathered(self, visit: int, carried: Carried) -> None:
        """Tell of gather steps that ended."""


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
    rerun_after_s: float
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

    def next_rerun(self) -> float:
        """When the next chain has taken so long that it asks for a second worker."""
        return min((c.rerun_unix for c in self.by_index.values() if c.may_rerun), default=float("inf"))

    def ask_reruns(self, now: float) -> None:
        """Ask for second workers of chains that take too long."""
        for chain in self.by_index.values():
            if chain.rerun_unix <= now and chain.may_rerun:
                chain.rerun_unix = now + _ASK_AGAIN_S
                self._changes.append(("lend", chain.id))

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

    def rerun(self, lent: Admit) -> None:
        """Begin a chain on a second worker as well."""
        chain = self.by_index[lent.chain.index]
        if chain.may_rerun:
            end, label = self._tasks_of(chain, lent.worker)
            (future,) = self.tasks.submit([end])
            chain.second = Second(lent.worker, label, future)
            future.add_done_callback(lambda done: self.post("finished", chain, done))
            self.desk.rerun(self.tasks.visit, chain.detector, lent.worker)

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
        if chain.second is not None and lost.worker in (chain.worker, chain.second.worker):
            (chain.take_second if lost.worker == chain.worker else chain.release_second)()
            return
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
        if chain.second is not None and not chain.ended:
            is_second, is_over = chain.second.future is future, future.status == "finished"
            if (is_second and is_over) or (chain.future is future and not is_over):
                chain.take_second()
            elif is_second:
                chain.release_second()
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
        if chain.is_ready:
            self._changes.append(("ready", chain.id))
            chain.rerun_unix = time.time() + self.rerun_after_s

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
        chain.release_second()
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
            assert chain.worker is not None
            end, chain.label = self._tasks_of(chain, chain.worker)
            ends.append(end)
            if chain.is_ready:
                chain.rerun_unix = time.time() + self.rerun_after_s
        for chain, future in zip(chains, self.tasks.submit(ends), strict=True):
            chain.future = future
            future.add_done_callback(lambda done, chain=chain: self.post("finished", chain, done))

    def _tasks_of(self, chain: Chain, worker: str) -> tuple[Any, str]:
        """The last task of a chain that is pinned to a worker, and the label of its tasks."""
        label = self._label(chain, chain.end)
        made: dict[Promise, Any] = {}
        for unit in chain.units:
            keep = [call for call in unit if call in chain.shared]
            taken = {call for call in chain.single if any(call in taker.inputs() for taker in unit)}
            made |= dict.fromkeys(unit, self.tasks.task(unit, label, made, worker, keep, taken))
        return self.tasks.delivery(made[chain.end], label), label

    def _label(self, chain: Chain, call: Promise) -> str:
        return self.desk.attempt(self.tasks.visit, call.node.name, self.desk.label_of(chain.detector))


def failure_of_future(future: Future[Any], step: str) -> Failure:
    """Why Dask gave a task up: its worker was killed again and again, or nobody could run it."""
    error = future.exception() if future.status in ("error", "cancelled") else None
    if error is None:
        return Failure(State.FAILED, step, f"the result was lost: {future.status}")
    return failure_of(error, str(getattr(error, "task", (step,))[0]).rpartition("-")[0] or step)
