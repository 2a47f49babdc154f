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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ppdb_limits import load
from ppdb_workload import Field

from apflow.graph import Carried, Node, detector_of
from apflow.graphs import alert_production
from apflow.io.arrivals import Ingestor
from apflow.io.fits import write_exposure
from apflow.io.ppdb import open_ppdb
from apflow.model.ledger import State
from apflow.operate.prepare import open_replay, prepare, simulation_pool
from apflow.operate.repository import repository_config
from apflow.run import EagerRunner
from apflow.simulate.player import Player
from apflow.simulate.scenario import Scenario, visits

DETECTOR = 94
#: The last step of "raw to associated DiaSources".
LAST_STEP = "associate"


@dataclass(frozen=True)
class FieldHere(Field):  # type: ignore[misc]
    """A year of history of a focal plane about the scenario's boresight."""

    ra_deg: float = 0.0
    dec_deg: float = 0.0

    @property
    def boresight(self) -> tuple[float, float]:
        return self.ra_deg, self.dec_deg


class Stopwatch(EagerRunner):
    """Runs a graph and keeps the CPU seconds of each step of the detector, in order, up to the association."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s: dict[str, float] = {}
        self.values: dict[str, Any] = {}

    def call(self, node: Node[..., Any], arguments: Mapping[str, Any]) -> Carried:
        """Run one step."""
        start = time.process_time()
        carried = super().call(node, arguments)
        if detector_of(arguments) is not None and LAST_STEP not in self.cpu_s:
            self.cpu_s[node.name] = time.process_time() - start
        if node.name in ("calibrate", "match_template"):
            self.values[node.name] = carried.value
        return carried


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
    """Run the graph over some visits; steps' CPU seconds of each, and the peak memory of this process.

    Raises
    ------
    SystemExit
        A visit did not come to its end.
    """
    config, steps = repository_config(str(root)), []
    # Calibs and templates come from files: the next visit of a night is of another field.
    config = dataclasses.replace(config, inputs=dataclasses.replace(config.inputs, memory_mib=0.0))
    played = player(root, scenario)
    with open_ppdb(config.ppdb_url), Ingestor(config.butler, played.landing):
        for number in numbers:
            visit = visits(scenario)[number]
            played.land(visit, DETECTOR)
            watch = Stopwatch()
            (outcome,) = watch.run(alert_production.visit, visit, [DETECTOR], config)
            if outcome.state is not State.DONE:
                raise SystemExit(f"visit {number}: {outcome.step} {outcome.state}: {outcome.cause}")
            steps.append({"steps": watch.cpu_s, "sources": outcome.n_sources})
    if keep is not None:
        write_exposure(keep / "science.fits", watch.values["calibrate"])
        write_exposure(keep / "template.fits", watch.values["match_template"])
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"visits": steps, "peak_gib": peak_gib, "bandwidth": copy_bandwidth()}


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
