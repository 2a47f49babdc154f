"""Options that several commands have, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable

import typer

from apflow.errors import BadRequest

Filter = typer.Option("--filter", help="Physical filter or band.")
Ppdb = typer.Option(
    "--ppdb", help="duckdb:///path, postgresql://user@host/database, dax:///config.yaml; default: in the repository."
)
Alerts = typer.Option(
    "--alerts",
    help="file:///folder of the alert archive (default: in the repository), or kafka://host:port/topic or "
    "kafka://embedded, where alerts are sent besides.",
)


def number[N: (int, float)](kind: type[N], low: float, high: float) -> Callable[[object], N]:
    """A parser of numbers from `low` to `high` for an option."""

    def parse(text: object) -> N:
        try:
            value = kind(str(text))
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            raise typer.BadParameter(f"{str(text)!r} is not accepted: {what} from {low} to {high}")
        return value

    return parse


def parse_size(text: str) -> int | None:
    """``small`` (512), ``full`` (None) or a number of pixels."""
    if text in ("small", "full"):
        return 512 if text == "small" else None
    if not text.isdigit():
        raise BadRequest(f"--size {text!r} is not accepted: small, full, or a number of pixels")
    return int(text)
