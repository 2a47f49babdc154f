"""Plots of the night report as SVG: metrics and latency against time, and the Gantt of a visit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from apflow.operate.report_parts import number

#: Colour and shape of each band: Okabe and Ito's palette, that no kind of colour blindness confuses.
BAND_STYLE = {
    "u": ("#8a5fbf", "triangle"),
    "g": ("#0072b2", "circle"),
    "r": ("#d55e00", "square"),
    "i": ("#009e73", "diamond"),
    "z": ("#cc79a7", "down"),
    "y": ("#b08900", "cross"),
}
_UNKNOWN = ("#808890", "circle")
_SHAPES = {
    "circle": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0",
    "square": "M-2.7 -2.7h5.4v5.4h-5.4z",
    "triangle": "M0 -3.5L3.3 2.6H-3.3z",
    "down": "M0 3.5L3.3 -2.6H-3.3z",
    "diamond": "M0 -3.8L3.4 0L0 3.8L-3.4 0z",
    "cross": "M-3 -1h2v-2h2v2h2v2h-2v2h-2v-2h-2z",
}
#: Steps of a detector by stage, with the stage's colour; in the Gantt a stage is one colour.
STAGES = {
    "inputs": ("#9aa5b5", ("detector_region", "fetch_calibs", "fetch_template")),
    "waiting": ("#d9dee6", ("await_science_images",)),
    "signature": ("#56b4e9", ("remove_signature",)),
    "calibrate": ("#0072b2", ("calibrate", "inject_fakes")),
    "subtract": ("#e69f00", ("match_template", "subtract")),
    "detect": ("#d55e00", ("detect_and_measure", "rate_reliability")),
    "associate": ("#009e73", ("read_history", "associate", "force_photometry")),
    "alerts": ("#cc79a7", ("package_alerts",)),
    "store, publish": ("#5b4a8a", ()),
}
_STAGE_OF = {step: stage for stage, (_, steps) in STAGES.items() for step in steps}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 540.0, 190.0, 52.0, 24.0
_GANTT_WIDTH, _GANTT_HEIGHT = 1080.0, 420.0
#: Work on inputs before the end of readout is cut off here.
_BEFORE_S = 15.0


def against_time(
    rows: Sequence[Mapping[str, Any]],
    name: str,
    label: str,
    limits: tuple[float | None, float | None] | None,
    bright_up: bool = False,
) -> str:
    """A metric of visits against time: median and range over the detectors, by band.

    Parameters
    ----------
    rows : sequence of mapping
        ``time_h``, ``visit``, ``band``, and by metric ``median`` and ``range``.
    label : `str`
        What it is, with its unit.
    limits : `tuple` or `None`
        The Acceptable range, drawn where it is in sight; an end may be None.
    bright_up : `bool`
        Smaller values further up.
    """
    known = [r for r in rows if r["time_h"] is not None and r["median"].get(name) is not None]
    if not known:
        return ""
    ends = np.array([[v for v in r["range"][name] if v is not None] for r in known], float)
    middle = np.array([r["median"][name] for r in known], float)
    low, high = _view(middle, ends)
    times = np.array([r["time_h"] for r in known], float)
    x = _scale(times, float(times.min()), float(times.max()), _LEFT + 12, _WIDTH - 24)

    def y(value: Any) -> Any:
        part = (np.clip(value, low, high) - low) / (high - low)
        return 8 + (_HEIGHT - _BOTTOM - 8) * (part if bright_up else 1 - part)

    marks = []
    for i, row in enumerate(known):
        colour, shape = BAND_STYLE.get(row["band"], _UNKNOWN)
        title = (
            f"{row['visit']} {row['band']}: {number(middle[i], 5)}, {number(ends[i, 0], 5)} to {number(ends[i, 1], 5)}"
        )
        marks.append(
            f'<g stroke="{colour}" fill="{colour}"><path class="range" d="M{x[i]:.1f} {y(ends[i, 0]):.1f}'
            f'V{y(ends[i, 1]):.1f}"/><path stroke="none" transform="translate({x[i]:.1f} {y(middle[i]):.1f})" '
            f'd="{_SHAPES[shape]}"><title>{escape(title)}</title></path></g>'
        )
    body = _band_of(limits, low, high, y) + _axes(times, x, _ticks(low, high), y) + "".join(marks)
    return _figure(label, body)


def latency_against_time(rows: Sequence[Mapping[str, Any]], limit_s: float) -> str:
    """Latency of visits: median and the slowest detector against the number of the visit, with the limit."""
    known = [r for r in rows if r["median"].get("alert_latency_s") is not None]
    if not known:
        return '<p class="quiet">No alert was published.</p>'
    middle = np.array([r["median"]["alert_latency_s"] for r in known])
    top = np.array([r["range"]["alert_latency_s"][1] for r in known])
    low, high = 0.0, max(float(top.max()) * 1.05, limit_s * 1.1)
    places = np.arange(1.0, len(known) + 1)
    x = _scale(places, 1.0, float(len(known)), _LEFT + 12, _WIDTH - 24)

    def y(value: Any) -> Any:
        return 8 + (_HEIGHT - _BOTTOM - 8) * (1 - (value - low) / (high - low))

    bars = "".join(
        f'<path class="range slow" d="M{x[i]:.1f} {y(middle[i]):.1f}V{y(top[i]):.1f}"/>'
        f'<circle class="median" cx="{x[i]:.1f}" cy="{y(middle[i]):.1f}" r="2.6"><title>{row["visit"]}: median '
        f"{middle[i]:.1f} s, slowest {top[i]:.1f} s</title></circle>"
        for i, row in enumerate(known)
    )
    line = f'<path class="limit" d="M{_LEFT} {y(limit_s):.1f}H{_WIDTH}"/>'
    text = f'<text class="limit" x="{_WIDTH}" y="{y(limit_s) - 4:.1f}" text-anchor="end">{limit_s:g} s</text>'
    frame = _axes(places, x, _ticks(low, high), y, "{:.0f}")
    return _figure("Latency, s, by number of the visit: median and slowest detector", frame + bars + line + text)


def gantt(visit: int, steps: pd.DataFrame, detectors: pd.DataFrame, names: Mapping[int, str], limit_s: float) -> str:
    """What every detector of a visit did when, from the end of its readout; one colour a stage.

    Parameters
    ----------
    steps, detectors : `pandas.DataFrame`
        Rows of `NightTables` of this visit; detectors in order of their end.
    """
    start = float(detectors["arrived_unix"].median())
    if not math.isfinite(start):
        start = float(steps["start_unix"].min())
    last = pd.concat([steps["stop_unix"], detectors["published_unix"]]).max() - start
    if not len(steps) or not math.isfinite(last):
        return '<p class="quiet">No steps are recorded.</p>'
    order = detectors.sort_values("published_unix", na_position="first")["detector"].tolist()
    row = {d: i for i, d in enumerate(order)}
    height = min(14.0, max(2.4, _GANTT_HEIGHT / max(len(order), 1)))
    total = height * (len(order) + 2)
    begin = -min(_BEFORE_S, max(0.0, start - float(steps["start_unix"].min())))
    end = max(float(last), 1.0)

    def x(seconds: Any) -> Any:
        return _LEFT + (_GANTT_WIDTH - _LEFT) * (np.clip(seconds, begin, end) - begin) / (end - begin)

    paths: dict[str, list[str]] = {stage: [] for stage in STAGES}
    columns = zip(
        steps["detector"], steps["step"], steps["start_unix"] - start, steps["stop_unix"] - start, strict=True
    )
    for detector, step, t0, t1 in columns:
        if t1 > begin and math.isfinite(t1 - t0):
            line = (row[detector] + 2.5) * height if detector in row else height * 0.9
            paths[_STAGE_OF.get(str(step), "store, publish")].append(
                f"M{x(t0):.1f} {line:.1f}H{max(x(t1), x(t0) + 0.4):.1f}"
            )
    lines = "".join(
        f'<path d="{"".join(found)}" stroke="{STAGES[stage][0]}" stroke-width="{max(height * 0.8, 1.6):.1f}">'
        f"<title>{stage}</title></path>"
        for stage, found in paths.items()
        if found
    )
    ticks = "".join(
        f'<path class="grid" d="M{x(t):.1f} 0V{total:.0f}"/><text x="{x(t):.1f}" y="{total + 14:.0f}" '
        f'text-anchor="middle">{t:g} s</text>'
        for t in _ticks(begin, end, 8)
    )
    labels = "".join(
        f'<text x="{_LEFT - 5}" y="{(i + 2.5) * height + 3:.1f}" text-anchor="end">'
        f"{escape(names.get(d, str(d)))}</text>"
        for d, i in row.items()
        if height >= 9
    )
    limit = f'<path class="limit" d="M{x(limit_s):.1f} 0V{total:.0f}"/>' if limit_s <= end else ""
    return (
        f'<figure class="gantt"><figcaption><b>Visit {visit}</b><span>{len(order)} detectors, the last at '
        f'{float(last):.1f} s</span></figcaption><svg viewBox="0 -4 {_GANTT_WIDTH:.0f} {total + 22:.0f}" role="img" '
        f'aria-label="Gantt of visit {visit}">{ticks}<g fill="none">{lines}</g>{labels}{limit}</svg></figure>'
    )


def gantt_legend() -> str:
    """The stages and their colours."""
    return "".join(f'<span><i style="background:{c}"></i>{escape(stage)}</span>' for stage, (c, _) in STAGES.items())


def band_legend(bands: Sequence[str]) -> str:
    """The bands, their colours and shapes."""
    parts = []
    for band in bands:
        colour, shape = BAND_STYLE.get(band, _UNKNOWN)
        mark = f'<svg viewBox="-5 -5 10 10" width="14" height="14"><path fill="{colour}" d="{_SHAPES[shape]}"/></svg>'
        parts.append(f"<span>{mark}{escape(band or 'no band')}</span>")
    return "".join(parts)


def _view(middle: Any, ends: Any) -> tuple[float, float]:
    """What is in sight: all medians, and of the ranges what is not an outlier."""
    low, high = float(np.percentile(ends[:, 0], 5)), float(np.percentile(ends[:, 1], 95))
    low, high = min(low, float(middle.min())), max(high, float(middle.max()))
    pad = 0.06 * (high - low) or max(abs(high) * 0.02, 1e-3)
    return low - pad, high + pad


def _scale(values: Any, low: float, high: float, start: float, stop: float) -> Any:
    return start + (stop - start) * ((values - low) / (high - low) if high > low else 0.5 + 0 * values)


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two ends."""
    rough = (high - low) / most
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def _band_of(limits: tuple[float | None, float | None] | None, low: float, high: float, y: Any) -> str:
    """The Acceptable range as a pale ground, where one of its ends is in sight."""
    if limits is None:
        return ""
    bottom, top = (end if v is None else v for v, end in zip(limits, (low, high), strict=True))
    if (bottom <= low and top >= high) or bottom >= high or top <= low:
        return ""
    ends = sorted((float(y(max(bottom, low))), float(y(min(top, high)))))
    return (
        f'<rect class="good" x="{_LEFT}" y="{ends[0]:.1f}" width="{_WIDTH - _LEFT}" '
        f'height="{ends[1] - ends[0]:.1f}"><title>Acceptable</title></rect>'
    )


def _axes(times: Any, x: Any, ticks: Sequence[float], y: Any, form: str = "") -> str:
    floor = _HEIGHT - _BOTTOM
    lines = "".join(
        f'<path class="grid" d="M{_LEFT} {y(t):.1f}H{_WIDTH}"/><text x="{_LEFT - 6}" y="{y(t) + 3.5:.1f}" '
        f'text-anchor="end">{t:g}</text>'
        for t in ticks
    )
    shown = sorted(
        {0, len(times) - 1, *(int(np.abs(times - t).argmin()) for t in np.linspace(times.min(), times.max(), 5))}
    )
    places: list[int] = []
    for i in sorted(shown, key=lambda i: x[i]):
        if not places or x[i] - x[places[-1]] > 48:
            places.append(i)
    marks = "".join(
        f'<text x="{x[i]:.1f}" y="{floor + 14:.0f}" text-anchor="middle">'
        f"{form.format(times[i]) if form else _clock(float(times[i]), float(np.ptp(times)))}</text>"
        for i in places
    )
    return f'{lines}<path class="floor" d="M{_LEFT} {floor}H{_WIDTH}"/>{marks}'


def _clock(hours: float, span_h: float) -> str:
    seconds = round(hours * 3600) % 86_400
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}"
    return text if span_h > 0.2 else f"{text}:{seconds % 60:02d}"


def _figure(label: str, body: str) -> str:
    return (
        f'<figure class="plot"><figcaption><b>{escape(label)}</b></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(label)}">{body}</svg></figure>'
    )
