"""``apflow replay``: simulated visits of a focal plane, end to end, with no server to start."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from distributed import Client
from rich.console import Console

from apflow.cluster.local import local_cluster
from apflow.config import Config
from apflow.errors import BadRequest
from apflow.graphs import alert_production
from apflow.io.arrivals import Ingestor
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.model.camera import Camera, load_camera
from apflow.model.ledger import Outcome, State, StepRecord
from apflow.model.visit import Visit
from apflow.operate.detector import repository_config
from apflow.operate.meter import Meter
from apflow.operate.prepare import open_replay, prepare, record_replay, simulation_pool
from apflow.operate.progress import ReplayProgress
from apflow.operate.report import write_report
from apflow.operate.report_console import print_tables
from apflow.operate.stamps import pick_stamps
from apflow.operate.summary import ledger_frame, summarise
from apflow.run import GatherEnded
from apflow.run_dask import DaskRunner
from apflow.simulate.player import Player
from apflow.simulate.scenario import Scenario, visits
from apflow.simulate.score import score

#: Modules that workers import while they start.
_WARM_UP = ("apflow.graphs.alert_production",)
#: The pixel chain of a full CCD needs less; beyond it a worker is restarted.
_WORKER_MEMORY = "6GiB"


@dataclass(frozen=True)
class Request:
    """What ``apflow replay`` was asked for; see its help."""

    camera: str
    detectors: str
    size: int | None
    visits: int
    cadence_s: float
    snaps: int
    workers: int
    seed: int
    physical_filter: str
    butler: str
    ppdb: str
    alerts: str
    report: Path
    json_file: Path | None
    image_timeout_s: float


def run_replay(request: Request, console: Console) -> dict[str, Any]:
    """Simulate, process, score and report.

    A replay that was interrupted goes on where it was when it is asked for
    again.

    Returns
    -------
    summary : `dict`
        What ``--json`` writes; see `apflow.operate.summary.summarise`.
    """
    begin = time.monotonic()
    camera = load_camera(request.camera, request.size)
    scenario = _scenario(request, camera)
    root = Path(request.butler) if request.butler else request.report / "butler"
    request.report.mkdir(parents=True, exist_ok=True)
    prepared = open_replay(root, scenario, own=not request.butler)
    config = _config(root, request)
    workers = request.workers or os.cpu_count() or 1

    with open_ppdb(config.ppdb_url, create=True) as ppdb, ReplayProgress(console, camera) as progress:
        done = _done_before(ppdb)
        with simulation_pool(workers) as pool:
            if not prepared:
                prepare(root, scenario, pool, progress.simulated)
            player = Player(scenario, root / "simulated" / "raws", root / "landing", workers)
            truth = player.render(lambda n, total: progress.simulated("raw images", n, total))
        todo = _todo(scenario, done)
        result = _process(player, todo, config, camera, workers, progress)
        outcomes = [*done.values(), *result.outcomes]
        tables = {name: ppdb.table(name) for name in ("DiaSource", "DiaObject", "outbox")}
    record_replay(root, scenario, prepared=True, finished=True)

    expected = [(v.visit, d) for v in visits(scenario) for d in scenario.detectors]
    summary = summarise(
        outcomes,
        len(expected),
        score(truth, tables["DiaSource"], expected),
        gathers=result.gathers,
        meter=result.meter,
        wall_s=time.monotonic() - begin,
        seed=request.seed,
    )
    _write(request, scenario, camera, config, summary, outcomes, truth, tables)
    print_tables(summary, console)
    console.print(f"report: {request.report / 'report.html'}")
    return summary


@dataclass(frozen=True)
class Processed:
    """What processing gave: outcomes, records of the gathers, and what it cost."""

    outcomes: tuple[Outcome, ...]
    gathers: tuple[StepRecord, ...]
    meter: Meter


def _process(
    player: Player,
    todo: dict[int, tuple[int, ...]],
    config: Config,
    camera: Camera,
    workers: int,
    progress: ReplayProgress,
) -> Processed:
    """Play the visits into a local cluster and wait for the outcomes."""
    gathers: list[StepRecord] = []

    def on_event(event: object) -> None:
        if isinstance(event, GatherEnded):
            gathers.extend(event.result.steps)
        progress.event(event)

    announced = {v.visit: v for v in visits(player.scenario) if todo[v.visit]}
    progress.expect({v: len(d) for v, d in todo.items()})
    if not announced:
        return Processed((), (), Meter())
    timing = config.timing
    with (
        local_cluster(workers, memory_limit=_WORKER_MEMORY, dashboard=True, warm_up=_WARM_UP) as cluster,
        Client(cluster, set_as_default=False) as client,
        Ingestor(config.butler, player.landing),
        DaskRunner(
            client,
            group_of=lambda d: camera.detector(d).raft,
            label_of=lambda d: camera.detector(d).name,
            gather_after_s=timing.gather_after_s,
            deadline_s=_deadline_s(config, len(announced), len(camera.detectors), workers),
            on_event=on_event,
        ) as runner,
    ):
        client.wait_for_workers(workers + 1, timeout=60)
        progress.dashboard(client.dashboard_link)
        meter = Meter.start(client)
        handles = []

        def announce(visit: Visit) -> None:
            if visit.visit in announced:
                handles.append(runner.start(alert_production.visit, visit, list(todo[visit.visit]), config))

        player.play(announce)
        outcomes = [outcome for handle in handles for outcome in handle.result()]
        meter = meter.stop(client)
    return Processed(tuple(outcomes), tuple(gathers), meter)


def _deadline_s(config: Config, n_visits: int, n_detectors: int, workers: int) -> float:
    """A generous limit, so that a replay on a small machine is slow rather than incomplete."""
    per_detector = 2.0 if config.size else 30.0
    return config.timing.image_timeout_s + 120.0 + per_detector * n_visits * n_detectors / workers


def _scenario(request: Request, camera: Camera) -> Scenario:
    return Scenario(
        camera=request.camera,
        size=request.size,
        seed=request.seed,
        physical_filter=camera.filter(request.physical_filter).physical_filter,
        nvisits=request.visits,
        nsnaps=request.snaps,
        cadence_s=request.cadence_s,
        detectors=camera.select(request.detectors),
    )


def _config(root: Path, request: Request) -> Config:
    config = repository_config(str(root), request.ppdb, request.alerts, request.image_timeout_s)
    if request.ppdb and not request.ppdb.startswith("duckdb:///"):
        raise BadRequest(f"--ppdb {request.ppdb!r} is not accepted: duckdb:///absolute/path")
    return config


def _done_before(ppdb: Ppdb) -> dict[tuple[int, int], Outcome]:
    """Detector-visits that an interrupted replay finished."""
    done = {}
    for row in ppdb.ledger().to_dict("records"):
        if row["state"] in set(State):
            key = int(row["visit"]), int(row["detector"])
            done[key] = Outcome(
                row["instrument"],
                *key,
                State(row["state"]),
                cause=row["cause"] or "",
                step=row["step"] or "",
                n_sources=int(row["n_sources"]),
                n_alerts=int(row["n_alerts"]),
            )
    return done


def _todo(scenario: Scenario, done: dict[tuple[int, int], Outcome]) -> dict[int, tuple[int, ...]]:
    return {v.visit: tuple(d for d in scenario.detectors if (v.visit, d) not in done) for v in visits(scenario)}


def _write(
    request: Request,
    scenario: Scenario,
    camera: Camera,
    config: Config,
    summary: dict[str, Any],
    outcomes: Sequence[Outcome],
    truth: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
) -> None:
    folder = request.report
    ledger = ledger_frame(outcomes)
    truth.to_parquet(folder / "truth.parquet")
    tables["DiaSource"].to_parquet(folder / "diasources.parquet")
    tables["DiaObject"].to_parquet(folder / "diaobjects.parquet")
    ledger.to_parquet(folder / "ledger.parquet")
    stamps = pick_stamps(config.alerts_url, config.packets.schema_version, tables["DiaSource"], tables["outbox"])
    write_report(folder, summary, camera=camera, visits=visits(scenario), ledger=ledger, stamps=stamps)
    if request.json_file:
        temporary = request.json_file.with_name(request.json_file.name + ".new")
        temporary.write_text(json.dumps(summary, indent=1) + "\n")
        temporary.replace(request.json_file)
