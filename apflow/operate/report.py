"""The report of a run: one JSON file for machines, one HTML page for people.

The page needs nothing but itself: styles, script, map and stamps are inside,
and it works from a file.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from apflow.model.camera import Camera
from apflow.model.visit import Visit
from apflow.operate import report_parts as parts
from apflow.operate.report_console import FOOTPRINT
from apflow.operate.report_map import focal_plane_svg, map_data
from apflow.operate.report_stamps import Stamp, stamp_figure

__all__ = ["Stamp", "write_report"]

_MAX_STAMPS = 48


def write_report(
    directory: Path,
    summary: dict[str, Any],
    *,
    camera: Camera,
    visits: Sequence[Visit],
    ledger: pd.DataFrame,
    stamps: Sequence[Stamp],
) -> Path:
    """Write report.json and report.html.

    Parameters
    ----------
    directory : `pathlib.Path`
        Made when it does not exist.
    summary : `dict`
        The contract of ``--json``.
    camera : `~apflow.model.camera.Camera`
    visits : `~collections.abc.Sequence` [`~apflow.model.visit.Visit`]
        In the order of the selector.
    ledger : `pandas.DataFrame`
        One row a detector-visit: visit, detector, state, cause, step,
        n_sources, n_alerts, arrived_unix, published_unix; every further
        numeric column becomes a metric of the map.
    stamps : `~collections.abc.Sequence` [`Stamp`]
        The first 48 are shown.

    Returns
    -------
    page : `pathlib.Path`
        The HTML file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(finite_tree(summary), indent=2, allow_nan=False) + "\n")
    page = directory / "report.html"
    page.write_text(_page(summary, camera, visits, ledger, stamps), encoding="utf-8")
    return page


def _page(
    summary: dict[str, Any],
    camera: Camera,
    visits: Sequence[Visit],
    ledger: pd.DataFrame,
    stamps: Sequence[Stamp],
) -> str:
    names = {d.id: d.name for d in camera.detectors}
    figures = "".join(stamp_figure(s, names.get(s.detector, str(s.detector))) for s in stamps[:_MAX_STAMPS])
    detectors = ledger["detector"].nunique()
    made = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    pieces = {
        "title": escape(f"apflow · {camera.instrument}, {len(visits)} visits × {detectors} detectors"),
        "heading": escape(f"{camera.instrument}: {_count(len(visits), 'visit')} × {_count(detectors, 'detector')}"),
        "made": made,
        "tiles": parts.tiles(summary),
        "map": focal_plane_svg(camera),
        "data": json.dumps(map_data(camera, visits, ledger), allow_nan=False).replace("<", "\\u003c"),
        "histogram": parts.latency_histogram(ledger),
        "stages": parts.stages_table(summary),
        "visits": parts.visits_table(visits, ledger),
        "states": parts.states_table(summary),
        "causes": parts.causes_table(ledger),
        "score": parts.score_table(summary["score"]),
        "stamps": figures or '<p class="quiet">No stamps were kept.</p>',
        "machine": parts.pairs_table({**summary["machine"], **_footprint(summary)}, ("Machine", "")),
        "versions": parts.pairs_table(summary["versions"], ("Package", "Version")),
        **shared_pieces(),
    }
    template = (resources.files("apflow.operate") / "report.html").read_text(encoding="utf-8")
    return fill(template, pieces)


def shared_pieces() -> dict[str, str]:
    """Style sheet and script of pages with a map of the focal plane."""
    folder = resources.files("apflow.operate")
    files = {"style": "report.css", "script": "report_map.js"}
    return {name: (folder / file).read_text(encoding="utf-8") for name, file in files.items()}


def fill(template: str, pieces: Mapping[str, str]) -> str:
    """The template with each ``{{name}}`` replaced; what replaces it is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: pieces[match[1]], template)


def _footprint(summary: dict[str, Any]) -> dict[str, Any]:
    return {FOOTPRINT[name]: value for name, value in summary.get("footprint", {}).items()}


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def finite_tree(value: Any) -> Any:
    """The same tree with NaN and infinity as None, and NumPy scalars as Python's."""
    if isinstance(value, dict):
        return {str(k): finite_tree(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite_tree(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
