"""What runs on a Dask worker: one guarded step a task."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping
from typing import Any

from distributed import get_worker, secede

from apflow.graph import Carried, Node, failed_input, guarded
from apflow.model.ledger import Ended


@dataclasses.dataclass(frozen=True)
class Slot:
    """Place of a task's n-th input among its arguments."""

    n: int


class Call:
    """A step with its arguments, inputs left open as `Slot`; no dataclass, since Dask looks into those.

    `last` marks the end of a detector's chain, told to the driver on `topic`.
    """

    def __init__(
        self,
        node: Node[..., Any],
        arguments: Mapping[str, Any],
        visit: int,
        detector: int | None,
        last: bool,
        topic: str,
    ) -> None:
        self.node, self.arguments = node, arguments
        self.visit, self.detector = visit, detector
        self.last, self.topic = last, topic


def perform(call: Call, *made: Carried | Ended) -> Carried | Ended:
    """Run a step on a worker; its value never leaves the worker unless another task asks for it."""
    worker = get_worker()
    arguments = {name: _filled(argument, made) for name, argument in call.arguments.items()}
    key = worker.get_current_task()
    if call.node.waits and failed_input(arguments) is None:
        secede()  # blocks from here on: gives its slot back

    def unwanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    carried = guarded(call.node, arguments, call.detector, str(worker.name), unwanted)
    if not call.last:
        return carried
    ended = carried.ended()
    worker.log_event(call.topic, pickle.dumps(("ended", call.visit, dataclasses.replace(ended, value=None))))
    return ended


def deliver(ended: Ended) -> Ended:
    """Bring the end of a chain to a gather worker: what the batch needs outlives the chain's worker."""
    return ended


def _filled(argument: Any, made: tuple[Carried | Ended, ...]) -> Any:
    if isinstance(argument, Slot):
        return made[argument.n]
    if type(argument) in (list, tuple):
        return type(argument)(_filled(item, made) for item in argument)
    return argument
