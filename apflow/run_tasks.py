"""Node calls written down, and made into `dask.delayed` tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.base import annotate
from dask.delayed import Delayed, delayed
from dask.task_spec import TaskRef
from distributed import Client, Future

from apflow.graph import Carried, Node, Standin
from apflow.model.ledger import Ended
from apflow.run_worker import Call, Slot, deliver, perform

_PERFORM = delayed(perform, pure=False, traverse=False)
_DELIVER = delayed(deliver, pure=False, traverse=False)
#: Waits start before anything else: each holds its slot only until it secedes. Deliveries free chains' places.
_FIRST = 1_000_000


class Promise(Standin):
    """A node call, and where its value is: nowhere yet, on the cluster (`future`), or here (`carried`)."""

    def __init__(self, node: Node[..., Any], arguments: Mapping[str, Any], detector: int | None) -> None:
        self.node, self.arguments, self.detector = node, arguments, detector
        self.future: Future[Any] | None = None
        self.carried: Carried | None = None

    def inputs(self) -> list[Promise]:
        """The calls whose values it takes."""
        return list(_promises(self.arguments.values()))

    def release(self) -> None:
        """Let the cluster forget the value."""
        if self.future is not None:
            self.future.release()
            self.future = None


class Batch(Standin):
    """Ended detectors: futures of `Ended`, or `Ended` themselves where the driver ended them."""

    def __init__(self, members: Sequence[Future[Any] | Ended]) -> None:
        self.members = tuple(members)

    def release(self) -> None:
        """Let the workers forget the detectors' results."""
        for member in self.members:
            if isinstance(member, Future):
                member.release()
        self.members = ()


@dataclass(eq=False)
class Group:
    """Calls that are submitted together outside the detector chains: the body of a gathers loop, or one call."""

    label: str
    batch: Batch | None = None
    promises: list[Promise] = field(default_factory=list)
    fetch: bool = True  # bring what nobody in the group takes to the driver
    tries: int = 0
    expires_unix: float = float("inf")

    def leaves(self) -> list[Promise]:
        """The calls whose values no other call of the group takes."""
        used = {id(made) for promise in self.promises for made in promise.inputs()}
        return [promise for promise in self.promises if id(promise) not in used]

    def release(self) -> None:
        """Drop what was submitted."""
        for promise in self.promises:
            promise.release()
        if self.batch is not None:
            self.batch.release()


def _promises(arguments: Iterable[Any]) -> Iterable[Promise]:
    for argument in arguments:
        if isinstance(argument, Promise):
            yield argument
        elif type(argument) in (list, tuple):
            yield from _promises(argument)


@dataclass(frozen=True)
class Tasks:
    """Makes the tasks of one visit.

    Parameters
    ----------
    visit, sequence : `int`
        Number of the visit, and its place in the order of visits.
    topic : `str`
        Where ended chains are told.
    roles : set of `str`
        Resources by which the cluster's workers tell what they are for: ``gather``, ``compute``.
    """

    client: Client
    visit: int
    sequence: int
    topic: str
    roles: frozenset[str]

    def key(self, promise: Promise, label: str) -> tuple[str, str]:
        """Key of a task: groups by step and visit, as progress bars and logs show it."""
        return f"{promise.node.name}-{self.visit}", label

    def task(
        self,
        promise: Promise,
        label: str,
        made: Mapping[Promise, Delayed] | None = None,
        worker: str | None = None,
        last: bool = False,
    ) -> Delayed:
        """The task of a call; inputs come from `made`, else from where the promises have them."""
        inputs: list[Delayed | TaskRef] = []

        def open_slot(value: Delayed | Future[Any]) -> Slot:
            # A future by its key alone: one that travels in a graph keeps its result alive wherever it arrives.
            inputs.append(value if isinstance(value, Delayed) else TaskRef(value.key))
            return Slot(len(inputs) - 1)

        def argument(value: Any) -> Any:
            if isinstance(value, Promise):
                if made and value in made:
                    return open_slot(made[value])
                if value.carried is not None:
                    return value.carried
                if value.future is None:
                    raise ValueError(f"{promise.node.name} takes {value.node.name} of a detector: join by gathers()")
                return open_slot(value.future)
            if isinstance(value, Batch):
                return tuple(open_slot(m) if isinstance(m, Future) else m for m in value.members)
            if type(value) in (list, tuple):
                return type(value)(argument(item) for item in value)
            return value

        arguments = {name: argument(value) for name, value in promise.arguments.items()}
        call = Call(promise.node, arguments, self.visit, promise.detector, last, self.topic)
        with annotate(**self._annotations(promise, worker)):
            task: Delayed = _PERFORM(call, *inputs, dask_key_name=self.key(promise, label))
        return task

    def delivery(self, end: Delayed, label: str) -> Delayed:
        """The task that brings the end of a chain to the gather workers."""
        key = (f"deliver-{self.visit}", label)
        with annotate(priority=_FIRST - self.sequence, **self._role("gather", 0)):
            task: Delayed = _DELIVER(end, dask_key_name=key)
        return task

    def _annotations(self, promise: Promise, worker: str | None) -> dict[str, Any]:
        # A step's own errors are values here; a retry is for a task that could not start. A wait would wait again.
        root_wait = promise.node.waits and worker is None
        annotations: dict[str, Any] = {
            "priority": (_FIRST if root_wait else 0) - self.sequence,
            "retries": 0 if promise.node.waits else 1,
        }
        if worker is not None:
            # Strictly: where a loose pin points to a worker that died, Dask takes any worker whatever its resources,
            # and what killed the first kills the gather worker next. The runner submits the chain again elsewhere.
            return annotations | {"workers": [worker]}
        if promise.node.gather:
            return annotations | self._role("gather", 1)
        return annotations | (self._role("compute", 0) if root_wait else {})

    def _role(self, role: str, amount: float) -> dict[str, Any]:
        return {"resources": {role: amount}} if role in self.roles else {}

    def submit(self, tasks: Sequence[Delayed]) -> list[Future[Any]]:
        """Send tasks to the scheduler in one message."""
        futures: list[Future[Any]] = self.client.compute(list(tasks), optimize_graph=False, sync=False) if tasks else []
        return futures
