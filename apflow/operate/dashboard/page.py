"""The page ``/apflow``: a night as it goes, drawn anew only where something changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import Div, Select

from apflow.model.ledger import State
from apflow.operate.dashboard.charts import Gantt, Stages
from apflow.operate.dashboard.colours import VERDICT
from apflow.operate.dashboard.feed import Feed, Visit
from apflow.operate.dashboard.night_camera import config_of, night_camera
from apflow.operate.dashboard.plane import Plane
from apflow.operate.dashboard.rows import LIMITS
from apflow.operate.dashboard.tracker import Tracker
from apflow.operate.dashboard.visit_table import SHOWN, VisitTable
from apflow.operate.dashboard.worker_table import WorkerTable
from apflow.operate.night.ranges import Ranges, load_ranges

_UPDATE_MS = 1000
#: Percentiles of the night and the memory of workers move slowly: every so many updates.
_SLOW = 3
_NEWEST = "newest"


class Page:
    """Makes the page for each browser that opens it.

    Parameters
    ----------
    feed : `Feed`
        The night.
    tracker : `Tracker`
        Steps of detectors at the moment.
    scheduler : `distributed.Scheduler`
        Whose workers are shown.
    """

    def __init__(self, feed: Feed, tracker: Tracker, scheduler: Any) -> None:
        self._feed, self._tracker, self._scheduler = feed, tracker, scheduler

    def add_to(self, document: Document) -> None:
        """Fill a browser's document, and keep it up to date."""
        config = config_of(self._feed)
        session = _Session(
            self._feed, self._tracker, self._scheduler, load_ranges(config.night.ranges if config else "")
        )
        document.title = f"apflow {self._feed.folder.name}"
        document.add_root(session.layout)
        session.update()
        document.add_periodic_callback(session.update, _UPDATE_MS)


class _Session:
    """The panes of one browser."""

    def __init__(self, feed: Feed, tracker: Tracker, scheduler: Any, ranges: Ranges) -> None:
        self._feed, self._tracker, self._scheduler, self._ranges = feed, tracker, scheduler, ranges
        self._plane, self._gantt, self._stages = Plane(), Gantt(), Stages()
        self._visits, self._workers = VisitTable(ranges), WorkerTable()
        self._tiles = Div(sizing_mode="stretch_width", name="tiles")
        self._choice = Select(title="Visit", value=_NEWEST, options=[_NEWEST], width=170)
        self._title = Div(width=560, height=22, name="title")
        self._versions = (-1, -1)
        self._drawn: tuple[int, int] | None = None
        self._read: tuple[int, int, Visit] | None = None
        self._n_updates = 0
        self._choice.on_change("value", self._chosen)
        self._plane.select.on_change("value", self._chosen)
        self._gantt.select.on_change("value", self._chosen)
        self._visits.source.selected.on_change("indices", self._row_chosen)
        left = column(
            row(self._choice, self._plane.select, self._gantt.select),
            self._title,
            self._plane.figure,
            self._plane.legend,
            width=580,
        )
        right = column(
            self._visits.table,
            self._stages.figure,
            self._gantt.figure,
            self._gantt.legend,
            sizing_mode="stretch_width",
        )
        below = column(Div(text="<b>Workers</b>"), self._workers.table, width=580)
        self.layout = column(
            self._tiles,
            row(column(left, below, width=590), right, sizing_mode="stretch_width"),
            sizing_mode="stretch_width",
            styles={"max-width": "1700px", "margin": "0 auto", "font-family": "system-ui, sans-serif"},
        )

    def update(self) -> None:
        """What changed since the last time."""
        self._n_updates += 1
        is_slow_turn = self._n_updates % _SLOW == 1
        if is_slow_turn:
            self._workers.update(self._scheduler)
        versions = (self._feed.version, self._tracker.version)
        if versions != self._versions:
            if versions[0] != self._versions[0]:
                self._visits.update(self._feed)
                self._offer()
                self._tiles.text = tiles(self._feed, len(self._scheduler.workers), self._ranges)
            self._versions = versions
            self._draw()
        if is_slow_turn:
            self._stages.update(self._feed)

    def _draw(self, anew: bool = False) -> None:
        """The panes about one visit."""
        if not self._plane.has_camera and (camera := night_camera(self._feed)):
            self._plane.set_camera(camera)
        visit = self._shown()
        steps: Mapping[str, str] = self._tracker.steps.get(visit.visit, {}) if visit else {}
        self._plane.update(visit, steps)
        before, self._drawn = self._drawn, (visit.visit, visit.version) if visit else None
        self._visits.mark(visit.visit if visit else None)
        if self._drawn != before or anew:
            self._gantt.update(visit)
            self._title.text = _headline(visit)

    def _shown(self) -> Visit | None:
        """The visit that was chosen, or the newest one that has something to show, with its metrics."""
        if self._choice.value == _NEWEST:
            visits = reversed(self._feed.visits.values())
            return next(
                (v for v in visits if any(d.state or d.steps for d in v.detectors.values())), self._feed.newest()
            )
        number = int(self._choice.value)
        known = self._feed.visits[number]
        if known.detailed:
            return known
        if self._read is None or self._read[:2] != (number, known.version):
            again = self._feed.detailed(number)
            self._read = (number, known.version, again) if again else None
        return self._read[2] if self._read else known

    def _offer(self) -> None:
        options = [_NEWEST, *map(str, list(self._feed.visits)[: -SHOWN - 1 : -1])]
        if self._choice.value not in options:
            options.append(self._choice.value)
        if options != self._choice.options:
            self._choice.options = options

    def _chosen(self, _attribute: str, _old: str, _new: str) -> None:
        self._draw(anew=True)

    def _row_chosen(self, _attribute: str, _old: list[int], new: list[int]) -> None:
        """A row of the table chooses its visit; that of the visit which is shown anyway does not."""
        if new and (self._drawn is None or self._visits.visit_at(new[0]) != self._drawn[0]):
            self._choice.value = str(self._visits.visit_at(new[0]))


def tiles(feed: Feed, n_workers: int, ranges: Ranges) -> str:
    """The verdict on the night and its sums, as HTML."""
    verdict = feed.verdict()
    ended = sum(v.ended for v in feed.visits.values())
    expected = sum(v.n_detectors for v in feed.visits.values())
    not_done = ", ".join(f"{n} {s}" for s, n in feed.states.most_common() if n and s != State.DONE)
    parts = [
        _tile(f"{ended} of {len(feed.visits)}", "visits ended", ""),
        _tile(f"{sum(feed.states.values()):,} of {expected:,}", "detector-visits ended", "", not_done),
    ]
    for name, (text, limit) in LIMITS.items():
        value = verdict[name]
        shown = f"{100 * value:.4g} %" if math.isfinite(value) else "–"
        parts.append(_tile(shown, text, ranges.verdict(name, value), limit))
    p50, p98 = feed.latency.percentile(50), feed.latency.percentile(98)
    known = f"{p50:.1f} · {p98:.1f} s" if feed.latency.n else "–"
    parts += [
        _tile(known, "to the alerts, p50 · p98", ranges.verdict("alert_latency_s", p98), "at most 60 s"),
        _tile(f"{feed.n_alerts:,}", "alerts", ""),
        _tile(f"{feed.n_unsent:,.0f}", "unsent alerts", ranges.verdict("n_unsent_alerts", feed.n_unsent)),
        _tile(str(n_workers), "workers", "", f"{feed.events['worker', 'lost']} lost"),
    ]
    shed, again, late = (sum(n for (kind, _), n in feed.events.items() if kind == k) for k in ("shed", "rerun", "late"))
    if shed or again or late:
        parts.append(_tile(f"{shed} · {again} · {late}", "steps shed · run elsewhere too · late", ""))
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(parts)}</div>'


def _tile(value: str, text: str, verdict: str, note: str = "") -> str:
    colour = VERDICT[verdict] if verdict else "#f1f3f6"
    tail = f'<small style="color:#5d6878"> {escape(note)}</small>' if note else ""
    return (
        f'<div class="tile {verdict}" style="background:{colour};border-radius:8px;padding:6px 10px">'
        f'<div style="font-size:19px;font-weight:600;white-space:nowrap">{escape(value)}</div>'
        f'<span style="color:#3c4656">{escape(text)}</span>{tail}</div>'
    )


def _headline(visit: Visit | None) -> str:
    if visit is None:
        return "no visit yet"
    ended = sum(visit.states().values())
    state = "ended" if visit.ended else "under way"
    return f"<b>{visit.visit}</b> · band {escape(visit.band)} · {state}, {ended} of {visit.n_detectors} detectors ended"
