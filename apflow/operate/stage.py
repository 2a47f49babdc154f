"""Where a replay plays: simulates what a turn needs, lands its images, and waits for the outcomes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from distributed import Client

from apflow.config import Config
from apflow.graphs import alert_production
from apflow.io.arrivals import Ingestor
from apflow.io.ppdb import Ppdb
from apflow.model.camera import Camera
from apflow.model.ids import day_obs_of
from apflow.model.ledger import Outcome, StepRecord
from apflow.model.visit import Visit
from apflow.operate.deliver import Delivery
from apflow.operate.detector import outcomes_of
from apflow.operate.ephemerides import ingest_simulated
from apflow.operate.local_run import runner_of, workers_here
from apflow.operate.meter import Meter, give_back_memory
from apflow.operate.night.recorder import Recorder
from apflow.operate.prepare import Record, prepare, simulation_pool
from apflow.operate.progress import ReplayProgress
from apflow.operate.recover import recover
from apflow.operate.turns import truth_path
from apflow.run import GatherEnded
from apflow.run.on_dask import DaskRunner
from apflow.simulate.player import Player
from apflow.simulate.scenario import Scenario, visits

#: nextVisit is sent at least this long before the exposure.
_NOTICE_S = 20.0


class Stage:
    """Simulates and processes the turns of a replay on one local cluster, which starts when there is work for it.

    Parameters
    ----------
    root : `pathlib.Path`
        Of the repository.
    ppdb : `~apflow.io.ppdb.Ppdb`
    config : `~apflow.config.Config`
    camera : `~apflow.model.camera.Camera`
    workers : `int`
    most : `int`
        Detectors of the largest turn.
    chains_per_worker : `int`
        Detectors whose images a worker holds at a time.
    progress : `~apflow.operate.progress.ReplayProgress`

    Attributes
    ----------
    outcomes : `list` [`Outcome`]
        Of the detector-visits that were processed here.
    gathers : `list` [`StepRecord`]
        Steps of visits and batches, which are no detector's own.
    meter : `Meter`
        CPU and memory of the workers while they processed.
    simulation_s : `float`
        Wall time of simulating.
    """

    def __init__(
        self,
        root: Path,
        ppdb: Ppdb,
        config: Config,
        camera: Camera,
        workers: int,
        most: int,
        chains_per_worker: int,
        progress: ReplayProgress,
    ) -> None:
        self._root, self._ppdb, self._config, self._camera = root, ppdb, config, camera
        self._workers, self._most, self._chains, self._progress = workers, most, chains_per_worker, progress
        self._stack = contextlib.ExitStack()
        self._recorder = self._stack.enter_context(Recorder(root))
        self._cluster: tuple[Client, DaskRunner] | None = None
        self.outcomes: list[Outcome] = []
        self.gathers: list[StepRecord] = []
        self.meter = Meter()
        self.simulation_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def play(self, record: Record, scenario: Scenario, turn: int) -> Record:
        """Simulate and process what is not done yet of one turn; gives how far it is now."""
        player = Player(scenario, self._root / "simulated" / "raws", self._root / "landing")
        begin = time.monotonic()
        record = self._simulate(record, player, truth_path(self._root, turn))
        self.simulation_s += time.monotonic() - begin
        expected = {(v.visit, d) for v in visits(scenario) for d in scenario.detectors}
        ledger = outcomes_of(self._ppdb)
        before = [o for o in ledger if (o.visit, o.detector) in expected]
        ended = recover(self._ppdb, visits(scenario), before, self._config)
        done = {(o.visit, o.detector) for o in ended}
        todo = {v.visit: tuple(d for d in scenario.detectors if (v.visit, d) not in done) for v in visits(scenario)}
        known = {v.visit: set(scenario.detectors) for v in visits(scenario)}
        for outcome in ledger:  # of other turns
            if outcome.visit in known:
                known[outcome.visit].add(outcome.detector)
        for visit in visits(scenario):
            self._recorder.day = day_obs_of(visit.visit)  # nothing here is of the night that it is now
            stored = [o for o in ended if o.visit == visit.visit]
            if stored:  # by a run that was interrupted, perhaps before it could tell
                self._recorder.started(visit, known[visit.visit])
                self._recorder.ended(visit.visit, stored, all_of_it=len(stored) == len(known[visit.visit]))
        sends = bool(self._config.kafka.bootstrap)
        with Delivery(self._ppdb, self._config) if sends else contextlib.nullcontext():
            self._process(player, todo, known)
        return record

    def _simulate(self, record: Record, player: Player, kept: Path) -> Record:
        """Make what is not there yet: calibs, templates, reference stars, raw images; keeps the truth, too."""
        scenario, root = player.scenario, self._root
        if record.rendered >= scenario.nvisits and kept.is_file():
            return record
        with simulation_pool(min(self._workers, len(scenario.detectors))) as pool:
            if not record.prepared:
                prepare(root, scenario, pool, self._progress.simulated)
                record = dataclasses.replace(record, prepared=True)
                record.write(root)
            ingest_simulated(root, scenario)
            truth = player.render(lambda n, total: self._progress.simulated("raw images", n, total), pool)
        truth.to_parquet(kept)
        record = dataclasses.replace(record, rendered=scenario.nvisits)
        record.write(root)
        return record

    def _process(self, player: Player, todo: dict[int, tuple[int, ...]], known: dict[int, set[int]]) -> None:
        """Play the visits into the cluster and wait for the outcomes; `known` are their detectors, ended or to end."""
        announced = {v.visit: v for v in visits(player.scenario) if todo[v.visit]}
        self._progress.expect({v: len(d) for v, d in todo.items()})
        if not announced:
            return
        client, runner = self._open(len(announced))
        with Ingestor(self._config.butler, player.landing):
            meter = Meter.start(client)
            handles = []

            def announce(visit: Visit) -> None:
                if visit.visit in announced:
                    detectors = list(todo[visit.visit])
                    self._recorder.started(visit, known[visit.visit])
                    handles.append(runner.start(alert_production.visit, visit, detectors, self._config))

            player.play(announce, lead_s=min(_NOTICE_S, player.scenario.cadence_s))
            for handle in handles:
                outcomes = handle.result()
                self._recorder.ended(handle.visit, outcomes)
                self.outcomes += outcomes
            self.meter += meter.stop(client)
            client.run(give_back_memory)

    def _open(self, n_visits: int) -> tuple[Client, DaskRunner]:
        if self._cluster is None:
            client = self._stack.enter_context(workers_here(self._workers))
            # A generous limit, so that a replay on a small machine is slow rather than incomplete.
            per_detector = 2.0 if self._config.size else 30.0
            seconds = per_detector * n_visits * self._most / self._workers
            deadline_s = self._config.timing.image_timeout_s + 120.0 + seconds
            runner = runner_of(client, self._camera, self._config, deadline_s, self._on_event, self._chains)
            self._cluster = client, self._stack.enter_context(runner)
            client.wait_for_workers(self._workers + 1, timeout=60)
            self._progress.dashboard(client.dashboard_link)
        return self._cluster

    def _on_event(self, event: object) -> None:
        if isinstance(event, GatherEnded):
            self.gathers.extend(event.result.steps)
        self._recorder.event(event)
        self._progress.event(event)
