"""``apflow report``: the night's quality, performance and calibration reports of LSE-61 in one."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from apflow import __version__
from apflow.config import Config
from apflow.errors import BadRequest, ServiceError
from apflow.io.atomic import atomic
from apflow.io.ppdb import open_ppdb
from apflow.io.records import iterate_records, night_folder, nights
from apflow.model.camera import load_camera
from apflow.operate.night.ranges import Ranges, load_ranges
from apflow.operate.night.report_figures import performance
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


def night_of(root: Path, name: str) -> int:
    """The day of observation that is asked for.

    Raises
    ------
    BadRequest
        There are no records of it.
    """
    known = nights(root)
    if not known:
        raise BadRequest(f"there are no records of nights in {root}; accepted: a repository that a night was run on")
    if name == "latest":
        return known[-1]
    if not name.isdigit() or int(name) not in known:
        last = ", ".join(str(n) for n in known[-5:])
        raise BadRequest(f"night {name!r} is not accepted: latest, or a day of observation with records ({last})")
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
    day_obs = night_of(root, night)
    folder = night_folder(root, day_obs)
    camera = load_camera(config.camera, config.size)
    ranges = load_ranges(config.night.ranges)
    tables = collect(record for record, _ in iterate_records(folder))
    report, stamps = _figures(tables, day_obs, ranges, config)
    report = {"instrument": camera.instrument, **report, "versions": _versions(), "machine": machine()}
    output = output or folder / "report"
    output.mkdir(parents=True, exist_ok=True)
    html = page(report, tables, camera, ranges, stamps, config.fleet.latency_s)
    report["sources"]["made_in_s"] = time.monotonic() - begin
    json_path = json_file or output / JSON_FILE
    with atomic(json_path) as file:
        file.write(json.dumps(finite_tree(report), indent=1, allow_nan=False).encode() + b"\n")
    with atomic(output / PAGE_FILE) as file:
        file.write(html.encode())
    return Written(output / PAGE_FILE, json_path, report)


def _figures(
    tables: NightTables, day_obs: int, ranges: Ranges, config: Config
) -> tuple[dict[str, Any], dict[int, list[Stamp]]]:
    """All figures, and the stamps of the worst detectors; without the PPDB, what the records alone tell."""
    told = quality(tables, ranges)
    sources: dict[str, Any] = {"detector-visits in the records": len(tables.detectors), "steps": len(tables.steps)}
    try:
        with open_ppdb(config.ppdb_url) as ppdb:
            outbox, stored = outbox_counts(ppdb, day_obs), ledger_counts(ppdb, day_obs)
            told["score"] = fakes_score(ppdb, tables, config)
            stamps = worst_stamps(ppdb, tables, told["worst_detectors"], config)
        sources["PPDB"] = "agrees with the records"
    except ServiceError as error:  # a report is wanted most when something is down
        outbox, stored, stamps = {}, {}, {}
        told["score"] = {}
        sources["PPDB"] = f"was not asked: {error}"
    ran = performance(tables, config.fleet.latency_s, ranges, outbox, stored)
    if stored and not ran["adds_up"]:
        sources["PPDB"] = "was asked"
    report = {
        "day_obs": day_obs,
        "performance": ran,
        "quality": told,
        "calibration": {"exposures": calibrations(config, day_obs)},
        "sources": sources,
    }
    return report, stamps


def _versions() -> dict[str, str]:
    known = {package: metadata.version(package) for package in _PACKAGES}
    return {"apflow": __version__, "python": platform.python_version(), **known}
