"""Pieces of the report's page: key figures, tables, the histogram of latencies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from apflow.model.visit import Visit
from apflow.operate.report_map import metric_label, with_latency

#: States in the order in which tables and legends show them.
STATES = ("done", "no_template", "no_calib", "image_timeout", "bad_data", "failed", "cancelled")
_PERCENTS = {"completeness_snr6": "Completeness, S/N > 6", "purity": "Purity, S/N > 6"}
_DASH = "–"


def number(value: Any, digits: int = 3) -> str:
    """A number in a few significant digits, thousands apart; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _DASH
    if isinstance(value, str):
        return escape(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u2009")
    return f"{value:,.0f}".replace(",", "\u2009") if abs(value) >= 10**digits else f"{value:.{digits}g}"


def tiles(summary: Mapping[str, Any]) -> str:
    """The figures that come first."""
    visits, latency, score = summary["detector_visits"], summary["latency_s"], summary["score"]
    done, expected = visits.get("done", 0), visits["expected"]
    share = f"{100 * done / expected:.1f} %" if expected else _DASH
    shown = [
        ("Detector-visits done", f"{number(done)} of {number(expected)}", share),
        ("Alerts", number(summary["alerts"]), "published"),
        ("Latency, 98 %", f"{number(latency.get('p98'))} s", f"median {number(latency.get('p50'))} s"),
        *((label, _percent(score[key]), "of true changes") for key, label in _PERCENTS.items() if key in score),
        ("CPU a detector", f"{number(summary['core_s_per_detector'])} s", "core-seconds"),
        ("Peak memory", f"{number(summary['peak_rss_mib'])} MiB", "of a worker"),
        ("Wall time", _duration(summary["wall_s"]), f"seed {summary.get('seed', _DASH)}"),
    ]
    shown = [(a, b, "of detections" if a.startswith("Purity") else c) for a, b, c in shown]
    return "".join(
        f'<div class="tile"><span>{escape(name)}</span><strong>{value}</strong><small>{escape(note)}</small></div>'
        for name, value, note in shown
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """An HTML table of ready-made cells, the first columns to the left and the others to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{'' if i < text_columns else ' class=n'}>{cell}</{tag}>" for i, cell in enumerate(cells))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{line(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def states_table(summary: Mapping[str, Any]) -> str:
    """How the detector-visits ended."""
    counts = {k: v for k, v in summary["detector_visits"].items() if k != "expected"}
    expected = summary["detector_visits"]["expected"]
    order = [s for s in STATES if s in counts] + sorted(set(counts) - set(STATES))
    rows = [
        (f'<i class="dot s-{escape(s)}"></i>{escape(s)}', number(counts[s]), _percent(counts[s] / max(expected, 1)))
        for s in order
    ]
    return table(("State", "Detector-visits", "Share"), [*rows, ("<b>expected</b>", number(expected), "")])


def causes_table(ledger: pd.DataFrame) -> str:
    """Why detector-visits did not end as done, most frequent first."""
    lost = ledger[ledger["state"] != "done"]
    if not len(lost):
        return '<p class="quiet">Every detector-visit is done.</p>'
    groups = Counter(lost[["state", "step", "cause"]].astype(str).itertuples(index=False, name=None))
    rows = [
        (f'<i class="dot s-{escape(state)}"></i>{escape(state)}', escape(step), escape(cause), number(n))
        for (state, step, cause), n in groups.most_common(20)
    ]
    return table(("State", "Step", "Cause", "Count"), rows, text_columns=3)


def stages_table(summary: Mapping[str, Any]) -> str:
    """Wall time of each step, with bars to the slowest step's 98 %, and end to end."""
    stages = summary["stages"]
    slowest = max((s.get("p98_s") or 0.0 for s in stages.values()), default=0.0) or 1.0
    rows = []
    for name, s in stages.items():
        p50, p98 = (100 * (s.get(k) or 0.0) / slowest for k in ("p50_s", "p98_s"))
        bar = f'<span class="bar"><i style="width:{p98:.1f}%"></i><b style="width:{p50:.1f}%"></b></span>'
        cells = [number(s.get(k)) for k in ("p50_s", "p95_s", "p98_s", "max_s", "core_s")]
        rows.append((f"<code>{escape(name)}</code>", bar, *cells))
    latency = summary["latency_s"]
    whole = [number(latency.get(k)) for k in ("p50", "p95", "p98", "max")]
    rows.append(("<b>end of readout to alert</b>", "", *(f"<b>{c}</b>" for c in whole), ""))
    head = ("Step", '<span class="key"><b></b> p50 <i></i> p98</span>', "p50 s", "p95 s", "p98 s", "max s", "core-s")
    return table(head, rows, text_columns=2)


def visits_table(visits: Sequence[Visit], ledger: pd.DataFrame) -> str:
    """Each visit: counts, latency, and the median and range of what its image quality says."""
    full = with_latency(ledger)
    names = [c for c in ("psf_fwhm_arcsec", "zero_point_mag", "depth_mag", "wcs_scatter_arcsec") if c in full]
    labels = [", ".join(part for part in metric_label(c) if part) for c in names]
    rows = []
    for visit in visits:
        mine = full[full["visit"] == visit.visit]
        done = int((mine["state"] == "done").sum())
        late = mine["latency_s"].astype(float)
        ranges = [_range_of(mine[c].astype(float)) for c in names]
        counts = [number(int(mine[c].fillna(0).sum())) for c in ("n_sources", "n_alerts")]
        ends = [number(float(late.median())), number(float(late.max()))]
        rows.append((f"{visit.visit}", escape(visit.band), f"{done} / {len(mine)}", *counts, *ends, *ranges))
    head = ("Visit", "Band", "Done", "Sources", "Alerts", "Latency p50 s", "max s", *labels)
    return table(head, rows, text_columns=2)


def pairs_table(values: Mapping[str, Any], head: tuple[str, str]) -> str:
    """A mapping as a table; names of metrics in words."""
    return table(head, [(escape(str(k)), number(v, 4)) for k, v in values.items()])


def score_table(score: Mapping[str, Any]) -> str:
    """What the simulated truth says of the products."""
    rows = []
    for key, value in score.items():
        label, unit = metric_label(key)
        if isinstance(value, list):
            continue  # by bin of S/N: in the JSON
        shown = _percent(value) if key in _PERCENTS else number(value, 3)
        rows.append((escape(_PERCENTS.get(key, label)), shown, escape("" if key in _PERCENTS else unit)))
    return table(("Score", "Value", "Unit"), rows) if rows else '<p class="quiet">Not scored.</p>'


def latency_histogram(ledger: pd.DataFrame) -> str:
    """Distribution of the latency over detector-visits, as SVG."""
    values = with_latency(ledger)["latency_s"].astype(float).to_numpy()
    values = values[np.isfinite(values)]
    if not values.size:
        return '<p class="quiet">No alert was published.</p>'
    top = max(float(values.max()) * 1.02, 1e-3)
    counts, edges = np.histogram(values, 48, (0.0, top))
    width, height = 560.0, 120.0
    bars = "".join(
        f'<rect x="{width * i / 48 + 0.5:.1f}" y="{height - height * c / counts.max():.1f}" '
        f'width="{width / 48 - 1:.1f}" height="{height * c / counts.max():.1f}"><title>'
        f"{edges[i]:.2f} to {edges[i + 1]:.2f} s: {c}</title></rect>"
        for i, c in enumerate(counts.tolist())
        if c
    )
    marks = "".join(_mark(name, float(np.percentile(values, q)), top, width) for name, q in (("p50", 50), ("p98", 98)))
    ticks = "".join(
        f'<text x="{width * f:.0f}" y="{height + 16:.0f}" text-anchor="{anchor}">{number(top * f)} s</text>'
        for f, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    )
    return (
        f'<svg class="histogram" viewBox="0 -18 {width:.0f} {height + 40:.0f}" role="img" '
        f'aria-label="Latency, end of readout to alert">{bars}<path d="M0 {height:.0f}H{width:.0f}"/>'
        f"{marks}{ticks}</svg>"
    )


def _mark(name: str, value: float, top: float, width: float) -> str:
    x = width * value / top
    line = f'<path class="mark" d="M{x:.1f} -4V120"/>'
    return f'{line}<text class="mark" x="{x:.1f}" y="-7" text-anchor="middle">{name}</text>'


def _range_of(values: pd.Series) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return _DASH
    low, middle, high = (f"{v:.4g}" for v in (known.min(), known.median(), known.max()))
    return f'{middle}<small class="quiet">{low} to {high}</small>'


def _percent(value: Any) -> str:
    return _DASH if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _duration(seconds: float) -> str:
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s" if seconds >= 100 else f"{number(float(seconds))} s"
