"""A score on the console: figures, and completeness and purity by bin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.table import Table


def print_score(score: Mapping[str, Any], console: Console) -> None:
    """Print what `apflow.operate.score.score_run` gives."""
    figures = _table("Score", ("", "value"))
    for name, value in score.items():
        if not isinstance(value, list):
            figures.add_row(name, value if isinstance(value, str) else _number(value))
    console.print(Columns([figures, _bins("S/N", "snr", score["by_snr"])], padding=(0, 4)))
    console.print(_bins("Magnitude", "mag", score["by_mag"]))


def _bins(title: str, name: str, rows: list[Mapping[str, Any]]) -> Table:
    table = _table(f"By {title}", ("from", "to", "completeness", "true", "purity", "sources"))
    for row in rows:
        edges = (f"{row[f'{name}_{end}']:g}" if math.isfinite(row[f"{name}_{end}"]) else "" for end in ("low", "high"))
        shares = [(_share(row, what), f"{row[n]}") for what, n in (("completeness", "n_true"), ("purity", "n_sources"))]
        table.add_row(*edges, *shares[0], *shares[1])
    return table


def _share(row: Mapping[str, Any], what: str) -> str:
    """A share with how far its limits are above and below."""
    value = row[what]
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f} +{row[f'{what}_high'] - value:.3f} -{value - row[f'{what}_low']:.3f}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:d}" if isinstance(value, int) else f"{value:.4g}"


def _table(title: str, head: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i or len(head) > 2 else "left", header_style="grey62")
    return table
