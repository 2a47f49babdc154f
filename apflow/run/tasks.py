"""Node calls written down, and made into `dask.delayed` tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.base import annotate
from dask.delayed import Delayed, delayed
from dask.task_spec import TaskRef
from distributed import Client, Future

from apflow.graph import Carried, Node, Standin
from apflow.model.ledger import Ended
from apflow.run.worker import Call, OneStep, Slot, deliver, perform

_PERFORM = delayed(perform, pure=False, traverse=False)
_DELIVER = delayed(deliver, pure=False, traverse=False)
#: Waits start before anything else: each holds its slot only until it secedes. Deliveries free chains' places.
_FIRST = 10**15


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
    missing: dict[int, int] = field(default_factory=dict)  # place in the batch of detectors that begin anew

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


def _dropped(unit: Sequence[Promise], i: int, keep: Collection[Promise]) -> tuple[str, ...]:
    """What is not needed after the i-th call of a unit, and was before."""
    later = {made for call in unit[i + 1 :] for made in call.inputs()}.union(keep, unit[-1:])
    used = {*unit[i].inputs(), unit[i]}
    return tuple(call.node.name for call in unit[: i + 1] if call in used and call not in later)


def _let_go(unit: Sequence[Promise], i: int, places: Mapping[Promise, int]) -> tuple[int, ...]:
    """Places of the inputs that the i-th call of a unit is the last to take."""
    later = {made for call in unit[i + 1 :] for made in call.inputs()}
    return tuple(places[made] for made in unit[i].inputs() if made in places and made not in later)


def units_of(calls: Sequence[Promise]) -> list[list[Promise]]:
    """The calls of a chain as units that become one Dask task each, in order.

    What follows a wait, further waits included, is one unit: there the worker
    need not ask the scheduler and turns to nothing else in between, and planes
    are freed as soon as the next step has them. What depends on no wait
    (prefetch), and each wait of that kind, is a unit by itself.
    """
    behind: set[Promise] = set()
    alone: list[list[Promise]] = []
    together: list[Promise] = []
    for call in calls:
        if any(made in behind or made.node.waits for made in call.inputs() if made in calls):
            behind.add(call)
            together.append(call)
        else:
            alone.append([call])
    return [*alone, together] if together else alone


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
    visit : `int`
        Number of the visit: where tasks compete, that of the smaller one goes first.
    topic : `str`
        Where ended chains are told.
    roles : set of `str`
        Resources by which the cluster's workers tell what they are for: ``gather``, ``compute``.
    """

    client: Client
    visit: int
    topic: str
    roles: frozenset[str]

    def task(
        self,
        unit: Sequence[Promise],
        label: str,
        made: Mapping[Promise, Delayed] | None = None,
        worker: str | None = None,
        keep: Collection[Promise] = (),
        let_go: Collection[Promise] = (),
    ) -> Delayed:
        """The task of a unit of calls.

        Its key has the names of the steps, so that progress bars and logs show
        them. Inputs come from `made`, else from where the promises have them.

        Parameters
        ----------
        keep
            Of several calls those whose values are needed outside; none: it is the end of a chain.
        let_go
            Inputs that no other task takes: each is freed after the last call that takes it.
        """
        inputs: dict[Any, Delayed | TaskRef] = {}

        def open_slot(value: Delayed | Future[Any], step: str) -> Slot:
            # A future by its key alone: one that travels in a graph keeps its result alive wherever it arrives.
            inputs.setdefault(value.key, value if isinstance(value, Delayed) else TaskRef(value.key))
            return Slot(list(inputs).index(value.key), step)

        def argument(value: Any) -> Any:
            if isinstance(value, Promise):
                if value in unit:
                    return Slot(None, value.node.name)
                if made and value in made:
                    return open_slot(made[value], value.node.name)
                if value.carried is not None:
                    return value.carried
                if value.future is None:
                    raise ValueError(f"{unit[0].node.name} takes {value.node.name} of a detector: join by gathers()")
                return open_slot(value.future, value.node.name)
            if isinstance(value, Batch):
                return tuple(open_slot(m, "") if isinstance(m, Future) else m for m in value.members)
            if type(value) in (list, tuple):
                return type(value)(argument(item) for item in value)
            return value

        arguments = [{name: argument(value) for name, value in call.arguments.items()} for call in unit]
        places = {value: list(inputs).index(made[value].key) for value in let_go if made and value in made}
        steps = tuple(
            OneStep(call.node, arguments[i], _dropped(unit, i, keep), _let_go(unit, i, places))
            for i, call in enumerate(unit)
        )
        work = Call(steps, self.visit, unit[-1].detector, worker is not None and not keep, self.topic)
        key = ("+".join(call.node.name for call in unit) + f"-{self.visit}", label)
        with annotate(**self._annotations(unit[0], worker)):
            task: Delayed = _PERFORM(work, *inputs.values(), dask_key_name=key)
        return task

    def delivery(self, end: Delayed, label: str) -> Delayed:
        """The task that brings the end of a chain to the gather workers."""
        key = (f"deliver-{self.visit}", label)
        with annotate(priority=_FIRST - self.visit, **self._role("gather", 0)):
            task: Delayed = _DELIVER(end, dask_key_name=key)
        return task

    def _annotations(self, promise: Promise, worker: str | None) -> dict[str, Any]:
        # A step's own errors are values here; a retry is for a task that could not start. A wait would wait again.
        root_wait = promise.node.waits and worker is None
        annotations: dict[str, Any] = {
            "priority": (_FIRST if root_wait else 0) - self.visit,
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
