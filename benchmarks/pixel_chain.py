"""The chain of one full CCD, step by step: a repository for it, and the process that runs it.

`build` makes the repository; ``python benchmarks/pixel_chain.py ROOT --visits A,B`` is the worker: it runs the graph of
alert production over the visits of those numbers, here and now, and prints what each step took, as one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba.core import event
from ppdb_limits import load
from ppdb_workload import Field

from apflow.graph import Carried, Node, Standin, detector_of, guarded
from apflow.graphs import alert_production
from apflow.io.arrivals import Ingestor
from apflow.io.fits import write_exposure
from apflow.io.ppdb import open_ppdb
from apflow.model.ledger import Ended, State
from apflow.operate.prepare import open_replay, prepare, simulation_pool
from apflow.operate.repository import repository_config
from apflow.run import EagerRunner
from apflow.simulate.player import Player
from apflow.simulate.scenario import Scenario, visits

DETECTOR = 94
#: The last step of "raw to associated DiaSources".
LAST_STEP = "associate"
#: What the peers take.
KEPT = {"calibrate": "science.fits", "match_template": "template.fits"}


@dataclass(frozen=True)
class FieldHere(Field):  # type: ignore[misc]
    """A year of history of a focal plane about the scenario's boresight."""

    ra_deg: float = 0.0
    dec_deg: float = 0.0

    @property
    def boresight(self) -> tuple[float, float]:
        return self.ra_deg, self.dec_deg


class Later(Standin):
    """A step of the detector that runs when the chain does; `uses` are the steps that still need its value."""

    def __init__(self, node: Node[..., Any], arguments: Mapping[str, Any], detector: int) -> None:
        self.node, self.arguments, self.detector = node, dict(arguments), detector
        self.uses = 0
        self.carried: Carried | None = None


class Stopwatch(EagerRunner):
    """Runs a graph as a worker does: in order, each value dropped when nobody needs it any more.

    It keeps the CPU seconds of each step of the detector up to the association, and writes what the peers take to the
    folder `keep`.
    """

    def __init__(self, keep: Path | None = None) -> None:
        super().__init__()
        self.cpu_s: dict[str, float] = {}
        self._keep = keep
        self._chain: list[Later] = []

    def call(self, node: Node[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Take a step of the detector for later; run one of the visit."""
        detector = detector_of(arguments)
        if detector is None:
            return super().call(node, arguments)
        later = Later(node, arguments, detector)
        for made in _made(arguments):
            made.uses += 1
        self._chain.append(later)
        return later

    def gathers(self, results: Sequence[Any]) -> Iterator[tuple[Ended, ...]]:
        """Run the chain."""
        for made in results:
            made.uses += 1
        for later in self._chain:
            self._run(later)
        return super().gathers([made.carried for made in results])

    def _run(self, later: Later) -> None:
        name, inputs = later.node.name, _made(later.arguments)
        arguments = {key: a.carried if isinstance(a, Later) else a for key, a in later.arguments.items()}
        later.arguments = {}
        start = time.process_time()
        later.carried = guarded(later.node, arguments, later.detector, "here")
        if LAST_STEP not in self.cpu_s:
            self.cpu_s[name] = time.process_time() - start
        if self._keep is not None and name in KEPT:
            write_exposure(self._keep / KEPT[name], later.carried.value)
        for made in inputs:
            made.uses -= 1
            if not made.uses:
                made.carried = None


def _made(arguments: Mapping[str, Any]) -> list[Later]:
    return [argument for argument in arguments.values() if isinstance(argument, Later)]


def scenario_of(size: int | None, n: int, seed: int) -> Scenario:
    """`n` visits of one CCD, whole where `size` is None."""
    return Scenario(camera="lsstcam", size=size, seed=seed, nvisits=n, cadence_s=0.0, detectors=(DETECTOR,))


def build(root: Path, scenario: Scenario) -> None:
    """A repository with calibs, templates, raw images of all visits on arrival, and a PPDB with a year of history."""
    open_replay(root, scenario, own=False)
    with simulation_pool(1) as pool:
        prepare(root, scenario, pool, lambda what, done, total: None)
        player(root, scenario).render(pool=pool)
    config = repository_config(str(root))
    load(config.ppdb_url, [FieldHere(0, ra_deg=scenario.ra_deg, dec_deg=scenario.dec_deg)])


def player(root: Path, scenario: Scenario) -> Player:
    """What plays the raw images of a repository."""
    return Player(scenario, root / "raws", root / "landing", processes=1, spread_s=0.0)


def run_visits(root: Path, scenario: Scenario, numbers: list[int], keep: Path | None) -> dict[str, Any]:
    """Run the graph over some visits; steps' CPU seconds of each, seconds of compilation, this process's peak memory.

    Raises
    ------
    SystemExit
        A visit did not come to its end.
    """
    config, steps = repository_config(str(root)), []
    # Calibs and templates come from files: the next visit of a night is of another field.
    config = dataclasses.replace(config, inputs=dataclasses.replace(config.inputs, memory_mib=0.0))
    compiling: list[float] = []
    played = player(root, scenario)
    with (
        open_ppdb(config.ppdb_url),
        Ingestor(config.butler, played.landing),
        event.install_timer("numba:compile", compiling.append),  # not heard where the cache has it
    ):
        for number in numbers:
            visit = visits(scenario)[number]
            played.land(visit, DETECTOR)
            watch = Stopwatch(keep if number == numbers[-1] else None)
            (outcome,) = watch.run(alert_production.visit, visit, [DETECTOR], config)
            if outcome.state is not State.DONE:
                raise SystemExit(f"visit {number}: {outcome.step} {outcome.state}: {outcome.cause}")
            steps.append({"steps": watch.cpu_s, "sources": outcome.n_sources})
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"visits": steps, "peak_gib": peak_gib, "compile_s": sum(compiling), "bandwidth": copy_bandwidth()}


def copy_bandwidth() -> float:
    """Bytes that one core reads and writes a second when it copies a plane larger than its caches."""
    source = np.ones(2**25, np.float32)
    target = np.zeros_like(source)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--of", type=int, required=True, help="visits of the scenario")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--visits", required=True, help="numbers of those to run, with commas")
    parser.add_argument("--keep", type=Path, help="folder for the last science image and its matched template")
    given = parser.parse_args()
    scenario = scenario_of(given.size or None, given.of, given.seed)
    numbers = [int(n) for n in given.visits.split(",")]
    print(json.dumps(run_visits(given.root, scenario, numbers, given.keep)))


if __name__ == "__main__":
    main()
