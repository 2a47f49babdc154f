"""``apflow report``: the night's quality, performance and calibration reports of LSE-61 in one."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from apflow import __version__
from apflow.config import Config
from apflow.errors import BadRequest, ServiceError
from apflow.io.atomic import atomic
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.io.records import iterate_records, night_folder, nights
from apflow.model.camera import load_camera
from apflow.operate.night.ranges import load_ranges
from apflow.operate.night.report_figures import performance
from apflow.operate.night.report_ledger import ledger_nights, ledger_records, with_publication
from apflow.operate.night.report_page import page
from apflow.operate.night.report_quality import quality
from apflow.operate.night.report_sources import calibrations, fakes_score, ledger_counts, outbox_counts, worst_stamps
from apflow.operate.night.report_tables import NightTables, collect
from apflow.operate.report import finite_tree
from apflow.operate.report_stamps import Stamp
from apflow.operate.repository import repository_config
from apflow.operate.summary import machine

JSON_FILE, PAGE_FILE = "report.json", "report.html"
_PACKAGES = ("dask", "distributed", "numpy", "numba", "astropy", "pandas", "lsst-daf-butler")


@dataclass(frozen=True)
class Written:
    """What became of a report.

    Attributes
    ----------
    page, json : `pathlib.Path`
    report : mapping
        What the JSON holds.
    """

    page: Path
    json: Path
    report: Mapping[str, Any]

    @property
    def adds_up(self) -> bool:
        """Whether every expected detector-visit came to exactly one end."""
        return bool(self.report["performance"]["adds_up"])


def night_of(known: Sequence[int], name: str, root: Path) -> int:
    """The day of observation that is asked for, of those known.

    Raises
    ------
    BadRequest
        Nothing is known of it.
    """
    if not known:
        raise BadRequest(f"there is no night in {root}; accepted: a repository that visits were processed in")
    if name == "latest":
        return known[-1]
    if not name.isdigit() or int(name) not in known:
        last = ", ".join(str(n) for n in known[-5:])
        raise BadRequest(f"night {name!r} is not accepted: latest, or a day of observation that is known ({last})")
    return int(name)


def write_night_report(
    butler: str, night: str = "latest", output: Path | None = None, json_file: Path | None = None, ppdb: str = ""
) -> Written:
    """Write the report of a night.

    Parameters
    ----------
    butler : `str`
        Root of the repository.
    night : `str`
        Day of observation, or ``latest``.
    output : `pathlib.Path`, optional
        Folder; default: ``report`` in the night's folder.
    json_file : `pathlib.Path`, optional
        Where the JSON goes instead.
    ppdb : `str`, optional
        URL, where it is not the configured one.

    Raises
    ------
    BadRequest
        There is no such night or repository.
    """
    begin = time.monotonic()
    config = repository_config(butler, ppdb)
    root = Path(config.butler)
    camera = load_camera(config.camera, config.size)
    ranges = load_ranges(config.night.ranges)
    with contextlib.ExitStack() as stack:
        try:
            opened, problem = stack.enter_context(open_ppdb(config.ppdb_url)), ""
        except ServiceError as error:  # a report is wanted most when something is down
            opened, problem = None, str(error)
        recorded = nights(root)
        known = sorted({*recorded, *(ledger_nights(opened) if opened else ())})
        day_obs = night_of(known, night, root)
        if day_obs in recorded or opened is None:
            tables = collect(record for record, _ in iterate_records(night_folder(root, day_obs)))
        else:
            tables = collect(ledger_records(opened, config, day_obs))
        if opened is not None:
            tables = with_publication(tables, opened, day_obs)
        told = quality(tables, ranges)
        asked = _asked(opened, tables, told["worst_detectors"], day_obs, config)
    ran = performance(tables, config.fleet.latency_s, ranges, asked.outbox, asked.stored)
    report = {
        "instrument": camera.instrument,
        "day_obs": day_obs,
        "performance": ran,
        "quality": {**told, "score": asked.score},
        "calibration": {"exposures": calibrations(config, day_obs)},
        "sources": {
            "Source": "records of the night" if day_obs in recorded else "ledger of the PPDB, metrics of the Butler",
            "Detector-visits": len(tables.detectors),
            "Runs of steps": len(tables.steps),
            "PPDB": f"was not asked: {problem}" if problem else "was asked",
        },
        "versions": _versions(),
        "machine": machine(),
    }
    output = output or night_folder(root, day_obs) / "report"
    output.mkdir(parents=True, exist_ok=True)
    html = page(report, tables, camera, ranges, asked.stamps, config.fleet.latency_s)
    report["made_in_s"] = time.monotonic() - begin
    json_path = json_file or output / JSON_FILE
    with atomic(json_path) as file:
        file.write(json.dumps(finite_tree(report), indent=1, allow_nan=False).encode() + b"\n")
    with atomic(output / PAGE_FILE) as file:
        file.write(html.encode())
    return Written(output / PAGE_FILE, json_path, report)


@dataclass(frozen=True)
class _Asked:
    """What the PPDB told; nothing where it was not asked."""

    outbox: Mapping[str, int] = field(default_factory=dict)
    stored: Mapping[str, int] | None = None
    score: Mapping[str, Any] = field(default_factory=dict)
    stamps: Mapping[int, Sequence[Stamp]] = field(default_factory=dict)


def _asked(
    ppdb: Ppdb | None, tables: NightTables, worst: Sequence[Mapping[str, Any]], day_obs: int, config: Config
) -> _Asked:
    if ppdb is None:
        return _Asked()
    return _Asked(
        outbox_counts(ppdb, day_obs),
        ledger_counts(ppdb, day_obs),
        fakes_score(ppdb, tables, config),
        worst_stamps(ppdb, tables, worst, config),
    )


def _versions() -> dict[str, str]:
    known = {package: metadata.version(package) for package in _PACKAGES}
    return {"apflow": __version__, "python": platform.python_version(), **known}
