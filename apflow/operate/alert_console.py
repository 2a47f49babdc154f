"""Alerts on the console: tables, and where the terminal can, stamps and light curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from apflow.operate.alert_checks import CHECKS, Report
from apflow.operate.alert_curve import Curve, light_curve, span, time_unit
from apflow.operate.alert_facts import facts, title, utc
from apflow.operate.alert_stamps import STAMPS, greys

_STATES = {"sent": "green", "late": "yellow", "pending": "cyan", "refused": "red", "withdrawn": "grey62"}
#: Bright enough on a dark ground.
_BANDS = {"u": "#8b7bff", "g": "#31de1f", "r": "#ff6b6b", "i": "#d9a066", "z": "#ba52ff", "y": "#61a2b3"}
#: Characters that the whole listing takes.
_WIDE = 124
_CURVE = (88, 10)  # columns and lines
#: Bits of a braille character's dots, [row][column].
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def open_console() -> Console:
    """The terminal; a file or a pipe is as wide as the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


def print_listing(alerts: pd.DataFrame, console: Console, limit: int) -> None:
    """A table of alerts as `apflow.operate.alert_list.list_alerts` gives them; at most `limit` of them."""
    shown = _columns(alerts.head(limit))
    for name in ("archive B", "object", "observed UTC", "flux nJy"):  # ids are to be copied: they stay whole
        if sum(2 + max(len(str(cell)) for cell in [key, *column]) for key, column in shown.items()) > console.width:
            del shown[name]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="grey62")
    for name in shown:
        left = name in ("alert", "object", "band", "state")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    if len(alerts):
        console.print(table)
    counts = ", ".join(f"{n:,} {state}" for state, n in alerts["state"].value_counts().items())
    more = f"; the first {limit:,} are shown, see --limit" if len(alerts) > limit else ""
    console.print(f"{len(alerts):,} alerts{': ' + counts if counts else ''}{more}", highlight=False)


def _columns(alerts: pd.DataFrame) -> dict[str, list[str | Text]]:
    rows = alerts.to_dict("records")
    return {
        "alert": [str(row["alert_id"]) for row in rows],
        "object": [str(row["object_id"]) for row in rows],
        "visit": [str(row["visit"]) for row in rows],
        "det": [str(row["detector"]) for row in rows],
        "band": [str(row["band"]) for row in rows],
        "S/N": [f"{row['snr']:.1f}" for row in rows],
        "flux nJy": [f"{row['psfFlux']:,.0f}" for row in rows],
        "observed UTC": [utc(t)[5:] if math.isfinite(t := row["midpointMjdTai"]) else "" for row in rows],
        "archive B": [f"{row['length']:,}" for row in rows],
        "state": [Text(row["state"], _STATES[row["state"]]) for row in rows],
    }


def print_alert(alert: Mapping[str, Any], console: Console) -> None:
    """An alert: stamps and light curve on a terminal with colours, what is known of it anywhere."""
    source = alert["diaSource"]
    console.print(Text(title(alert), "bold"))
    console.print(
        f"RA {source['ra']:.6f}  Dec {source['dec']:+.6f}  visit {source['visit']}  detector {source['detector']}"
        f"  MJD {source['midpointMjdTai']:.5f} TAI",
        highlight=False,
        soft_wrap=True,
    )
    if console.is_terminal and console.color_system in ("256", "truecolor"):  # with fewer, greys are all one
        console.print(_stamps(alert, console.width))
        console.print(_drawn(light_curve(alert), min(_CURVE[0], console.width - 1)))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts(alert).items():
        table.add_row(Text(name, "grey62"), value)
    console.print(table)


def _stamps(alert: Mapping[str, Any], width: int) -> Text:
    """The stamps side by side, two pixels a character."""
    pictures = {name: plane[::-1] for name, plane in greys(alert).items()}
    columns = (width - 2 * (len(STAMPS) - 1)) // len(STAMPS)
    small = {name: plane[:: (step := -(-plane.shape[1] // columns)), ::step] for name, plane in pictures.items()}
    heights = max((len(plane) for plane in small.values()), default=0)
    text = Text("  ".join(name.ljust(plane.shape[1]) for name, plane in small.items()) + "\n", "grey62")
    for y in range(0, heights, 2):
        for plane in small.values():
            upper, lower = (plane[y + k] if y + k < len(plane) else np.zeros_like(plane[0]) for k in (0, 1))
            for a, b in zip(upper.tolist(), lower.tolist(), strict=True):
                text.append("▀", Style(color=Color.from_rgb(a, a, a), bgcolor=Color.from_rgb(b, b, b)))
            text.append("  ")
        text.append("\n")
    text.right_crop(1)
    return text


def _drawn(curve: Curve, columns: int) -> Text:
    """The light curve in braille, one dot a flux, with its limits."""
    unit, per_day = time_unit(curve.days)
    times = curve.days * per_day
    xlim, ylim = span(times, 1.0), span(np.append(curve.flux, 0.0), 1.0)
    lines = _CURVE[1]
    x = _cells(times, xlim, 2 * columns)
    y = 4 * lines - 1 - _cells(curve.flux, ylim, 4 * lines)
    bits, colours = np.zeros((lines, columns), int), np.full((lines, columns), "", object)
    for px, py, band in zip(x.tolist(), y.tolist(), curve.band, strict=True):
        bits[py // 4, px // 2] |= _DOTS[py % 4][px % 2]
        colours[py // 4, px // 2] = _BANDS.get(band, "white")
    text = Text(f"{ylim[1]:,.0f} nJy    {'  '.join(curve.bands)}\n", "grey62")
    for row, shades in zip(bits.tolist(), colours.tolist(), strict=True):
        for bit, shade in zip(row, shades, strict=True):
            text.append(chr(0x2800 + bit) if bit else " ", shade or None)
        text.append("\n")
    text.append(f"{ylim[0]:,.0f} nJy    {xlim[0]:.4g} to {xlim[1]:.4g} {unit} from this alert", "grey62")
    return text


def _cells(values: NDArray[np.float64], limits: tuple[float, float], count: int) -> NDArray[np.int64]:
    return np.clip((values - limits[0]) / (limits[1] - limits[0]) * count, 0, count - 1).astype(np.int64)


def print_report(report: Report, console: Console) -> None:
    """The table of ``verify``, then the first problems of each kind."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="grey62")
    table.add_column("check")
    table.add_column("alerts", justify="right")
    table.add_column("problems", justify="right")
    table.add_column("what holds")
    for name, meaning in CHECKS.items():
        n = len(report.problems[name])
        table.add_row(name, f"{report.checked[name]:,}", Text(f"{n:,}", "red" if n else "green"), meaning)
    console.print(table)
    for name, problems in report.problems.items():
        for problem in problems[:3]:
            console.print(Text.assemble((f"{name}: ", "red"), problem), soft_wrap=True)
        if len(problems) > 3:
            console.print(f"{name}: {len(problems) - 3:,} more", style="red", highlight=False)
    for note in report.notes:
        console.print(note, highlight=False, soft_wrap=True)
