"""The PPDB on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apflow.io.ppdb.operations import Contents
from apflow.io.ppdb.operations_check import Violation
from apflow.io.ppdb.operations_dedup import Duplicate
from apflow.io.ppdb.postgres.partitions import Partition
from apflow.operate.alert_facts import utc


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="grey62")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000.0:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000.0
    return f"{size:.1f} TB"


def print_contents(found: Contents, console: Console) -> None:
    """What is in a PPDB."""
    for name, value in found.versions.items():
        console.print(f"{name}: {value}", highlight=False)
    states = ", ".join(f"{n:,} {state}" for state, n in found.states.items())
    console.print(f"{found.n_visits:,} visits; detector-visits: {states or 'none'}", highlight=False)
    console.print(f"{found.n_pending:,} alerts wait to be published", highlight=False)
    if found.first_mjd_tai is not None and found.last_mjd_tai is not None:
        first, last = found.first_mjd_tai, found.last_mjd_tai
        span = f"MJD {first:.5f} to {last:.5f} (TAI), {utc(first)} to {utc(last)} (UTC)"
        console.print(f"DiaSources from {span}", highlight=False)
    table = _table("table", "rows", "size", right=("rows", "size"))
    for name, n in found.rows.items():
        table.add_row(name, f"{n:,}", _bytes(found.size_bytes[name]))
    console.print(table)


def print_columns(columns: pd.DataFrame, console: Console) -> None:
    """Columns of a table, as `apflow.io.ppdb.operations.columns` gives them."""
    table = _table("column", "type", "null", "unit", "description")
    for name, kind, unit, description, nullable in columns.itertuples(index=False):
        table.add_row(name, kind, "yes" if nullable else "no", unit, Text(description))
    console.print(table)


def print_violations(found: Sequence[Violation], checked: int, console: Console) -> None:
    """The invariants that do not hold, and what to do."""
    if not found:
        console.print(f"clean: {checked} invariants hold", highlight=False)
        return
    table = _table("does not hold", "times", "for example", "what to do", right=("times",))
    for v in found:
        table.add_row(v.invariant, f"{v.count:,}", Text("\n".join(v.examples)), v.remedy)
    console.print(table)
    console.print(f"{len(found)} of {checked} invariants do not hold", highlight=False)


def print_duplicates(found: Sequence[Duplicate], console: Console) -> None:
    """Pairs of DiaObjects for one thing."""
    if found:
        table = _table("kept", "merged into it", "arcsec", "DiaSources", right=("arcsec", "DiaSources"))
        for d in found:
            table.add_row(str(d.kept), str(d.dropped), f"{d.separation_arcsec:.3f}", f"{d.n_sources:,}")
        console.print(table)


def print_partitions(found: Sequence[Partition], console: Console) -> None:
    """Partitions with their months; rows as the server estimates them."""
    table = _table("table", "partition", "from", "before (TAI)", "rows", "size", right=("rows", "size"))
    for p in found:
        span = ["any", "other"] if p.from_mjd_tai is None else [_day(p.from_mjd_tai), _day(p.to_mjd_tai or 0.0)]
        table.add_row(p.table, p.name, *span, "?" if p.rows is None else f"{p.rows:,}", _bytes(p.size_bytes))
    console.print(table)


def _day(mjd: float) -> str:
    return str(pd.Timestamp("1858-11-17") + pd.Timedelta(days=mjd))[:10]


def print_counts(counts: Mapping[str, int], console: Console) -> None:
    """Rows by table."""
    table = _table("table", "rows", right=("rows",))
    for name, n in counts.items():
        table.add_row(name, f"{n:,}")
    console.print(table)
