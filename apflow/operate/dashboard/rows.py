"""What a page and a terminal say of a night: rows of visits, times of steps."""

from __future__ import annotations

import math
import time

from apflow.model.ap_metrics import STEPS
from apflow.model.ledger import State
from apflow.operate.dashboard.feed import TABLE_METRICS, Feed, Visit
from apflow.operate.night.ranges import Ranges

_READOUT = "end of readout to alerts"
_VERDICTS = ("", "acceptable", "warning", "alert")
_TIMES = {"latency_p50": "p50, s", "latency_p98": "p98, s"}
HEADS = {
    "visit": "visit",
    "utc": "UTC",
    "band": "band",
    "detectors": "detectors",
    "not_done": "not done",
    "alerts": "alerts",
    "on_time": "in 60 s",
    **_TIMES,
    **TABLE_METRICS,
}
#: Columns that have a verdict.
JUDGED = ("not_done", "on_time", *_TIMES, *TABLE_METRICS)
#: Parts that LSE-61 limits, and their limits.
LIMITS = {
    "on_time_fraction": ("alerts within 60 s", "at least 98 %"),
    "late_visit_fraction": ("visits late", "at most 1 %"),
    "lost_visit_fraction": ("visits without alerts", "at most 0.1 %"),
    "missed_detector_fraction": ("detectors missed", ""),
}


def visit_row(visit: Visit, ranges: Ranges) -> dict[str, tuple[str, str]]:
    """(text, verdict) by column; the verdict is empty where there is none."""
    states = visit.states()
    n_alerts, on_time = visit.alerts()
    latencies = visit.latencies()
    ended = sum(states.values())
    missing = ", ".join(f"{n} {state}" for state, n in states.most_common() if state != State.DONE)
    worst = [ranges.verdict(f"n_{s}", float(n), visit.band) or "warning" for s, n in states.items() if s != State.DONE]
    part = on_time / n_alerts if n_alerts else math.nan
    row = {
        "visit": (str(visit.visit), ""),
        "utc": (time.strftime("%H:%M:%S", time.gmtime(visit.announced_unix)) if visit.announced_unix > 0 else "", ""),
        "band": (visit.band, ""),
        "detectors": (f"{ended}/{visit.n_detectors}" if visit.ended else f"{ended}/{visit.n_detectors} …", ""),
        "not_done": (missing, max(worst, key=_VERDICTS.index, default="")),
        "alerts": (f"{n_alerts:,}" if ended else "", ""),
        "on_time": (f"{100 * part:.1f} %" if n_alerts else "", ranges.verdict("on_time_fraction", part)),
    }
    for name, percent in zip(_TIMES, (0.5, 0.98), strict=True):
        value = latencies[min(len(latencies) - 1, int(percent * len(latencies)))] if latencies else math.nan
        row[name] = (f"{value:.1f}" if latencies else "", ranges.verdict("alert_latency_s", value))
    for metric in TABLE_METRICS:
        value = visit.median(metric)
        row[metric] = (f"{value:.2f}" if math.isfinite(value) else "", ranges.verdict(metric, value, visit.band))
    return row


def stage_percentiles(feed: Feed) -> list[tuple[str, float, float]]:
    """(name, median, 98th percentile), s, in the order of the graph; last the time that LSE-61 limits."""
    order = [*STEPS, *(name for name in feed.stages if name not in STEPS)]
    rows = [(name, feed.stages[name]) for name in order if name in feed.stages]
    rows += [(_READOUT, feed.latency)] if feed.latency.n else []
    return [(name, d.percentile(50), d.percentile(98)) for name, d in rows]
