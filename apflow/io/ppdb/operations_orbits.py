"""Orbits of the Minor Planet Center, loaded into mpc_orbits."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from apflow.errors import DataError
from apflow.io.ppdb.interface import Ppdb, Statement
from apflow.io.ppdb.operations import open_parquet
from apflow.io.ppdb.tables import described, to_arrow
from apflow.model import schema

_ORBITS = "mpc_orbits"
#: Rows of a transaction: while it runs, no visit is stored.
_CHUNK = 50_000


def load_orbits(ppdb: Ppdb, path: Path) -> int:
    """Load orbits of Solar System objects, columns as in mpc_orbits, from a Parquet file; gives their number.

    An orbit takes the place of those that have its designation or its id:
    loading again, or after an interruption, does no harm.

    Raises
    ------
    BadRequest
        The file is not there.
    DataError
        It is no Parquet file, a column is missing, unknown or not acceptable,
        or a designation comes twice.
    """
    file = open_parquet(path)
    names = ", ".join(f'"{n}"' for n in described(_ORBITS).names)
    changes = ", ".join(f'"{n}" = excluded."{n}"' for n in described(_ORBITS).names if n != "id")
    outdated = "designation IN (SELECT designation FROM new_rows) AND id NOT IN (SELECT id FROM new_rows)"
    added = f"INSERT INTO {_ORBITS} ({names}) SELECT {names} FROM new_rows ON CONFLICT (id) DO UPDATE SET {changes}"
    total = 0
    for rows in file.iter_batches(_CHUNK):
        new = {"new_rows": _orbits(rows, path)}
        ppdb.change([Statement(f"DELETE FROM {_ORBITS} WHERE {outdated}", new), Statement(added, new)])
        total += rows.num_rows
    return total


def _orbits(rows: pa.RecordBatch, path: Path) -> pa.Table:
    """Rows of mpc_orbits as they are stored: conforming, with times as times."""
    times = [c.name for c in described(_ORBITS).columns if c.datatype == "timestamp"]
    try:
        made = {
            name: rows.column(name).cast(pa.timestamp("us")) if name in rows.schema.names else pa.nulls(rows.num_rows)
            for name in times
        }
        others = rows.select([n for n in rows.schema.names if n not in times]).to_pandas()
        table = to_arrow(schema.conform(others, _ORBITS), _ORBITS)
    except (pa.ArrowException, DataError) as error:
        raise DataError(f"{path}: {error}") from error
    for name in ("designation", "id"):
        twice = others[name][others[name].duplicated()]
        if len(twice):
            raise DataError(f"{path}: {name} {twice.iloc[0]} comes twice; accepted: one orbit for each")
    for name, values in made.items():
        table = table.set_column(table.column_names.index(name), name, values.cast(pa.timestamp("us")))
    return table
