"""A graph is a plain function that calls nodes.

Called with plain values, a node calls its function and a graph simply runs.
With a runner active, each node call goes to the runner instead, which runs the
step guarded here (`apflow.run.EagerRunner`), hands it to Dask
(`apflow.run.on_dask.DaskRunner`) or only writes it down (`apflow.graph_draw`).
The graph function is the only place where the edges are stated.

What a graph may do with the stand-ins that a runner gives it: pass them to
nodes, alone or in lists and tuples, and iterate over ``gathers(results)``. It
cannot look into them.

Every node may run more than once: Dask computes a result again when the worker
that held it dies, and a runner submits a step again that was lost. A node that
changes the outside world must therefore be idempotent by (visit, detector).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

from apflow.errors import ApflowError, ServiceError
from apflow.model.ledger import Ended, Failure, State, StepRecord

_log = logging.getLogger(__name__)


class Node[**P, R]:
    """A step that a graph can name; made by `node`.

    Attributes
    ----------
    name : `str`
        Name of the function, of the step in records and of the task in Dask.
    waits : `bool`
        The step blocks on the outside world: it must hold no compute slot.
    gather : `bool`
        The step runs over a batch of detectors, on gather workers.
    retries : `int`
        Further tries after a `apflow.errors.ServiceError`.
    """

    def __init__(self, function: Callable[P, R], waits: bool, gather: bool, retries: int) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name: str = function.__name__
        self.waits, self.gather, self.retries = waits, gather, retries
        self.signature = inspect.signature(function)
        for parameter in self.signature.parameters.values():
            if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                raise TypeError(f"node {self.name}: parameter {parameter} is not a plain named one")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        runner = _RUNNER.get()
        if runner is None:
            return self.function(*args, **kwargs)
        arguments = self.signature.bind(*args, **kwargs).arguments
        made: R = runner.call(self, arguments)
        return made

    def __reduce__(self) -> Any:
        # By name, as functions pickle; what a script defines travels whole, since workers cannot import it.
        if self.function.__module__ == "__main__":
            return Node, (self.function, self.waits, self.gather, self.retries)
        return self.function.__qualname__


@overload
def node[**P, R](function: Callable[P, R], /) -> Node[P, R]: ...
@overload
def node[**P, R](
    *, waits: bool = ..., gather: bool = ..., retries: int = ...
) -> Callable[[Callable[P, R]], Node[P, R]]: ...
def node(function: Any = None, /, *, waits: bool = False, gather: bool = False, retries: int = 0) -> Any:
    """Mark a function as a step that a graph can name; see `Node` for the arguments.

    A node belongs to a detector when it has a parameter named ``detector`` or
    takes what another node made for that detector; else it belongs to the visit.
    """
    if function is None:
        return functools.partial(node, waits=waits, gather=gather, retries=retries)
    return Node(function, waits, gather, retries)


class Runner(Protocol):
    """What takes the calls of nodes while it is active."""

    def call(self, node: Node[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Take one call of a node, arguments by name; gives a stand-in for its value."""

    def gathers(self, results: Sequence[Any]) -> Iterator[Any]:
        """Batches of ended detectors."""


_RUNNER: ContextVar[Runner | None] = ContextVar("runner", default=None)
_CANCELLED: ContextVar[Callable[[], bool] | None] = ContextVar("cancelled", default=None)


@contextlib.contextmanager
def active(runner: Runner | None) -> Iterator[None]:
    """Let `runner` take the node calls of this thread; None: nodes call their functions."""
    token = _RUNNER.set(runner)
    try:
        yield
    finally:
        _RUNNER.reset(token)


def gathers(results: Sequence[Any]) -> Iterator[tuple[Ended, ...]]:
    """Batches of detectors, as their chains come to their ends.

    A runner decides what a batch is. Without one there is a single batch; a
    value without an attribute ``detector`` goes by its place in `results`.
    """
    runner = _RUNNER.get()
    if runner is not None:
        return runner.gathers(results)
    return iter([tuple(Ended(getattr(value, "detector", i), value) for i, value in enumerate(results))])


def cancelled() -> bool:
    """Whether nobody wants the value of the running step any more; a step that waits asks now and then."""
    token = _CANCELLED.get()
    return token is not None and token()


class Standin:
    """What a runner gives a graph in place of a value."""

    def __bool__(self) -> bool:
        raise TypeError("a graph cannot look into the values that its nodes make; write a node that does")

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("a graph cannot iterate over what a node makes; write a node that does")


#: What stands in the place of a value that was freed; see `Carried.let_go`.
LET_GO = "let go"


@dataclass(frozen=True, eq=False)
class Carried(Standin):
    """What a guarded step hands on: its value or a failure, with the records of all that led there.

    `measured` are the numbers that it and the steps before it measured: those that their values have as `summary`.
    """

    value: Any = None
    failure: Failure | None = None
    steps: tuple[StepRecord, ...] = ()
    detector: int | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    def let_go(self) -> None:
        """Free the value, whoever still holds this: nobody will take it again."""
        object.__setattr__(self, "value", LET_GO)

    def ended(self) -> Ended:
        """The end of a detector's chain."""
        assert self.detector is not None
        measured = self.measured if self.failure is not None else {}
        return Ended(self.detector, self.value, self.failure, tuple(sorted(self.steps, key=_start)), measured)


def _start(record: StepRecord) -> float:
    return record.start_unix


def failure_of(error: BaseException, step: str) -> Failure:
    """How a step that raised `error` ended."""
    state = State(error.state) if isinstance(error, ApflowError) else State.FAILED
    return Failure(state, step, f"{type(error).__name__}: {error}")


def detector_of(arguments: Mapping[str, Any]) -> int | None:
    """The detector that a node call belongs to; None for the visit's own nodes."""
    if arguments.get("detector") is not None:
        return int(arguments["detector"])
    made = (getattr(a, "detector", None) for a in arguments.values() if isinstance(a, Standin))
    found = {int(detector) for detector in made if detector is not None}
    if len(found) > 1:
        raise ValueError(f"a node takes what detectors {sorted(found)} made; join detectors after gathers()")
    return found.pop() if found else None


def failed_input(arguments: Mapping[str, Any]) -> Failure | None:
    """The failure among the inputs of a step, the first where there are several; those inside lists are data.

    That there is nothing to do (no template, cancelled) comes before whatever else went wrong.
    """
    failures = [a.failure for a in arguments.values() if isinstance(a, Carried) and a.failure is not None]
    return min(failures, key=lambda f: f.state not in (State.NO_TEMPLATE, State.CANCELLED), default=None)


def guarded(
    node: Node[..., Any],
    arguments: Mapping[str, Any],
    detector: int | None,
    worker: str,
    is_cancelled: Callable[[], bool] | None = None,
) -> Carried:
    """Run a step so that whatever it raises becomes its outcome.

    Parameters
    ----------
    arguments
        By name; inputs made by other steps as `Carried`, also in lists and
        tuples. A failed input passes through and the step does not run; inside
        a list it is given to the step as a `Failure`.
    detector, worker
        For the records.
    is_cancelled
        What `cancelled` answers while the step runs.
    """
    carried = [a for argument in arguments.values() for a in _carried(argument) if a.detector == detector]
    steps = tuple(dict.fromkeys(record for a in carried for record in a.steps))
    measured = {name: value for a in carried for name, value in a.measured.items()}
    failure = failed_input(arguments)
    if failure is not None:
        return Carried(None, failure, steps, detector, measured)
    plain = {name: _plain(argument) for name, argument in arguments.items()}
    token = _CANCELLED.set(is_cancelled)
    start_unix, start_cpu = time.time(), time.thread_time()
    value = None
    try:
        with active(None):
            value = _tried(node, plain)
    except Exception as error:
        failure = failure_of(error, node.name)
        # Deliberate errors say all in their message; for the others the traceback is what helps.
        unforeseen = not isinstance(error, ApflowError)
        _log.warning("%s, detector %s: %s", node.name, detector, failure.cause, exc_info=unforeseen)
    finally:
        _CANCELLED.reset(token)
    record = StepRecord(node.name, start_unix, time.time(), time.thread_time() - start_cpu, worker)
    return Carried(value, failure, (*steps, record), detector, measured | _summary(value))


def _summary(value: Any) -> dict[str, float]:
    found = getattr(value, "summary", None)
    return dict(found) if isinstance(found, Mapping) else {}


def _tried(node: Node[..., Any], plain: Mapping[str, Any]) -> Any:
    for attempt in range(node.retries):
        try:
            return node.function(**plain)
        except ServiceError:
            time.sleep(0.2 * 2**attempt)
    return node.function(**plain)


def _carried(argument: Any) -> Iterator[Carried]:
    if isinstance(argument, Carried):
        yield argument
    elif type(argument) in (list, tuple):
        for item in argument:
            yield from _carried(item)


def _plain(argument: Any) -> Any:
    if isinstance(argument, Carried):
        return argument.value if argument.failure is None else argument.failure
    if type(argument) in (list, tuple):
        return type(argument)(_plain(item) for item in argument)
    return argument


def by_group(detectors: Sequence[int], group_of: Callable[[int], Hashable] | None) -> dict[Hashable, list[int]]:
    """Detectors by their group (raft), in order of first appearance; one group without `group_of`."""
    groups: dict[Hashable, list[int]] = {}
    for detector in detectors:
        groups.setdefault(group_of(detector) if group_of else None, []).append(detector)
    return groups
