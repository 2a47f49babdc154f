"""The report of a calibration exposure: a JSON file for machines, a page with pictures for people.

The page needs nothing but itself, and works from a file.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from apflow.config import Config
from apflow.errors import ApflowError
from apflow.io.atomic import atomic
from apflow.io.butler.paths import checks_path
from apflow.io.fits import read_image
from apflow.model.calibration import CalibrationExposure, Intent
from apflow.model.calibration_metrics import AMPLIFIER, DETECTOR
from apflow.model.camera import Camera, load_camera
from apflow.model.ledger import Outcome
from apflow.model.metrics import Metric
from apflow.operate.calibration.pictures import mosaic, ramp_css, rows_of, strip
from apflow.operate.calibration.summary import remarks, summarise
from apflow.operate.report_map import focal_plane_svg
from apflow.operate.report_parts import number, table

_log = logging.getLogger(__name__)
_METRICS = {metric.name: metric for metric in (*DETECTOR, *AMPLIFIER)}
_VERDICTS = ("Acceptable", "Warning", "Alert")
#: Rows of the table; the others are in the JSON.
_MOST_ROWS = 200
_LEFT = {
    Intent.BIAS: "Bias less master bias, ADU",
    Intent.DARK: "Dark less master dark",
    Intent.FLAT: "Flat over master flat, less 1",
    Intent.CBP: "Collimated beam, corrected",
}


def write_report(
    folder: Path, exposure: CalibrationExposure, summary: Mapping[str, Any], camera: Camera, config: Config
) -> Path:
    """Write ``<image>.json`` and ``<image>.html``.

    Parameters
    ----------
    folder : `pathlib.Path`
        Made when it does not exist.
    exposure : `CalibrationExposure`
    summary : mapping
        `apflow.operate.calibration.summary.summarise` of it.
    camera, config
        Those of the repository, which has the pictures.

    Returns
    -------
    page : `pathlib.Path`
    """
    with atomic(folder / f"{exposure.image}.json") as file:
        file.write(json.dumps(summary, indent=1, allow_nan=False).encode() + b"\n")
    page = folder / f"{exposure.image}.html"
    with atomic(page) as file:
        file.write(_page(exposure, summary, camera, config).encode())
    return page


def keep_report(exposure: CalibrationExposure, outcomes: Sequence[Outcome], config: Config) -> None:
    """Write the report of an exposure into folder ``calibration-reports`` of the repository.

    A report that cannot be written is logged: everything it tells is in the repository.
    """
    camera = load_camera(config.camera, config.size)
    try:
        summary = summarise(exposure, outcomes, camera, config)
        write_report(Path(config.butler) / "calibration-reports", exposure, summary, camera, config)
    except (ApflowError, OSError) as error:
        _log.warning("there is no report of %s: %s", exposure.image, error)


def _page(exposure: CalibrationExposure, summary: Mapping[str, Any], camera: Camera, config: Config) -> str:
    heading = f"{exposure.image}: {exposure.intent}"
    detectors = summary["detectors"]
    by_id = {d["detector"]: d for d in detectors}
    pieces = {
        "title": escape(f"apflow · {heading}"),
        "heading": escape(heading),
        "made": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "tiles": _tiles(summary),
        "map": focal_plane_svg(camera),
        "fills": _fills(camera, by_id),
        "legend": "".join(f'<span><i class="dot v-{v}"></i>{v}</span>' for v in (*_VERDICTS, "not checked")),
        "left": escape(_LEFT[exposure.intent]),
        "mosaic": _mosaic(exposure, detectors, camera, config),
        "detectors": _detectors(summary),
        "amplifiers": _amplifiers(detectors),
        "strips": _strips(detectors),
        "strip_order": "detectors from left to right, the amplifiers of each side by side"
        if len(detectors) <= 12
        else "detectors from left to right, their amplifiers from top to bottom",
        "ramp": ramp_css(),
        "names": json.dumps([_tip(d.name, by_id.get(d.id)) for d in camera.detectors]).replace("<", "\\u003c"),
    }
    template = (resources.files("apflow.operate.calibration") / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: pieces[match[1]], template)


def _tiles(summary: Mapping[str, Any]) -> str:
    verdicts, states = summary["verdicts"], summary["states"]
    done, n = states.get("done", 0), len(summary["detectors"])
    shown = [
        ("Verdict", summary["verdict"] or "not checked", ", ".join(f"{verdicts[v]} {v}" for v in _VERDICTS[::-1]
                                                                   if v in verdicts)),
        ("Detectors checked", f"{done} of {n}", ", ".join(f"{k} {v}" for v, k in states.items() if v != "done")),
        ("Exposure time", f"{number(summary['exposure_time_s'])} s", summary["physical_filter"] or "no filter"),
        ("Out of range", number(sum(len(d["out_of_range"]) for d in summary["detectors"])), "metrics of amplifiers"),
    ]  # fmt: skip
    return "".join(
        f'<div class="tile"><span>{escape(name)}</span><strong>{escape(value)}</strong>'
        f"<small>{escape(note)}</small></div>"
        for name, value, note in shown
    )


def _fills(camera: Camera, detectors: Mapping[int, Mapping[str, Any]]) -> str:
    """Rules that colour the map by verdict."""
    rules = []
    for place, d in enumerate(camera.detectors):
        if d.id in detectors:
            colour = (detectors[d.id]["verdict"] or "none").lower()
            rules.append(f'.ccd[data-d="{place}"] {{ fill: var(--{colour}); }}')
    return "\n".join(rules)


def _tip(name: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return f"{name}: not asked for"
    return f"{name}: {found['verdict'] or found['state']}\n{found['cause']}".strip()


def _mosaic(exposure: CalibrationExposure, detectors: list[Any], camera: Camera, config: Config) -> str:
    paths = {
        d["detector"]: checks_path(config.butler, "calibration_picture", exposure, d["detector"])
        for d in detectors
        if d["state"] == "done"
    }
    if not paths:
        return '<p class="quiet">No detector was checked.</p>'
    uri, low, high = mosaic(camera, {d: read_image(path) for d, path in paths.items()})
    return (
        f'<img class="mosaic" src="{uri}" alt="Residuals of the focal plane">'
        f'<div class="ends"><span>black {number(low, 4)}</span><span>white {number(high, 4)}</span></div>'
    )


def _detectors(summary: Mapping[str, Any]) -> str:
    rows = [(_named(names, found), escape(found), escape(why)) for names, found, why in remarks(summary)]
    return table(("Detectors", "Verdict", "Why"), rows, 3) if rows else '<p class="quiet">None.</p>'


def _amplifiers(detectors: list[Any]) -> str:
    found = [(d["name"], row) for d in detectors for row in d["out_of_range"]]
    found.sort(key=lambda pair: -_VERDICTS.index(pair[1]["verdict"]))
    rows = [
        (
            _named(f"{name} {row['amplifier'] or 'whole'}", row["verdict"]),
            escape(_label(_METRICS[row["metric"]])),
            row["verdict"],
            number(row["value"], 4),
            escape(row["unit"]),
            _limits(row["warning"]),
            _limits(row["alert"]),
        )
        for name, row in found[:_MOST_ROWS]
    ]
    if not rows:
        return '<p class="quiet">Nothing.</p>'
    head = ("Amplifier", "Metric", "Verdict", "Value", "Unit", "Acceptable", "No Alert")
    more = f'<p class="quiet">{len(found) - len(rows)} more are in the JSON.</p>' if len(found) > len(rows) else ""
    return table(head, rows, 3) + more


def _strips(detectors: list[Any]) -> str:
    parts = []
    done = [d for d in detectors if d["state"] == "done"]
    for metric in AMPLIFIER:
        values = [[a[metric.name] for a in d["amplifiers"].values()] for d in done]
        if all(v is None for row in values for v in row):
            continue
        rows = rows_of(values)
        low, high = float(np.nanmin(rows)), float(np.nanmax(rows))
        known = number(low) if low == high else f"{number(low)} to {number(high)}"
        label = escape(_label(metric))
        parts.append(
            f'<span title="{escape(metric.description)}">{label}</span>'
            f'<img src="{strip(rows)}" alt="{label} by amplifier" style="height:{60 if len(rows) > 1 else 16}px">'
            f'<span class="quiet n">{known} {escape(metric.unit)}</span>'
        )
    return "".join(parts)


def _label(metric: Metric) -> str:
    """Its name in words, without its unit."""
    unit = metric.unit.replace(" / ", "_per_")
    words = metric.name.removesuffix(f"_{unit}").replace("n_", "number of ", 1 if metric.name.startswith("n_") else 0)
    text = words.replace("_", " ").replace("ptc", "photon transfer:")
    return text[0].upper() + text[1:]


def _named(name: str, verdict: str) -> str:
    return f'<i class="dot v-{escape(verdict)}"></i>{escape(name)}'


def _limits(pair: list[float | None]) -> str:
    low, high = pair
    if low is None and high is None:
        return number(None)
    return f"{'' if low is None else number(low)} … {'' if high is None else number(high)}"
