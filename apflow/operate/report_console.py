"""The tables at the end of a run, on the console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.table import Table

_COLOURS = {"done": "green", "failed": "red", "image_timeout": "yellow", "bad_data": "dark_orange"}

#: What is shown of how a run fitted into the machine.
FOOTPRINT = {
    "rafts_at_a_time": "rafts at a time, 0 for all",
    "n_graphs": "graphs that were run",
    "peak_memory_gib": "peak memory of all processes, GiB",
    "peak_disk_gb": "peak disk, GB",
    "simulation_wall_s": "simulating, s",
}


def print_tables(summary: Mapping[str, Any], console: Console) -> None:
    """Print states, latency, score and figures side by side, then the steps.

    Parameters
    ----------
    summary : `~collections.abc.Mapping`
        The contract of ``--json``.
    console : `rich.console.Console`
    """
    console.print(Columns([_states(summary), _latency(summary), _score(summary), _figures(summary)], padding=(0, 3)))
    console.print(_stages(summary))


def _states(summary: Mapping[str, Any]) -> Table:
    counts = dict(summary["detector_visits"])
    expected = counts.pop("expected")
    rows = [
        (f"[{_COLOURS.get(s, 'grey62')}]{s}[/]", str(n), _percent(n / max(expected, 1)))
        for s, n in counts.items()
        if n or s == "done"
    ]
    return _table("Detector-visits", ("state", "n", "share"), [*rows, ("expected", str(expected), "")])


def _latency(summary: Mapping[str, Any]) -> Table:
    rows = [(name, _number(value)) for name, value in summary["latency_s"].items()]
    return _table("Readout to alert", ("", "s"), rows)


def _score(summary: Mapping[str, Any]) -> Table:
    rows = [(name, _number(value)) for name, value in summary["score"].items() if not isinstance(value, list)]
    return _table("Score", ("", "value"), rows)


def _figures(summary: Mapping[str, Any]) -> Table:
    rows = [
        ("alerts", str(summary["alerts"])),
        ("core-s per detector", _number(summary["core_s_per_detector"])),
        ("peak memory of a worker, MiB", _number(summary["peak_rss_mib"])),
        *((FOOTPRINT[name], _number(value)) for name, value in summary.get("footprint", {}).items()),
        ("wall, s", _number(summary["wall_s"])),
    ]
    return _table("Run", ("", "value"), rows)


def _stages(summary: Mapping[str, Any]) -> Table:
    rows = [
        (name, *(_number(stage.get(key)) for key in ("core_s", "p50_s", "p98_s")))
        for name, stage in summary["stages"].items()
    ]
    return _table("Steps", ("step", "core-s", "p50 s", "p98 s"), rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", header_style="grey62")
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
