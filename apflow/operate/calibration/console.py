"""What ``apflow calibration`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from apflow.operate.calibration.summary import remarks

COLOURS = {"Acceptable": "green", "Warning": "yellow", "Alert": "red"}


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """The verdict on an exposure, and the detectors that are not Acceptable with the reasons."""
    verdict = summary["verdict"] or "not checked"
    where = f" in {summary['physical_filter']}" if summary["physical_filter"] else ""
    counts = [f"{n} {name}" for name, n in {**summary["verdicts"], **_not_done(summary)}.items()]
    console.print(
        Text.assemble(
            f"{summary['image']} {summary['intent']}{where}: ",
            (verdict, f"bold {COLOURS.get(verdict, 'magenta')}"),
            f" ({', '.join(counts)})",
        ),
        soft_wrap=True,
    )
    found = remarks(summary)
    if not found:
        return
    table = Table("detector", "verdict", "why", box=None, pad_edge=False)
    for names, shown, why in found:
        table.add_row(names, Text(shown, COLOURS.get(shown, "magenta")), Text(why))
    console.print(table)


def _not_done(summary: Mapping[str, Any]) -> dict[str, int]:
    return {state: n for state, n in summary["states"].items() if state != "done"}
