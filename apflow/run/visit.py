"""One visit on Dask: its graph function runs in a thread of the driver, its steps on the cluster."""

from __future__ import annotations

import queue
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Future

from apflow.graph import Carried, Node, detector_of
from apflow.model.ledger import Ended, Failure, State
from apflow.run import RunnerClosed
from apflow.run.batches import Batches
from apflow.run.chains import Chains, Desk, failure_of_future
from apflow.run.tasks import Batch, Group, Promise, Tasks


@dataclass(frozen=True)
class Limits:
    """Of one visit: see `apflow.run.on_dask.DaskRunner`."""

    gather_after_s: float
    rerun_after_s: float
    deadline_s: float
    gather_deadline_s: float
    max_attempts: int
    fuse: bool


class VisitRun:
    """The runner of one visit, as `apflow.graph` sees it; lives in the visit's thread."""

    def __init__(self, desk: Desk, tasks: Tasks, limits: Limits, group_of: Callable[[int], Hashable] | None) -> None:
        self._desk, self._tasks, self._limits, self._group_of = desk, tasks, limits, group_of
        self._posts: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        self._deadline = time.time() + limits.deadline_s
        self._calls: dict[int, list[Promise]] = {}
        self._chains = Chains(desk, tasks, limits.max_attempts, limits.rerun_after_s, limits.fuse, self.post)
        self._groups: list[Group] = []  # submitted, not settled
        self._body: Group | None = None  # what the loop over gathers() builds just now
        self._looped = False
        self._submitted: weakref.WeakSet[Promise] = weakref.WeakSet()
        self._workers: frozenset[str] | None = None  # compute workers, once any came or went

    def post(self, what: str, about: Any = None, future: Any = None) -> None:
        """Hand something to the visit's thread; may be called by any thread."""
        self._posts.put((what, about, future))

    # The runner's side of apflow.graph.

    def call(self, node: Node[..., Any], arguments: Mapping[str, Any]) -> Promise:
        """Take a node call."""
        promise = Promise(node, arguments, detector_of(arguments))
        if promise.detector is not None:
            calls = self._calls.setdefault(promise.detector, [])
            if any(other.node.name == node.name for other in calls):
                raise ValueError(f"{node.name} is in the graph twice: give the second use a node of its own")
            calls.append(promise)
        elif self._body is not None:
            self._body.promises.append(promise)
        else:
            self._settle()
            self._submit(Group("visit", promises=[promise], fetch=self._looped))
        return promise

    def gathers(self, results: Sequence[Promise]) -> Iterator[Batch]:
        """Submit the chains and give batches as they close; never waits for the slowest."""
        for end in results:
            if not isinstance(end, Promise) or end.detector is None:
                raise TypeError(f"gathers() takes what nodes made for a detector, not {end!r}")
        self._chains.open(results, self._calls)
        self._settle()
        self._chains.ask()
        batches: Batches[Future[Any] | Ended] = Batches(list(self._calls), self._group_of, self._limits.gather_after_s)
        n = 0
        while not batches.finished():
            self._chains.flush()
            for detector, ended in self._chains.take_ended():
                if batches.add(detector, ended, time.time()):
                    self._desk.late(self._tasks.visit, detector)
            members = batches.closed(time.time())
            if members is None:
                self._pump(batches.next_due())
                continue
            n += 1
            self._body = Group(f"batch-{n}", Batch(members))
            yield self._body.batch  # type: ignore[misc]
            body, self._body = self._body, None
            self._submit(body)
        self._looped = True

    def finish(self, end: Any) -> Any:
        """Wait for all gathers, and for what the graph returned."""
        self._settle()
        return end.carried if isinstance(end, Promise) else end

    def abandon(self) -> None:
        """Release everything; what still runs on the cluster is dropped."""
        self._chains.abandon()
        for group in self._groups:
            group.release()
        for promise in self._submitted:
            promise.release()

    # What comes in.

    def _pump(self, until: float) -> None:
        """Take all that was posted; wait for it until `until` or a deadline at most."""
        until = min([until, self._deadline, self._chains.next_rerun(), *[group.expires_unix for group in self._groups]])
        try:
            posts = [self._posts.get(timeout=max(0.0, min(until - time.time(), 3600.0)))]
            while not self._posts.empty():
                posts.append(self._posts.get_nowait())
        except queue.Empty:
            posts = []
        for what, about, future in posts:
            self._take(what, about, future)
        now = time.time()
        self._chains.ask_reruns(now)
        self._chains.flush()
        if now >= self._deadline:
            self._deadline = float("inf")
            self._chains.end_all(State.FAILED, "deadline")
        self._rejoin()
        for group in [group for group in self._groups if now >= group.expires_unix]:
            self._give_up(group)

    def _take(self, what: str, about: Any, future: Any) -> None:
        match what:
            case "waited":
                self._chains.waited(about, future)
            case "finished":
                self._chains.finished(about, future)
            case "admit":
                self._chains.admit(about)
            case "evict":
                self._chains.evict(about)
            case "lent":
                self._chains.rerun(about)
            case "lost":
                self._chains.lost(about)
            case "workers":
                self._workers = about
                for group in list(self._groups):
                    self._revive(group)
            case "gathered":
                self._gathered(about)
            case "cancel":
                self._chains.end_all(State.CANCELLED, f"VisitCancelled: visit {self._tasks.visit} was cancelled")
            case "close":
                raise RunnerClosed(f"visit {self._tasks.visit} was in flight when the runner was closed")

    # Gathers, and the visit's own steps.

    def _settle(self) -> None:
        while self._groups:
            self._pump(float("inf"))

    def _submit(self, group: Group) -> None:
        """Submit those calls of a group that have no value, nor one on its way, once its batch is whole."""
        if group not in self._groups:
            group.expires_unix = max(time.time(), self._deadline if self._deadline < float("inf") else 0.0)
            group.expires_unix += self._limits.gather_deadline_s
            self._groups.append(group)
        self._revive(group)
        if group.missing:
            return
        calls = [promise for promise in group.promises if promise.future is None and promise.carried is None]
        made: dict[Promise, Any] = {}
        for promise in calls:
            label = self._desk.attempt(self._tasks.visit, promise.node.name, group.label)
            made[promise] = self._tasks.task([promise], label, made)
        for promise, future in zip(calls, self._tasks.submit([made[promise] for promise in calls]), strict=True):
            promise.future = future
            self._submitted.add(promise)
            future.add_done_callback(lambda done: self.post("gathered", group))
        if not calls:
            self._gathered(group)

    def _gathered(self, group: Group) -> None:
        futures = [promise.future for promise in group.promises if promise.future is not None]
        if group not in self._groups or group.missing or any(future.status == "pending" for future in futures):
            return
        lost = [p for p in group.promises if p.future is not None and p.future.status != "finished"]
        if not lost:
            self._close(group)
            return
        group.tries += 1
        for promise in lost:
            assert promise.future is not None
            if group.tries >= self._limits.max_attempts:
                promise.carried = Carried(None, failure_of_future(promise.future, promise.node.name))
            promise.release()
        self._submit(group)

    def _revive(self, group: Group) -> None:
        """Begin detectors anew whose results were lost after they ended, with the workers that had them."""
        unfinished = [
            p for p in group.promises if p.carried is None and (p.future is None or p.future.status != "finished")
        ]
        for place, member in enumerate(group.batch.members if group.batch is not None and unfinished else ()):
            if isinstance(member, Future) and place not in group.missing.values() and self._is_lost(member):
                group.missing[self._chains.revive(member)] = place
        if group.missing:
            for promise in unfinished:
                promise.release()

    def _is_lost(self, member: Future[Any]) -> bool:
        """Whether a result is gone, and Dask cannot make it again where it was made."""
        if member.status in ("error", "cancelled"):
            return True
        gone = self._workers is not None and self._chains.worker_of(member) not in self._workers
        return gone and member.status != "finished"

    def _rejoin(self) -> None:
        """Put detectors that ended once more into their batches, and submit those that are whole again."""
        for detector, result in self._chains.take_regained():
            group = next((group for group in self._groups if detector in group.missing), None)
            if group is None or group.batch is None:
                continue
            members = list(group.batch.members)
            members[group.missing.pop(detector)] = result
            group.batch.members = tuple(members)
            if not group.missing:
                self._submit(group)

    def _give_up(self, group: Group) -> None:
        for promise in group.promises:
            if promise.future is not None and promise.future.status != "finished":
                promise.release()
                promise.carried = Carried(None, Failure(State.FAILED, promise.node.name, "deadline"))
        self._close(group)

    def _close(self, group: Group) -> None:
        """A group came to its end: bring the values nobody in it took, small by contract, to the driver."""
        self._groups.remove(group)
        leaves = [leaf for leaf in group.leaves() if leaf.future is not None] if group.fetch else []
        for leaf, carried in zip(leaves, self._tasks.client.gather([leaf.future for leaf in leaves]), strict=True):
            leaf.carried, leaf.future = carried, None
        names = {promise.node.name for promise in group.promises}
        for carried in [leaf.carried for leaf in group.leaves() if leaf.carried is not None]:
            steps = tuple(record for record in carried.steps if record.step in names)
            self._desk.gathered(self._tasks.visit, Carried(carried.value, carried.failure, steps))
        for promise in group.promises:
            promise.arguments = {}
        if group.batch is not None:
            group.batch.release()
