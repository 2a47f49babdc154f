"""``apflow replay``: simulated visits of a focal plane, end to end, with no server to start."""

from __future__ import annotations

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
from apflow.io.alerts.publish import with_publication
from apflow.io.kafka.embedded import embedded
from apflow.io.ppdb import open_ppdb
from apflow.model.camera import Camera, load_camera
from apflow.model.ledger import Outcome
from apflow.operate.detector import outcomes_of
from apflow.operate.local_run import CORES, MAX_WORKERS
from apflow.operate.meter import Footprint
from apflow.operate.prepare import open_replay
from apflow.operate.progress import ReplayProgress
from apflow.operate.report import write_report
from apflow.operate.report_console import print_tables
from apflow.operate.repository import check_urls, repository_config
from apflow.operate.score import INJECTED_FILE, injected_sources, score_injections
from apflow.operate.stage import Stage
from apflow.operate.stamps import pick_stamps
from apflow.operate.summary import finite, ledger_frame, summarise
from apflow.operate.turns import make_room, truth_path, turns_of
from apflow.simulate.scenario import Scenario, visits
from apflow.simulate.score import score


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
    rafts_at_a_time: int = 0
    inject: int = 0


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
    record = open_replay(root, scenario, own=not request.butler, rafts_at_a_time=request.rafts_at_a_time)
    request.report.mkdir(parents=True, exist_ok=True)
    config = repository_config(str(root), request.ppdb, request.alerts, request.image_timeout_s)
    if request.inject:
        config = dataclasses.replace(config, injection=dataclasses.replace(config.injection, per_ccd=request.inject))
    if request.rafts_at_a_time:
        # Who lacks room for a focal plane may lack memory as well, and no detector comes a second time.
        config = dataclasses.replace(config, inputs=dataclasses.replace(config.inputs, memory_mib=0.0))
    turns = turns_of(scenario, camera, request.rafts_at_a_time)

    with (
        Footprint([request.report, *([] if root.is_relative_to(request.report) else [root])]) as footprint,
        embedded(config.kafka) as kafka,
        open_ppdb(config.ppdb_url, create=True) as ppdb,
        ReplayProgress(console, camera) as progress,
    ):
        config = dataclasses.replace(config, kafka=kafka)
        if record.ppdb != config.ppdb_url and len(ppdb.ledger()):
            raise BadRequest(f"PPDB {config.ppdb_url!r} holds visits that are not of this replay; accepted: a new one")
        record = dataclasses.replace(record, ppdb=config.ppdb_url)
        most = max(len(part.detectors) for part in turns)
        chains = 1 if request.rafts_at_a_time else 2
        with Stage(root, ppdb, config, camera, workers, most, chains, progress) as stage:
            for turn, part in enumerate(turns[record.turn :], record.turn):
                record = stage.play(record, part, turn)
                if request.rafts_at_a_time:
                    make_room(root, turns, turn)
                    record = dataclasses.replace(record, turn=turn + 1, prepared=False, rendered=0)
                    record.write(root)
        expected = [(v.visit, d) for v in visits(scenario) for d in scenario.detectors]
        before = {(o.visit, o.detector): o for o in outcomes_of(ppdb) if (o.visit, o.detector) in set(expected)}
        now = {(o.visit, o.detector): o for o in stage.outcomes}
        outcomes = with_publication(ppdb, list((before | now).values()))
        tables = {name: ppdb.table(name) for name in ("DiaSource", "DiaObject", "outbox")}
        footprint.look()
    truth = pd.concat([pd.read_parquet(truth_path(root, turn)) for turn in range(len(turns))], ignore_index=True)
    truth = truth.sort_values(["visit", "detector", "truth_id"], ignore_index=True)
    fakes = injected_sources(root)

    summary = summarise(
        outcomes,
        len(expected),
        score(truth, tables["DiaSource"], expected),
        processed=len(stage.outcomes),
        since_unix=since_unix,
        gathers=stage.gathers,
        meter=stage.meter,
        wall_s=time.monotonic() - begin,
        seed=request.seed,
    )
    summary["footprint"] = {
        "rafts_at_a_time": request.rafts_at_a_time,
        "n_graphs": len(turns) * len(visits(scenario)),
        "peak_memory_gib": footprint.peak_memory_bytes / 2**30,
        "peak_disk_gb": footprint.peak_disk_bytes / 1e9,
        "simulation_wall_s": stage.simulation_s,
    }
    if len(fakes):
        summary["injections"] = finite(score_injections(fakes, tables["DiaSource"], expected))
        fakes.to_parquet(request.report / INJECTED_FILE)
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
    if request.rafts_at_a_time and request.visits > 1:
        # Nothing would be left of a raft for the second one.
        raise BadRequest(f"--rafts-at-a-time with --visits {request.visits} is not accepted: one visit")
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
