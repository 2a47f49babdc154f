"""Small graphs with real waits and failures; files of a scratch folder are their outside world.

`config` is a `World`: the folder, and what goes wrong at which detector.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apflow.errors import DataError, ImageTimeout, NoTemplate
from apflow.graph import cancelled, gathers, node
from apflow.model.ledger import Ended, Failure


@dataclass(frozen=True)
class World:
    """What the steps of these graphs meet."""

    folder: str
    image_timeout_s: float = 20.0
    subtract_s: float = 0.0
    troubles: Mapping[int, str] = field(default_factory=dict)

    def write(self, name: str, text: str = "") -> None:
        """Add a line to a file of the folder, in one write."""
        with open(Path(self.folder) / name, "a") as file:
            file.write(f"{text}\n")

    def read(self, name: str) -> list[str]:
        """Lines of a file of the folder."""
        path = Path(self.folder) / name
        return path.read_text().splitlines() if path.exists() else []


class Planes:
    """Stands for image planes: tells how many live in its process, and when they travel to another."""

    alive = 0

    def __init__(self, world: World) -> None:
        Planes.alive += 1
        self.world = world
        world.write("alive", f"{os.getpid()} {Planes.alive}")

    def __del__(self) -> None:
        Planes.alive -= 1

    def __reduce__(self) -> Any:
        self.world.write("travelled", str(os.getpid()))
        return Planes, (self.world,)


@node(gather=True)
def open_visit(visit: int, detectors: Sequence[int], config: World) -> dict[int, str]:
    return {detector: f"template of {detector}" for detector in detectors}


@node
def fetch_template(plan: Mapping[int, str], detector: int, config: World) -> Planes:
    if config.troubles.get(detector) == "no template":
        raise NoTemplate(f"detector {detector}: no template")
    return Planes(config)


@node(waits=True)
def await_image(visit: int, detector: int, config: World) -> float:
    deadline = time.time() + config.image_timeout_s
    while not (Path(config.folder) / f"image-{visit}-{detector}").exists():
        if cancelled():
            config.write("cancelled", str(detector))
            return 0.0
        if time.time() > deadline:
            raise ImageTimeout(f"image of detector {detector}")
        time.sleep(0.02)
    return time.time()


@node
def subtract(image: float, template: Planes, detector: int, visit: int, config: World) -> Planes:
    trouble = config.troubles.get(detector)
    if trouble == "truncated":
        raise DataError(f"detector {detector}: truncated")
    if trouble == "crash":
        raise ZeroDivisionError("division by zero")
    if trouble == "hang":
        time.sleep(3600)
    if trouble == "straggle" and not config.read("straggled"):
        config.write("straggled", str(os.getpid()))
        time.sleep(8.0)
    if trouble == "kill":
        os._exit(9)
    config.write("subtract", f"{visit} {detector} {os.getpid()}")
    time.sleep(config.subtract_s)
    return Planes(config)


@node
def measure(difference: Planes, detector: int, config: World) -> list[int]:
    if config.troubles.get(detector) == "hang late":
        time.sleep(3600)
    config.write("measured", f"{detector} {Planes.alive}")
    return [detector * 1000 + i for i in range(3)]


@node(waits=True)
def read_history(sources: list[int], config: World) -> int:
    time.sleep(0.01)
    return len(sources)


@node
def associate(sources: list[int], history: int, difference: Planes, config: World) -> dict[int, int]:
    if config.troubles.get(sources[0] // 1000) == "hang last":
        time.sleep(3600)
    return dict.fromkeys(sources, history)


@node(gather=True)
def store(batch: tuple[Ended, ...], visit: int, config: World) -> list[tuple[int, str, int]]:
    for ended in batch:
        path = Path(config.folder) / f"stored-{visit}-{ended.detector}"
        path.write_text("" if ended.failure else str(ended.value))  # idempotent: the same file again
    config.write("batches", " ".join(str(ended.detector) for ended in batch))
    if any(config.troubles.get(ended.detector) == "store" for ended in batch):
        raise OSError("disk full")
    return [
        (e.detector, "done", len(e.value)) if e.failure is None else (e.detector, str(e.failure.state), 0)
        for e in batch
    ]


@node(gather=True)
def publish(stored: list[tuple[int, str, int]], config: World) -> list[tuple[int, str, int]]:
    return stored


@node(gather=True)
def report(visit: int, outcomes: Sequence[Any], config: World) -> dict[Any, str]:
    states: dict[Any, str] = {}
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            states[outcome.step] = outcome.cause
        else:
            states |= {detector: state for detector, state, _ in outcome}
    return states


def chain(visit: int, detector: int, plan: Any, config: World) -> Any:
    template = fetch_template(plan, detector, config)
    image = await_image(visit, detector, config)
    difference = subtract(image, template, detector, visit, config)
    sources = measure(difference, detector, config)
    history = read_history(sources, config)
    return associate(sources, history, difference, config)


def visit_graph(visit: int, detectors: Sequence[int], config: World) -> Any:
    plan = open_visit(visit, detectors, config)
    results = [chain(visit, detector, plan, config) for detector in detectors]
    outcomes = []
    for batch in gathers(results):
        stored = store(batch, visit, config)
        outcomes.append(publish(stored, config))
    return report(visit, outcomes, config)


def expose(world: World, visit: int, *detectors: int) -> None:
    """Let images arrive."""
    for detector in detectors:
        (Path(world.folder) / f"image-{visit}-{detector}").touch()
