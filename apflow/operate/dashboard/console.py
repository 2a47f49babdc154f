"""A night in a terminal: the essentials of the page, from its records alone."""

from __future__ import annotations

import math
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from apflow.model.ledger import State
from apflow.operate.dashboard.feed import TABLE_METRICS, Feed
from apflow.operate.dashboard.night_camera import config_of
from apflow.operate.dashboard.rows import HEADS, JUDGED, LIMITS, stage_percentiles, visit_row
from apflow.operate.interrupts import interruptible
from apflow.operate.night.ranges import Ranges, load_ranges

_STYLES = {"": "", "acceptable": "green", "warning": "yellow", "alert": "bold red"}
_EVERY_S = 1.0
#: Lines that are not rows of visits: the verdict, its heads and those of the tables, and the steps.
_OTHER_LINES, _FEWEST = 33, 5
#: Columns of characters that all of the table needs; where there are fewer, metrics are left out.
_WIDE = 125


def watch_night(folder: Path, *, once: bool) -> None:
    """Show a night until Ctrl-C, or `once`.

    Parameters
    ----------
    folder : `pathlib.Path`
        Of the night.
    once : `bool`
        Print what is there now, and return.
    """
    feed, console = Feed(folder), Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)
    config = config_of(feed)
    ranges = load_ranges(config.night.ranges if config else "")
    feed.refresh(math.inf)
    if once:
        console.print(night_lines(feed, ranges, len(feed.visits), console.width))
        return
    with interruptible(), Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        version = -1
        while True:
            if feed.version != version:
                version = feed.version
                room = max(_FEWEST, console.size.height - _OTHER_LINES)
                live.update(night_lines(feed, ranges, room, console.width), refresh=True)
            time.sleep(_EVERY_S)
            feed.refresh(math.inf)


def night_lines(feed: Feed, ranges: Ranges, n_visits: int, width: int) -> Group:
    """Verdict, visits newest first, and times of the steps."""
    heads = {name: head for name, head in HEADS.items() if width >= _WIDE or name not in TABLE_METRICS}
    return Group(_verdict(feed, ranges), _visits(feed, ranges, n_visits, heads), Text(), _steps(feed))


def _verdict(feed: Feed, ranges: Ranges) -> Text:
    verdict = feed.verdict()
    ended = sum(v.ended for v in feed.visits.values())
    expected = sum(v.n_detectors for v in feed.visits.values())
    states = ", ".join(f"{feed.states[s]} {s}" for s in State if feed.states[s])
    lines = Text(f"night {feed.folder.name}: {ended} of {len(feed.visits)} visits ended\n")
    lines.append(f"{expected} detector-visits expected: {states or 'none ended'}\n")
    for name, (label, limit) in LIMITS.items():
        known = verdict[name]
        style = _STYLES[ranges.verdict(name, known)]
        lines.append(f"{label} ").append(f"{100 * known:.4g} %" if math.isfinite(known) else "–", style)
        lines.append(f" ({limit})   " if limit else "")
    unsent = _STYLES[ranges.verdict("n_unsent_alerts", feed.n_unsent)]
    lines.append(f"\n{feed.n_alerts} alerts, ").append(f"{feed.n_unsent:.0f} unsent", unsent)
    shed, again, late = (sum(n for (kind, _), n in feed.events.items() if kind == k) for k in ("shed", "rerun", "late"))
    lines.append(f"   {feed.events['worker', 'lost']} workers lost, {shed} steps shed, {again} run elsewhere as well, ")
    lines.append(f"{late} late for their batch\n")
    return lines


def _visits(feed: Feed, ranges: Ranges, n_visits: int, heads: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, head in heads.items():
        table.add_column(
            head, justify="left" if name in ("visit", "utc", "band", "not_done") else "right", no_wrap=True
        )
    for visit in list(feed.visits.values())[: -n_visits - 1 : -1]:
        row = visit_row(visit, ranges)
        table.add_row(*(Text(row[n][0], _STYLES[row[n][1]] if n in JUDGED else "") for n in heads))
    return table


def _steps(feed: Feed) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("step", "p50, s", "p98, s"):
        table.add_column(head, justify="left" if head == "step" else "right")
    for name, p50, p98 in stage_percentiles(feed):
        table.add_row(name, f"{p50:.3g}", f"{p98:.3g}")
    return table
