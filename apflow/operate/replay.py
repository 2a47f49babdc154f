"""``apflow replay``: simulated visits of a focal plane, end to end, with no server to start."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from apflow.config import Config
from apflow.errors import BadRequest
from apflow.graphs import alert_production
from apflow.io.arrivals import Ingestor
from apflow.io.kafka.embedded import embedded
from apflow.io.ppdb import open_ppdb
from apflow.model.camera import Camera, load_camera
from apflow.model.ledger import Outcome, StepRecord
from apflow.model.visit import Visit
from apflow.operate.deliver import Delivery, with_publication
from apflow.operate.detector import outcomes_of
from apflow.operate.local_run import CORES, MAX_WORKERS, runner_of, workers_here
from apflow.operate.meter import Meter
from apflow.operate.prepare import Record, open_replay, prepare, simulation_pool
from apflow.operate.progress import ReplayProgress
from apflow.operate.recover import recover
from apflow.operate.report import write_report
from apflow.operate.report_console import print_tables
from apflow.operate.repository import check_urls, repository_config
from apflow.operate.stamps import pick_stamps
from apflow.operate.summary import ledger_frame, summarise
from apflow.run import GatherEnded
from apflow.simulate.player import Player
from apflow.simulate.scenario import Scenario, visits
from apflow.simulate.score import score

#: nextVisit is sent at least this long before the exposure.
_NOTICE_S = 20.0


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
    begin, since_unix = time.monotonic(), time.time()
    camera = load_camera(request.camera, request.size)
    scenario = _scenario(request, camera)
    workers = request.workers or CORES
    _check(request)
    root = Path(request.butler) if request.butler else request.report / "butler"
    record = open_replay(root, scenario, own=not request.butler)
    request.report.mkdir(parents=True, exist_ok=True)
    config = repository_config(str(root), request.ppdb, request.alerts, request.image_timeout_s)

    with (
        embedded(config.kafka) as kafka,
        open_ppdb(config.ppdb_url, create=True) as ppdb,
        ReplayProgress(console, camera) as progress,
    ):
        config = dataclasses.replace(config, kafka=kafka)
        if record.ppdb != config.ppdb_url and len(ppdb.ledger()):
            raise BadRequest(f"PPDB {config.ppdb_url!r} holds visits that are not of this replay; accepted: a new one")
        player = Player(scenario, root / "simulated" / "raws", root / "landing")
        record = dataclasses.replace(record, ppdb=config.ppdb_url)
        record, truth = _simulate(record, root, player, min(workers, len(scenario.detectors)), progress)
        expected = [(v.visit, d) for v in visits(scenario) for d in scenario.detectors]
        before = [o for o in outcomes_of(ppdb) if (o.visit, o.detector) in set(expected)]
        done = {(o.visit, o.detector): o for o in recover(ppdb, visits(scenario), before, config)}
        with Delivery(ppdb, config) if kafka.bootstrap else contextlib.nullcontext():
            result = _process(player, _todo(scenario, done), config, camera, workers, progress)
        outcomes = with_publication(ppdb, [*done.values(), *result.outcomes])
        tables = {name: ppdb.table(name) for name in ("DiaSource", "DiaObject", "outbox")}

    summary = summarise(
        outcomes,
        len(expected),
        score(truth, tables["DiaSource"], expected),
        processed=len(result.outcomes),
        since_unix=since_unix,
        gathers=result.gathers,
        meter=result.meter,
        wall_s=time.monotonic() - begin,
        seed=request.seed,
    )
    _write(request, scenario, camera, config, summary, outcomes, truth, tables)
    dataclasses.replace(record, finished=True).write(root)
    print_tables(summary, console)
    console.print(f"report: {request.report / 'report.html'}", soft_wrap=True)
    return summary


def _check(request: Request) -> None:
    """Refuse now what would fail after minutes.

    Raises
    ------
    BadRequest
        An output cannot be written.
    """
    check_urls(request.ppdb, request.alerts)
    if not 0 <= request.workers <= MAX_WORKERS:
        raise BadRequest(f"--workers {request.workers} is not accepted: 0 (one a core) to {MAX_WORKERS}")
    folders = {"--report": request.report}
    if request.json_file:
        folders["--json"] = request.json_file.absolute().parent
        if request.json_file.is_dir() or not folders["--json"].is_dir():
            raise BadRequest(f"--json {request.json_file} is not accepted: a file in a folder that exists")
    for option, folder in folders.items():
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise BadRequest(f"{option} {folder} is not accepted: {there} is not a folder that can be written to")


def _simulate(
    record: Record, root: Path, player: Player, processes: int, progress: ReplayProgress
) -> tuple[Record, pd.DataFrame]:
    """Make what is not there yet: calibs, templates, reference stars, raw images; gives the truth, too."""
    scenario, kept = player.scenario, root / "simulated" / "truth.parquet"
    if record.rendered >= scenario.nvisits and kept.is_file():
        return record, pd.read_parquet(kept)
    with simulation_pool(processes) as pool:
        if not record.prepared:
            prepare(root, scenario, pool, progress.simulated)
            record = dataclasses.replace(record, prepared=True)
            record.write(root)
        truth = player.render(lambda n, total: progress.simulated("raw images", n, total), pool)
    truth.to_parquet(kept)
    record = dataclasses.replace(record, rendered=scenario.nvisits)
    record.write(root)
    return record, truth


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
    deadline_s = _deadline_s(config, len(announced), len(camera.detectors), workers)
    with (
        workers_here(workers) as client,
        Ingestor(config.butler, player.landing),
        runner_of(client, camera, config, deadline_s, on_event) as runner,
    ):
        client.wait_for_workers(workers + 1, timeout=60)
        progress.dashboard(client.dashboard_link)
        meter = Meter.start(client)
        handles = []

        def announce(visit: Visit) -> None:
            if visit.visit in announced:
                handles.append(runner.start(alert_production.visit, visit, list(todo[visit.visit]), config))

        player.play(announce, lead_s=min(_NOTICE_S, player.scenario.cadence_s))
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
