"""The runner of a Dask cluster: each visit is a graph of delayed tasks, several visits in flight.

Duplicated execution: Dask runs a task again when the worker that holds its
result dies, and this runner submits lost steps again (`max_attempts`). Gather
nodes that write must be idempotent by (visit, detector): what was written by an
earlier run is found, not written twice.
"""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from distributed import Client

from apflow.errors import BadRequest
from apflow.graph import Carried, active
from apflow.model.ledger import Ended
from apflow.run import ChainEnded, GatherEnded, Late, OnEvent, Rerun, StepCounts, WorkerChanged, result_of, visit_id
from apflow.run.admission import Admission, ChainId
from apflow.run.tasks import Tasks
from apflow.run.visit import Limits, VisitRun
from apflow.run.watch import Watch, renew, where, workers_of

_RUNNERS = itertools.count(1)
#: Highest attempt at a visit of any runner of this process, by scheduler: a key that is submitted again while its old
#: future lives would give the old result.
_ATTEMPTS: dict[tuple[str, int], int] = {}


class VisitHandle:
    """A visit in flight."""

    def __init__(self, visit: int) -> None:
        self.visit = visit
        self.run: VisitRun | None = None
        self._done = threading.Event()
        self._carried: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether the visit came to its end."""
        return self._done.is_set()

    def cancel(self) -> None:
        """End every unfinished detector as cancelled; the gathers and the report still run."""
        if self.run is not None:
            self.run.post("cancel")

    def drop(self) -> None:
        """Give the visit up without settling any detector: whoever drives it runs it anew."""
        if self.run is not None:
            self.run.post("close")

    def result(self, timeout_s: float | None = None) -> Any:
        """What the graph returned.

        Raises
        ------
        TimeoutError
            The visit is still in flight after `timeout_s`.
        apflow.run.VisitFailed
            The last step of the graph failed.
        """
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"visit {self.visit} is still in flight after {timeout_s} s")
        if self._error is not None:
            raise self._error
        return result_of(self.visit, self._carried)

    @property
    def steps(self) -> tuple[Any, ...]:
        """Records of the steps that led to the result: the visit's own and the gathers'."""
        return self._carried.steps if isinstance(self._carried, Carried) else ()

    def end(self, carried: Any, error: BaseException | None) -> None:
        """Set the result (the runner's)."""
        self._carried, self._error = carried, error
        self._done.set()


class DaskRunner:
    """Runs graphs on a Dask cluster.

    Parameters
    ----------
    client : `distributed.Client`
        Of any cluster. Workers with the resource ``gather`` run gather nodes
        (one at a time for a resource of 1; a second thread takes deliveries)
        and workers with the resource ``compute`` detector chains. Where no
        worker tells its role by these, each takes everything.
    group_of
        Group (raft) of a detector: what a batch waits for. Default: all are one group.
    label_of
        Name of a detector in task keys; default its number.
    gather_after_s : `float`
        A batch closes this long after its first detector ended.
    chains_per_worker : `int`
        Detector chains that may hold images, templates or calibs on one worker.
    rerun_after_s : `float`
        A detector that has not ended this long after its image came, and a
        worker took it, is begun on an idle worker as well: the first to end is
        taken, the other dropped.
    max_attempts : `int`
        Times that a chain or a gather is submitted when Dask gives it up.
    fuse : `bool`
        Whether the steps of a detector from its image on are one Dask task,
        named after all of them: two thirds of the cost, and nothing in
        between. False: a task for each, which Dask's own pages show one by one.
    deadline_s : `float`
        Past this, counted from `start`, every unfinished detector of the visit
        ends as failed by ``deadline``, and workers that still compute for it
        are restarted.
    gather_deadline_s : `float`
        Gathers that have not ended this long after that fail by ``deadline``.
    step_timeout_s : `float`
        A worker that computes one step for longer is restarted.
    on_event
        Called with `apflow.run.ChainEnded`, `GatherEnded`, `Late`, `Rerun`,
        `StepCounts` and `WorkerChanged`, by threads of the runner: it must be quick and not raise.
    """

    def __init__(
        self,
        client: Client,
        *,
        group_of: Callable[[int], Hashable] | None = None,
        label_of: Callable[[int], str] = str,
        gather_after_s: float = 5.0,
        chains_per_worker: int = 2,
        rerun_after_s: float = 40.0,
        max_attempts: int = 3,
        fuse: bool = True,
        deadline_s: float = 300.0,
        gather_deadline_s: float = 60.0,
        step_timeout_s: float = 120.0,
        on_event: OnEvent | None = None,
    ) -> None:
        self._client, self._group_of, self.label_of = client, group_of, label_of
        self._limits = Limits(gather_after_s, rerun_after_s, deadline_s, gather_deadline_s, max_attempts, fuse)
        self._on_event = on_event or (lambda event: None)
        self._lock = threading.Lock()
        self._admission = Admission(chains_per_worker)
        self._handles: dict[int, VisitHandle] = {}  # in flight, by visit
        self._threads: list[threading.Thread] = []
        self._attempts: dict[int, dict[tuple[str, str], int]] = {}
        self._ends: dict[tuple[int, int], Ended | None] = {}  # told by one side only: the worker, or the driver (None)
        self._closed = False
        self._workers: frozenset[str] = frozenset()
        self._scheduler = str(client.scheduler_info(n_workers=0)["address"])
        self._topic = f"apflow-{client.id}-{next(_RUNNERS)}"
        client.subscribe_topic(self._topic, self._heard)
        client.register_plugin(Watch(self._topic, client.id, step_timeout_s), name=self._topic)
        workers, roles = client.run_on_scheduler(workers_of)
        self._roles = frozenset(roles)
        self._workers_are(workers)

    def start(self, graph: Callable[..., Any], visit: Any, detectors: Sequence[int], config: Any) -> VisitHandle:
        """Run ``graph(visit, detectors, config)``; returns at once.

        Visits run concurrently; where they compete, the one with the smaller number goes first: others may wait for it.

        Raises
        ------
        BadRequest
            The visit is in flight already, or the runner is closed.
        """
        number = visit_id(visit)
        with self._lock:
            if self._closed:
                raise BadRequest(f"visit {number}: the runner is closed")
            if number in self._handles:
                raise BadRequest(f"visit {number} is in flight already")
            handle = VisitHandle(number)
            tasks = Tasks(self._client, number, self._topic, self._roles)
            handle.run = VisitRun(self, tasks, self._limits, self._group_of)
            self._handles[number] = handle
            self._attempts[number] = {}
            self._ends = {key: ended for key, ended in self._ends.items() if key[0] != number}
        thread = threading.Thread(
            target=self._run, args=(handle, graph, visit, detectors, config), name=f"visit-{number}", daemon=True
        )
        self._threads.append(thread)
        thread.start()
        return handle

    def close(self) -> None:
        """Drop what is in flight and release all futures. Idempotent."""
        with self._lock:
            self._closed = True
            handles = list(self._handles.values())
        for handle in handles:
            if handle.run is not None:
                handle.run.post("close")
        for thread in self._threads:
            thread.join(timeout=10.0)
        if self._client.status == "running":
            self._client.unregister_scheduler_plugin(self._topic)
            self._client.unsubscribe_topic(self._topic)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, handle: VisitHandle, graph: Callable[..., Any], visit: Any, *rest: Any) -> None:
        run = handle.run
        assert run is not None
        carried, error = None, None
        try:
            with active(run):
                end = graph(visit, *rest)
            carried = run.finish(end)
        except BaseException as raised:  # the thread has nobody else to tell
            error = raised
        try:
            run.abandon()
        finally:
            with self._lock:
                del self._handles[handle.visit]
                most = max(self._attempts.pop(handle.visit).values(), default=0)
                _ATTEMPTS[self._scheduler, handle.visit] = max(most, self._earlier(handle.visit))
            handle.run = None
            handle.end(carried, error)

    # The desk of the visits (apflow.run.chains.Desk).

    def admission(self, changes: Iterable[tuple[str, ChainId]]) -> None:
        """See `apflow.run.chains.Desk`."""
        with self._lock:
            for what, chain in changes:
                match what:
                    case "add":
                        self._admission.add(chain)
                    case "suspect":
                        self._admission.add(chain, suspect=True)
                    case "ready":
                        self._admission.ready(chain)
                    case "leave":
                        self._admission.leave(chain)
                    case "lend" if (lent := self._admission.lend(chain)) is not None:
                        self._post("lent", chain, lent)
            self._decide()

    def attempt(self, visit: int, step: str, label: str) -> str:
        """See `apflow.run.chains.Desk`."""
        with self._lock:
            attempts = self._attempts[visit]
            n = attempts[step, label] = attempts.get((step, label), self._earlier(visit)) + 1
        return label if n == 1 else f"{label}.{n}"

    def _earlier(self, visit: int) -> int:
        return _ATTEMPTS.get((self._scheduler, visit), 0)

    def where(self, visit: int) -> tuple[dict[str, str], list[str]]:
        """See `apflow.run.chains.Desk`."""
        found: tuple[dict[str, str], list[str]] = self._client.run_on_scheduler(where, name=self._topic, visit=visit)
        return found

    def restart(self, workers: list[str]) -> None:
        """See `apflow.run.chains.Desk`."""
        self._client.run_on_scheduler(renew, name=self._topic, workers=workers)

    def ended(self, visit: int, detector: int, ended: Ended | None) -> None:
        """See `apflow.run.chains.Desk`."""
        with self._lock:
            ended = ended or self._ends.pop((visit, detector), None)
            if ended is None:
                self._ends[visit, detector] = None  # the worker's word is on its way
        if ended is not None:
            self._tell_end(visit, ended)

    def rerun(self, visit: int, detector: int, worker: str) -> None:
        """See `apflow.run.chains.Desk`."""
        self._on_event(Rerun(visit, detector, worker))

    def late(self, visit: int, detector: int) -> None:
        """See `apflow.run.chains.Desk`."""
        self._on_event(Late(visit, detector))

    def gathered(self, visit: int, carried: Carried) -> None:
        """See `apflow.run.chains.Desk`."""
        self._on_event(GatherEnded(visit, carried))

    # What the cluster tells.

    def _heard(self, event: tuple[float, bytes]) -> None:
        match pickle.loads(event[1]):
            case ("ended", visit, ended):
                with self._lock:
                    known = (visit, ended.detector) in self._ends
                    if known:
                        del self._ends[visit, ended.detector]
                    else:
                        self._ends[visit, ended.detector] = ended
                if known:
                    self._tell_end(visit, ended)
            case ("workers", workers, _):
                self._workers_are(workers)
            case ("counts", counts):
                with self._lock:
                    visits = [handle.visit for handle in self._handles.values()]
                for visit in visits:
                    self._on_event(StepCounts(visit, counts.get(visit, {})))

    def _tell_end(self, visit: int, ended: Ended) -> None:
        label = self.label_of(ended.detector)
        with self._lock:
            begun = [n for (_, other), n in self._attempts.get(visit, {}).items() if other == label]
            attempts = max(begun, default=1) - self._earlier(visit)
        self._on_event(ChainEnded(visit, ended, max(attempts, 1)))

    def _workers_are(self, workers: list[str]) -> None:
        now = frozenset(workers)
        changes = [WorkerChanged(w, True) for w in sorted(self._workers - now)]
        changes += [WorkerChanged(w, False) for w in sorted(now - self._workers)]
        self._workers = now
        for change in changes:
            self._on_event(change)
        with self._lock:
            for lost in self._admission.set_workers(workers):
                self._post("lost", lost.chain, lost)
            for handle in self._handles.values():
                if handle.run is not None:
                    handle.run.post("workers", frozenset(workers))
            self._decide()

    def _decide(self) -> None:
        for decision in self._admission.decide():
            self._post(type(decision).__name__.lower(), decision.chain, decision)

    def _post(self, what: str, chain: ChainId, about: Any) -> None:
        handle = self._handles.get(chain.visit)
        if handle is not None and handle.run is not None:
            handle.run.post(what, about)
