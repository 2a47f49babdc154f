"""A graph written down as steps, and drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apflow.graph import Node, Standin, active, detector_of

_LEVELS = {"detector": "for each detector", "batch": "for each batch of ended detectors"}


@dataclass(frozen=True)
class Step:
    """One node of a graph.

    Attributes
    ----------
    level : `str`
        ``visit``, ``detector`` (once a detector) or ``batch`` (once a batch).
    inputs : `tuple` [`str`, ...]
        Names of the steps whose values it takes, in the order of its parameters.
    """

    name: str
    level: str
    inputs: tuple[str, ...]
    waits: bool
    gather: bool


@dataclass(frozen=True, eq=False)
class _Traced(Standin):
    name: str
    detector: int | None = None


class _Tape:
    """The runner that only writes down."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._in_batch = False

    def call(self, node: Node[..., Any], arguments: Mapping[str, Any]) -> _Traced:
        if any(step.name == node.name for step in self.steps):
            raise ValueError(f"{node.name} is in the graph twice: give the second use a node of its own")
        detector = detector_of(arguments)
        level = "detector" if detector is not None else "batch" if self._in_batch else "visit"
        inputs = dict.fromkeys(made.name for argument in arguments.values() for made in _made(argument))
        self.steps.append(Step(node.name, level, tuple(inputs), node.waits, node.gather))
        return _Traced(node.name, detector)

    def gathers(self, results: Sequence[Any]) -> Iterator[_Traced]:
        self._in_batch = True
        yield _Traced(results[0].name)
        self._in_batch = False


def _made(argument: Any) -> Iterator[_Traced]:
    if isinstance(argument, _Traced):
        yield argument
    elif type(argument) in (list, tuple):
        for item in argument:
            yield from _made(item)


def trace(graph: Callable[..., Any]) -> list[Step]:
    """Steps of a graph ``graph(visit, detectors, config)``, in the order in which it names them.

    Nothing runs: the graph is called for one detector with stand-ins.

    Raises
    ------
    ValueError
        A node is used twice: its tasks could not be told apart.
    """
    tape = _Tape()
    with active(tape):
        graph(None, [0], None)
    return tape.steps


def mermaid(steps: Sequence[Step]) -> str:
    """The graph as a Mermaid flowchart.

    Boxes are computing steps, stadiums wait on the outside world, boxes with
    double sides gather over detectors.
    """
    lines = ["flowchart TD"]
    level = "visit"
    for step in steps:
        if step.level != level:
            if level != "visit":
                lines.append("    end")
            if step.level != "visit":
                lines.append(f'    subgraph {step.level}["{_LEVELS[step.level]}"]')
            level = step.level
        lines.append(f"    {'    ' if level != 'visit' else ''}{step.name}{_shape(step)}")
    if level != "visit":
        lines.append("    end")
    lines += [f"    {made} --> {step.name}" for step in steps for made in step.inputs]
    return "\n".join(lines) + "\n"


def _shape(step: Step) -> str:
    label = step.name.replace("_", " ")
    if step.waits:
        return f"([{label}])"
    return f"[[{label}]]" if step.gather else f"[{label}]"
