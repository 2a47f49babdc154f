"""What the runner learns from the scheduler: its workers, as they come and go, and counts of steps."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from apflow.run.worker import STEP_TOPIC

_log = logging.getLogger(__name__)
#: Visits whose steps are kept: those in flight, and a few that have just ended.
_KEPT = 12


@dataclass(frozen=True)
class Told:
    """A step that a task of several came to."""

    step: str
    waits: bool
    unix: float


def note[T](newest: dict[int, dict[str, T]], visit: int, label: str, value: T) -> None:
    """Keep what is newest of a detector, by visit and by its label in keys; the oldest visits are dropped."""
    if visit not in newest:
        newest[visit] = {}
        while len(newest) > _KEPT and min(newest) != visit:
            del newest[min(newest)]
    newest[visit][label] = value


class Watch(SchedulerPlugin):
    """Tells a client on `topic`: ``("workers", addresses, roles)`` and, each second, ``("counts", counts)``.

    A compute worker whose step runs for more than `step_timeout_s` is restarted,
    so that a step which hangs does not hold up the other detectors there.
    """

    def __init__(self, topic: str, client: str, step_timeout_s: float) -> None:
        self.name, self._client, self._step_timeout_s = topic, client, step_timeout_s
        self.told: dict[int, dict[str, Told]] = {}

    async def start(self, scheduler: Any) -> None:
        """Begin to tell."""
        self._scheduler = scheduler
        self._restarting: set[str] = set()
        self._running: set[asyncio.Future[Any]] = set()
        self._tick = PeriodicCallback(self._look, 1000.0)
        self._tick.start()

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Tell of the workers."""
        self._tell("workers", *workers_of(scheduler))

    def remove_worker(self, scheduler: Any, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:
        """Tell of the workers that are left."""
        self._tell("workers", *workers_of(scheduler))

    def log_event(self, topic: str, msg: Any) -> None:
        """Note the step that a task of several is at."""
        if topic == STEP_TOPIC:
            visit, label, step, waits = msg
            note(self.told, visit, label, Told(step, waits, time.time()))

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Nobody listens any more."""
        if client == self._client:
            self._tick.stop()
            scheduler.plugins.pop(self.name, None)

    def _tell(self, *what: Any) -> None:
        self._scheduler.log_event(self.name, pickle.dumps(what))

    async def _look(self) -> None:
        if self.name not in self._scheduler.plugins:
            self._tick.stop()
            return
        counts = counts_of(self._scheduler)
        if counts:
            self._tell("counts", counts)
        self.renew(hung_workers(self._scheduler, self.told, self._step_timeout_s))

    def renew(self, workers: Iterable[str]) -> None:
        """Have workers that hang killed and started anew by their nannies, once each."""
        fresh = sorted(set(workers) - self._restarting)
        if fresh:
            _log.warning("restarting workers that compute one step for too long: %s", ", ".join(fresh))
            self._restarting.update(fresh)
            stimulus = f"apflow-restart-{time.time()}"
            restarts = self._scheduler.restart_workers(
                fresh, timeout=30.0, wait_for_workers=False, on_error="return", stimulus_id=stimulus
            )
            self._running.add(asyncio.ensure_future(restarts))


def renew(dask_scheduler: Any, name: str, workers: list[str]) -> None:
    """Have workers restarted by the plugin `name`."""
    dask_scheduler.plugins[name].renew(workers)


def workers_of(dask_scheduler: Any) -> tuple[list[str], list[str]]:
    """Addresses of the compute workers in the order of their names, and the roles that workers tell."""
    workers = dask_scheduler.workers.values()
    compute = sorted((len(str(w.name)), str(w.name), w.address) for w in workers if "gather" not in w.resources)
    roles = {role for w in workers for role in w.resources if role in ("gather", "compute")}
    return [address for _, _, address in compute], sorted(roles)


def hung_workers(dask_scheduler: Any, told: Mapping[int, Mapping[str, Told]], step_timeout_s: float) -> list[str]:
    """Compute workers with a nanny where a step that does not wait runs for more than `step_timeout_s`."""

    def hangs(worker: Any, task: Any) -> bool:
        if task not in worker.long_running:
            return bool(worker.executing.get(task, 0.0) > step_timeout_s)
        names, visit, label = _place(task)
        step = told.get(visit, {}).get(label)  # it waited; what it came to since is told
        return step is not None and step.step in names and not step.waits and time.time() - step.unix > step_timeout_s

    return [
        worker.address
        for worker in dask_scheduler.workers.values()
        if worker.nanny and "gather" not in worker.resources and any(hangs(worker, task) for task in worker.processing)
    ]


def _place(task: Any) -> tuple[list[str], int, str]:
    """Steps, visit and label that the key of a task names; of other tasks none, -1 and nothing."""
    names, _, visit = str(task.key[0]).rpartition("-") if isinstance(task.key, tuple) else ("", "", "")
    return (names.split("+"), int(visit), str(task.key[1])) if names and visit.isdecimal() else ([], -1, "")


def counts_of(dask_scheduler: Any) -> dict[int, dict[str, dict[str, int]]]:
    """Tasks of each step by visit; those that were dropped count as done, too."""
    counts: dict[int, dict[str, dict[str, int]]] = {}
    for name, group in list(dask_scheduler.task_groups.items()):
        step, _, visit = str(name).rpartition("-")
        if step and visit.isdecimal():
            states = group.states
            count = {
                "waiting": states["waiting"] + states["no-worker"] + states["queued"],
                "running": states["processing"],
                "done": states["memory"] + states["released"] + states["forgotten"] + states["erred"],
            }
            counts.setdefault(int(visit), {}).update(dict.fromkeys(step.split("+"), count))
    return counts


def where(dask_scheduler: Any, name: str, visit: int) -> tuple[dict[str, str], list[str]]:
    """The step that each detector of a visit is in, by its label in keys, and the workers that compute one.

    Only workers that a nanny can restart are given; `name` is the plugin's.
    """
    told = dask_scheduler.plugins[name].told.get(visit, {})
    steps: dict[str, str] = {}
    computing: set[str] = set()
    for worker in dask_scheduler.workers.values():
        for task in worker.processing:
            names, of, label = _place(task)
            if of != visit:
                continue
            newest = told.get(label)
            if newest is None or newest.step not in names:
                newest = Told(names[0], task in worker.long_running, 0.0)
            step = newest.step
            if not newest.waits:
                steps[label] = step
                if worker.nanny and "gather" not in worker.resources:
                    computing.add(worker.address)
            else:
                steps.setdefault(label, step)
    return steps, sorted(computing)
