"""The page of one detector of one visit: its difference stamps, metrics, steps and log lines."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, RequestHandler

from apflow.errors import ApflowError
from apflow.io.alerts.archive import find, open_archive
from apflow.io.alerts.schema import load_schema
from apflow.io.records import iterate_records
from apflow.model.camera import Camera
from apflow.model.ids import day_obs_of
from apflow.operate.alert_stamps import STAMPS, read_stamp
from apflow.operate.dashboard.feed import Feed, Visit
from apflow.operate.dashboard.night_camera import config_of, night_camera
from apflow.operate.night.ranges import Ranges, load_ranges
from apflow.operate.report_map import metric_label
from apflow.operate.report_stamps import Stamp, stamp_figure

_STAMPS, _LINES = 12, 200
_LOG_BYTES = 64 << 20


class DetectorHandler(RequestHandler):
    """``/apflow/detector?visit=..&detector=..``"""

    def initialize(self, feed: Feed) -> None:
        """Take the night."""
        self._feed = feed

    async def get(self) -> None:
        """Answer; what is read from disk is read beside the server's loop."""
        try:
            visit, detector = int(self.get_query_argument("visit")), int(self.get_query_argument("detector"))
        except ValueError:
            raise HTTPError(400, "visit and detector have to be numbers") from None
        known = self._feed.visits.get(visit)
        if known is None:
            raise HTTPError(404, f"no visit {visit} in {self._feed.folder.name}")
        text = await IOLoop.current().run_in_executor(None, detector_page, self._feed, known, detector)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.write(text)


def detector_page(feed: Feed, visit: Visit, detector: int) -> str:
    """The page as HTML."""
    camera = night_camera(feed)
    name = _name(camera, detector)
    shown = (feed.detailed(visit.visit) or visit).detectors.get(detector)
    state = (shown.state or "in progress") if shown else "not in this visit"
    cause = ": ".join(part for part in (shown.step, shown.cause) if part) if shown else ""
    css = resources.files("apflow.operate").joinpath("report.css").read_text()
    numbers = _numbers(shown.numbers, visit.band, load_ranges()) if shown and shown.numbers else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(name)} of {visit.visit}</title>'
        f"<style>{css}{_STYLE}</style></head><body><main><header><h1>{escape(name)}</h1>"
        f'<span class="quiet">detector {detector} · visit {visit.visit} · band {escape(visit.band or "?")} · '
        f'<b id="state">{escape(state)}</b> {escape(cause)}</span><a href="../apflow">the night</a></header>'
        f"<section><h2>Stamps: science, template, difference</h2>{_stamps(feed, visit.visit, detector, name)}</section>"
        f"<section><h2>Steps</h2>{_steps(feed, visit, detector)}</section>"
        f'<section><h2>Metrics</h2><div class="metrics">{numbers or "none yet"}</div></section>'
        f"<section><h2>Log</h2>{_log(feed.folder, visit.visit, detector, name)}</section></main></body></html>"
    )


_HEADS = ("UTC", "kind", "step", "wall, s", "core, s", "worker", "outcome", "attempt", "cause")
_STYLE = (
    ".stamps{display:flex;flex-wrap:wrap;gap:14px}.metrics{columns:3;font-size:13px}.metrics div{display:flex;"
    "justify-content:space-between;break-inside:avoid;padding:1px 8px}.metrics .warning{background:#e69f0055}"
    ".metrics .alert{background:#d55e0077}table{font-size:13px;border-spacing:14px 2px;text-align:left}"
    "pre{white-space:pre-wrap;font-size:12px}figure{margin:0}td.n{text-align:right}"
)


def _name(camera: Camera | None, detector: int) -> str:
    try:
        return camera.detector(detector).name if camera else str(detector)
    except ApflowError:
        return str(detector)


def _numbers(numbers: dict[str, float], band: str, ranges: Ranges) -> str:
    rows = []
    for metric in sorted(n for n in numbers if not n.endswith("_unix")):
        label, unit = metric_label(metric)
        verdict = ranges.verdict(metric, numbers[metric], band)
        rows.append(
            f'<div class="{verdict}" title="{metric} {verdict}"><span>{escape(label)}</span>'
            f"<span>{numbers[metric]:.6g} {escape(unit)}</span></div>"
        )
    return "".join(rows)


def _steps(feed: Feed, visit: Visit, detector: int) -> str:
    """Its records, from the part of the file where those of its visit are."""
    rows = []
    for record, offset in iterate_records(feed.folder, visit.first):
        if record.visit == visit.visit and record.detector == detector:
            took = record.stop_unix - record.start_unix if record.start_unix and record.stop_unix else None
            rows.append(
                f"<tr><td>{time.strftime('%H:%M:%S', time.gmtime(record.unix))}</td><td>{escape(record.kind)}</td>"
                f'<td>{escape(record.step)}</td><td class="n">{"" if took is None else f"{took:.2f}"}</td>'
                f'<td class="n">{"" if record.core_s is None else f"{record.core_s:.2f}"}</td>'
                f"<td>{escape(record.worker)}</td><td>{escape(record.outcome)}</td><td>{record.attempt}</td>"
                f"<td>{escape(record.cause)}</td></tr>"
            )
        if offset >= visit.last:
            break
    heads = "".join(f"<th>{head}</th>" for head in _HEADS)
    return f"<table><tr>{heads}</tr>{''.join(rows)}</table>" if rows else "no records yet"


def _stamps(feed: Feed, visit: int, detector: int, name: str) -> str:
    """A few alerts of the archive, the strongest first."""
    config = config_of(feed)
    if config is None or not config.alerts_url.startswith("file:"):
        return "no alert archive"
    try:
        rows = find(config.alerts_url, night=day_obs_of(visit), visit=visit, detector=detector)[:500]
        data = open_archive(config.alerts_url).read_many(rows)
        schema = load_schema(config.packets.schema_version)
        alerts = sorted((schema.decode(d) for d in data), key=lambda a: -abs(a["diaSource"]["snr"] or 0))
    except ApflowError as error:
        return escape(str(error))
    figures = [stamp_figure(_stamp(alert), name) for alert in alerts[:_STAMPS] if alert[STAMPS["difference"]]]
    return f'<div class="stamps">{"".join(figures)}</div>' if figures else "no alerts"


def _stamp(alert: dict[str, Any]) -> Stamp:
    source = alert["diaSource"]
    planes = {
        kind: read_stamp(alert[key]).image.astype(np.float64) if alert[key] else np.full((1, 1), np.nan)
        for kind, key in STAMPS.items()
    }
    n_history = len(alert["prvDiaSources"] or ())
    label = f"{n_history} earlier sources" if n_history else "new"
    return Stamp(source["diaSourceId"], source["visit"], source["detector"], source["snr"] or np.nan, label, **planes)


def _log(folder: Path, visit: int, detector: int, name: str) -> str:
    """Lines of the night's logs that name the visit and the detector, the newest ones."""
    number = re.compile(rf"\b(detector\W{{1,4}}{detector}|{re.escape(name)})\b")
    lines: deque[str] = deque(maxlen=_LINES)
    for path in sorted((folder / "logs").glob("*.log")):
        lines.extend(f"{path.stem}: {line}" for line in _tail(path) if str(visit) in line and number.search(line))
    return f"<pre>{escape(''.join(lines))}</pre>" if lines else "no lines of it"


def _tail(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        for line in file:
            yield line.decode("utf-8", "replace")
