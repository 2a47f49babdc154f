"""The runner of a Dask cluster: each visit is a graph of delayed tasks, several visits in flight.

Duplicated execution: Dask runs a task again when the worker that holds its
result dies, and this runner submits lost steps again (`max_attempts`). Gather
nodes that write must be idempotent by (visit, detector): what was written by an
earlier run is found, not written twice.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from distributed import Client

from apflow.errors import BadRequest
from apflow.graph import Carried, active
from apflow.model.ledger import Ended
from apflow.run import ChainEnded, GatherEnded, OnEvent, StepCounts, result_of, visit_id
from apflow.run_admission import Admission, ChainId
from apflow.run_tasks import Tasks
from apflow.run_visit import Limits, VisitRun
from apflow.run_worker import glance, where

_log = logging.getLogger(__name__)
_RUNNERS = itertools.count(1)


class VisitHandle:
    """A visit in flight."""

    def __init__(self, visit: int, sequence: int) -> None:
        self.visit, self.sequence = visit, sequence
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
        and nothing else; without such workers any worker does.
    group_of
        Group (raft) of a detector: what a batch waits for. Default: all are one group.
    label_of
        Name of a detector in task keys; default its number.
    gather_after_s : `float`
        A batch closes this long after its first detector ended.
    chains_per_worker : `int`
        Detector chains that may hold images, templates or calibs on one worker.
    max_attempts : `int`
        Times that a chain or a gather is submitted when Dask gives it up.
    deadline_s : `float`
        Past this, counted from `start`, every unfinished detector of the visit
        ends as failed by ``deadline``, and workers that still compute for it
        are restarted.
    gather_deadline_s : `float`
        Gathers that have not ended this long after that fail by ``deadline``.
    on_event
        Called with `apflow.run.ChainEnded`, `GatherEnded` and `StepCounts`, by
        threads of the runner: it must be quick and not raise.
    """

    def __init__(
        self,
        client: Client,
        *,
        group_of: Callable[[int], Hashable] | None = None,
        label_of: Callable[[int], str] = str,
        gather_after_s: float = 5.0,
        chains_per_worker: int = 2,
        max_attempts: int = 3,
        deadline_s: float = 300.0,
        gather_deadline_s: float = 60.0,
        on_event: OnEvent | None = None,
    ) -> None:
        self._client, self._group_of, self.label_of = client, group_of, label_of
        self._limits = Limits(gather_after_s, deadline_s, gather_deadline_s, max_attempts)
        self._on_event = on_event or (lambda event: None)
        self._lock = threading.Lock()
        self._admission = Admission(chains_per_worker)
        self._handles: dict[int, VisitHandle] = {}  # in flight, by sequence
        self._threads: list[threading.Thread] = []
        self._sequence = itertools.count()
        self._attempts: dict[tuple[int, str, str], int] = {}
        self._told: set[tuple[int, int]] = set()
        self._closed = threading.Event()
        self._topic = f"apflow-{client.id}-{next(_RUNNERS)}"
        client.subscribe_topic(self._topic, self._heard)
        self._gather_workers = self._look() > 0
        self._watcher = threading.Thread(target=self._watch, name="apflow-watch", daemon=True)
        self._watcher.start()

    def start(self, graph: Callable[..., Any], visit: Any, detectors: Sequence[int], config: Any) -> VisitHandle:
        """Run ``graph(visit, detectors, config)``; returns at once.

        Visits run concurrently; where they compete, the one started earlier goes first.

        Raises
        ------
        BadRequest
            The visit is in flight already, or the runner is closed.
        """
        number = visit_id(visit)
        with self._lock:
            if self._closed.is_set():
                raise BadRequest(f"visit {number}: the runner is closed")
            if any(handle.visit == number for handle in self._handles.values()):
                raise BadRequest(f"visit {number} is in flight already")
            handle = VisitHandle(number, next(self._sequence))
            tasks = Tasks(self._client, number, handle.sequence, self._topic, self._gather_workers)
            handle.run = VisitRun(self, tasks, self._limits, self._group_of)
            self._handles[handle.sequence] = handle
            self._told = {(v, d) for v, d in self._told if v != number}
        thread = threading.Thread(
            target=self._run, args=(handle, graph, visit, detectors, config), name=f"visit-{number}", daemon=True
        )
        self._threads.append(thread)
        thread.start()
        return handle

    def close(self) -> None:
        """Drop what is in flight and release all futures. Idempotent."""
        with self._lock:
            self._closed.set()
            handles = list(self._handles.values())
        for handle in handles:
            if handle.run is not None:
                handle.run.post("close")
        for thread in [*self._threads, self._watcher]:
            thread.join(timeout=10.0)
        if self._client.status == "running":
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
                del self._handles[handle.sequence]
            handle.run = None
            handle.end(carried, error)

    # The desk of the visits (apflow.run_chains.Desk).

    def admission(self, changes: Iterable[tuple[str, ChainId]]) -> None:
        """See `apflow.run_chains.Desk`."""
        with self._lock:
            for what, chain in changes:
                match what:
                    case "add":
                        self._admission.add(chain)
                    case "ready":
                        self._admission.ready(chain)
                    case "leave":
                        self._admission.leave(chain)
            self._decide()

    def attempt(self, visit: int, step: str, label: str) -> str:
        """See `apflow.run_chains.Desk`."""
        with self._lock:
            n = self._attempts[visit, step, label] = self._attempts.get((visit, step, label), 0) + 1
        return label if n == 1 else f"{label}.{n}"

    def workers(self) -> list[str]:
        """See `apflow.run_chains.Desk`."""
        return self._workers

    def where(self, visit: int) -> tuple[dict[str, str], list[str]]:
        """See `apflow.run_chains.Desk`."""
        found: tuple[dict[str, str], list[str]] = self._client.run_on_scheduler(where, visit=visit)
        return found

    def restart(self, workers: list[str]) -> None:
        """See `apflow.run_chains.Desk`."""
        _log.warning("restarting workers that compute past the deadline: %s", ", ".join(workers))
        thread = threading.Thread(
            target=self._client.restart_workers,
            args=(workers,),
            kwargs={"timeout": 30, "raise_for_error": False},
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()

    def ended(self, visit: int, ended: Ended) -> None:
        """See `apflow.run_chains.Desk`; each detector is told of once."""
        with self._lock:
            if (visit, ended.detector) in self._told:
                return
            self._told.add((visit, ended.detector))
        self._on_event(ChainEnded(visit, ended))

    def gathered(self, visit: int, carried: Carried) -> None:
        """See `apflow.run_chains.Desk`."""
        self._on_event(GatherEnded(visit, carried))

    # Watching the cluster.

    def _heard(self, event: tuple[float, bytes]) -> None:
        visit, ended = pickle.loads(event[1])
        self.ended(visit, ended)

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            try:
                self._look()
            except OSError as error:
                _log.warning("scheduler: %s", error)

    def _look(self) -> float:
        with self._lock:
            visits = tuple(handle.visit for handle in self._handles.values())
        seen = self._client.run_on_scheduler(glance, visits=visits)
        with self._lock:
            self._workers: list[str] = seen["workers"]
            self._admission.set_workers(self._workers)
            self._decide()
        for visit, counts in seen["counts"].items():
            self._on_event(StepCounts(visit, counts))
        return float(seen["gather"])

    def _decide(self) -> None:
        for decision in self._admission.decide():
            handle = self._handles.get(decision.chain.sequence)
            if handle is not None and handle.run is not None:
                handle.run.post(type(decision).__name__.lower(), decision)
