"""The page of the night report: one HTML file that needs nothing but itself."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import pandas as pd

from apflow.model.camera import Camera
from apflow.model.ledger import State
from apflow.operate import report_parts
from apflow.operate.night import report_parts as parts
from apflow.operate.night.ranges import Ranges, metric_choices
from apflow.operate.night.report_plots import gantt, gantt_legend, latency_against_time
from apflow.operate.night.report_quality import AGAINST_TIME, with_delivery
from apflow.operate.night.report_tables import NightTables
from apflow.operate.report import fill, shared_pieces
from apflow.operate.report_map import Shown, focal_plane_svg, map_data, metric_label
from apflow.operate.report_stamps import Stamp, stamp_figure

#: Visits on the map beside the night as a whole: each costs some 50 kB.
_MAP_VISITS = 12


def page(
    report: Mapping[str, Any],
    tables: NightTables,
    camera: Camera,
    ranges: Ranges,
    stamps: Mapping[int, Sequence[Stamp]],
    limit_s: float,
) -> str:
    """The page, as HTML.

    Parameters
    ----------
    report : mapping
        What the JSON holds.
    stamps : mapping
        Of the worst detectors, by detector.
    """
    names = {d.id: d.name for d in camera.detectors}
    performance, quality = report["performance"], report["quality"]
    detectors = tables.detectors.assign(latency_s=tables.detectors["published_unix"] - tables.detectors["arrived_unix"])
    heading = f"{report['instrument']}, night of {_day(report['day_obs'])}"
    counts = {"expected": performance["expected"]["detector_visits"], **performance["states"]}
    figures = {d: "".join(stamp_figure(s, names.get(d, str(d))) for s in found) for d, found in stamps.items()}
    rows = quality["visits"]
    limits = {name: _one_range(name, rows, ranges) for name in AGAINST_TIME}
    pieces = {
        "title": escape(f"apflow · {heading}"),
        "heading": escape(heading),
        "made": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "tiles": parts.tiles(report),
        "banner": parts.banner(performance),
        "cards": parts.verdict_cards(performance["verdict"]),
        "states": report_parts.states_table({"detector_visits": counts}),
        "alerts": parts.alerts_table(performance["alerts"]),
        "missed": parts.missed_table(performance["missed"], names),
        "recovered": parts.recovered_table(performance["recovered"]),
        "left_out": parts.left_out_table(performance["left_out"]),
        "histogram": report_parts.latency_histogram(detectors),
        "latency": latency_against_time(rows, limit_s),
        "stages": report_parts.stages_table(_stages_summary(performance)),
        "gantt_legend": gantt_legend(),
        "gantts": _gantts(performance["slowest_visits"], tables, names, limit_s),
        "plots": parts.plots(quality, limits),
        "bands": _bands(quality["by_band"]),
        "map": focal_plane_svg(camera),
        "data": json.dumps(_map(camera, tables, report), allow_nan=False).replace("<", "\\u003c"),
        "completeness": parts.completeness_table(quality["completeness"], quality["score"]),
        "out_of_range": parts.out_of_range_table(quality["out_of_range"], names),
        "worst": parts.worst_detectors(quality["worst_detectors"], names, figures),
        "visits": parts.visits_table(rows),
        "metrics": parts.metrics_table(quality["metrics"]),
        "calibrations": parts.calibrations_table(report["calibration"]["exposures"]),
        "machine": report_parts.pairs_table({**report["machine"], **report["sources"]}, ("Machine and sources", "")),
        "versions": report_parts.pairs_table(report["versions"], ("Package", "Version")),
        **shared_pieces(),
    }
    return fill((resources.files("apflow.operate.night") / "report.html").read_text(encoding="utf-8"), pieces)


def _day(day_obs: int) -> str:
    text = str(day_obs)
    return f"{text[:4]}-{text[4:6]}-{text[6:]}"


def _stages_summary(performance: Mapping[str, Any]) -> dict[str, Any]:
    latency = {k.removesuffix("_s"): v for k, v in performance["latency_s"].items()}
    return {"stages": performance["stages"], "latency_s": latency}


def _one_range(name: str, rows: Sequence[Mapping[str, Any]], ranges: Ranges) -> tuple[float, float] | None:
    """The Acceptable range of all visits of a plot, where they have the same one."""
    found = {ranges.limits(name, r["band"]) for r in rows}
    only = found.pop() if len(found) == 1 else None
    return None if only is None else only.warning


def _gantts(slowest: Sequence[Mapping[str, Any]], tables: NightTables, names: Mapping[int, str], limit_s: float) -> str:
    shown = []
    for visit in (row["visit"] for row in slowest):
        steps = tables.steps[tables.steps["visit"] == visit]
        mine = tables.detectors[tables.detectors["visit"] == visit]
        shown.append(gantt(visit, steps, mine, names, limit_s))
    if len(shown) < 2:
        return "".join(shown) or '<p class="quiet">No alert was published.</p>'
    return f"{shown[0]}<details><summary>{len(shown) - 1} more</summary>{''.join(shown[1:])}</details>"


def _bands(by_band: Mapping[str, Mapping[str, Any]]) -> str:
    names = [n for n in AGAINST_TIME if any(n in row for row in by_band.values())]
    cells = [
        (escape(band), report_parts.number(row["n_visits"]), *(report_parts.number(row[n], 4) for n in names))
        for band, row in by_band.items()
    ]
    labels = [", ".join(p for p in metric_label(n) if p) for n in names]
    return report_parts.table(("Band", "Visits", *(f"Median {label}" for label in labels)), cells)


def _map(camera: Camera, tables: NightTables, report: Mapping[str, Any]) -> dict[str, Any]:
    """Data of the map: the night as a whole, then the visits that are most worth a look."""
    detectors = with_delivery(tables.detectors).rename(columns={"alert_latency_s": "latency_s"})
    judged = {row["metric"] for row in report["quality"]["metrics"] if row["warning"] or row["alert"]}
    first = ("psf_fwhm_arcsec", "zero_point_mag", "sky_mag_arcsec2", "depth_mag", "n_sources", "n_alerts", "latency_s")
    wanted = [*first, *(c.name for c in metric_choices() if c.name in judged and not c.name.startswith("is_"))]
    metrics = [name for name in dict.fromkeys(wanted) if name in detectors]
    whole = detectors.groupby("detector")[metrics].median().reset_index()
    lost = detectors[detectors["state"] != State.DONE]
    n, count = detectors.groupby("detector").size(), lost.groupby("detector").size()
    worst = lost.groupby("detector").agg(cause=("cause", _most))
    whole = whole.set_index("detector").assign(visit=0, step="", cause="")
    whole["state"] = detectors.groupby("detector")["state"].agg(_most)
    whole["n_not_done"] = count.reindex(whole.index, fill_value=0)
    whole.loc[worst.index, "cause"] = [
        f"{count.loc[d]} of {n.loc[d]} visits not done, mostly: {worst.loc[d, 'cause']}" for d in worst.index
    ]
    chosen = _chosen(report)
    bands = {row["visit"]: row["band"] for row in report["quality"]["visits"]}
    columns = ["visit", "detector", "state", "step", "cause", "n_not_done", *metrics]
    some = detectors.assign(n_not_done=detectors["state"].ne(State.DONE).astype(float))
    some = some.loc[some["visit"].isin(chosen), columns]
    data = map_data(
        camera,
        [Shown(0, ""), *(Shown(v, bands[v]) for v in chosen)],
        pd.concat([whole.reset_index()[columns], some], ignore_index=True),
    )
    data["visits"][0]["id"] = "the whole night: medians"
    return data


def _most(values: pd.Series) -> str:
    return str(values.value_counts().index[0])


def _chosen(report: Mapping[str, Any]) -> list[int]:
    """The slowest visits, those with missed detectors, and others until there are enough; in order."""
    rows = report["quality"]["visits"]
    lacking = sorted((r for r in rows if r["n_done"] < r["n_detectors"]), key=lambda r: r["n_done"] - r["n_detectors"])
    order = [*(r["visit"] for r in report["performance"]["slowest_visits"][:4]), *(r["visit"] for r in lacking[:5])]
    return sorted(list(dict.fromkeys([*order, *(r["visit"] for r in rows)]))[:_MAP_VISITS])
