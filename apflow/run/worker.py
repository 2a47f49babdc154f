"""What runs on a Dask worker: one guarded step a task."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Mapping
from typing import Any, cast

from distributed import get_worker, secede

from apflow.graph import LET_GO, Carried, Node, failed_input, guarded
from apflow.logs import about
from apflow.model.ledger import Ended

_log = logging.getLogger(__name__)
#: Where workers tell the step that a task of several is at, its key telling of the first alone: visit, label, step, and
#: whether it waits.
STEP_TOPIC = "apflow-step"


@dataclasses.dataclass(frozen=True)
class Slot:
    """Place among the arguments of a step for what another step makes.

    `n` is the place of its task among the inputs of this one; None: it is a step of this task itself.
    """

    n: int | None
    step: str


@dataclasses.dataclass(frozen=True)
class OneStep:
    """A step of a task: arguments by name, inputs left open as `Slot`.

    What nobody needs after it: `drop` of what the task made, `let_go` of its inputs, which Dask holds until it ends.
    """

    node: Node[..., Any]
    arguments: Mapping[str, Any]
    drop: tuple[str, ...] = ()
    let_go: tuple[int, ...] = ()


class Call:
    """The steps of one task; no dataclass, since Dask looks into those.

    `last` marks the end of a detector's chain, told to the driver on `topic`.
    """

    def __init__(self, steps: tuple[OneStep, ...], visit: int, detector: int | None, last: bool, topic: str) -> None:
        self.steps = steps
        self.visit, self.detector = visit, detector
        self.last, self.topic = last, topic


Made = Carried | Ended | dict[str, Carried]


def perform(call: Call, *made: Made) -> Made:
    """Run the steps of a task on a worker; values never leave the worker unless another task asks for them.

    Gives what the step made, or of several steps what is needed outside, by the names of the steps.
    """
    worker = get_worker()
    key = cast(tuple[str, str], worker.get_current_task())

    def unwanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    here: dict[str, Carried] = {}
    seceded = False
    for n, step in enumerate(call.steps):
        if n > 0:
            worker.log_event(STEP_TOPIC, (call.visit, key[1], step.node.name, step.node.waits))
        arguments = {name: _filled(argument, made, here) for name, argument in step.arguments.items()}
        if step.node.waits and not seceded and failed_input(arguments) is None:
            secede()  # blocks from here on: gives its slot back, for good, as what comes next would queue for it again
            seceded = True
        with about(visit=call.visit, detector=call.detector, step=step.node.name):
            here[step.node.name] = guarded(step.node, arguments, call.detector, str(worker.name), unwanted)
        del arguments
        for name in step.drop:
            del here[name]
        for place in step.let_go:
            made[place].let_go()  # type: ignore[union-attr]
    if not call.last:
        return here if len(call.steps) > 1 else here.popitem()[1]
    ended = here.popitem()[1].ended()
    with about(visit=call.visit, detector=call.detector):
        _log.info("ended: %s", ended.failure.state if ended.failure else "its steps are done")
    worker.log_event(call.topic, pickle.dumps(("ended", call.visit, dataclasses.replace(ended, value=None))))
    return ended


def deliver(ended: Ended) -> Ended:
    """Bring the end of a chain to a gather worker: what the batch needs outlives the chain's worker."""
    return ended


def _filled(argument: Any, made: tuple[Made, ...], here: Mapping[str, Carried]) -> Any:
    if isinstance(argument, Slot):
        if argument.n is None:
            return here[argument.step]
        value = made[argument.n]
        value = value[argument.step] if isinstance(value, dict) else value
        if isinstance(value, Carried) and value.value is LET_GO:
            raise RuntimeError(f"what {argument.step} made was let go by an earlier run: the chain must begin anew")
        return value
    if type(argument) in (list, tuple):
        return type(argument)(_filled(item, made, here) for item in argument)
    return argument
