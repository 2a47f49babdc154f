"""Tables of the PPDB in DuckDB, and frames to and from Arrow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from apflow.io.ppdb.blocks import layout
from apflow.io.ppdb.own_tables import OWN
from apflow.io.ppdb.sky_index import pixel_id
from apflow.model import schema
from apflow.model.schema import Column, Table

#: Tables of apdb.yaml that hold rows with a position and its pixelId.
SKY_TABLES = ("DiaObject", "DiaSource", "DiaForcedSource")
MATCHES = "DiaObject_To_Object_Match"
#: Tables that a batch is written to, the largest first: a store that makes and writes them side by side begins there.
BATCH_TABLES = ("DiaSource", "DiaObject", "DiaForcedSource", MATCHES, "SSSource")
#: Tables of apdb.yaml that are kept.
APDB_TABLES = (
    *BATCH_TABLES,
    "DiaObjectLast",
    "SSObject",
    "mpc_orbits",
    "DetectorVisitProcessingSummary",
    "metadata",
)
OWN_TABLES = tuple(OWN)
#: Layout of what apdb.yaml does not say; raise it when it changes.
LAYOUT = "2"

#: Tables that also have pixelId, HEALPix nested order 20 (`apflow.io.ppdb.sky_index`).
PIXEL_TABLES = (*SKY_TABLES, "DiaObjectLast", "DrpObject")
_PIXEL = Column("pixelId", "long", "int64", "", "HEALPix pixel of ra and dec, nested, order 20.", False)
#: Keys that apdb.yaml does not give: a row of these is not to be stored twice either.
_KEYS = {MATCHES: ("diaObjectId", "objectId"), "DetectorVisitProcessingSummary": ("visit", "detector")}
_TYPES = {
    "double": "DOUBLE",
    "float": "FLOAT",
    "long": "BIGINT",
    "int": "INTEGER",
    "short": "SMALLINT",
    "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMP",
}


def described(name: str) -> Table:
    """A table of the PPDB as it is described: of apdb.yaml, or one of our own."""
    return OWN[name] if name in OWN else schema.table(name)


def stored_columns(name: str) -> tuple[Column, ...]:
    """All columns of a table, pixelId included."""
    return described(name).columns + ((_PIXEL,) if name in PIXEL_TABLES else ())


def key_of(name: str) -> tuple[str, ...]:
    """The columns that no two rows of a table share."""
    return _KEYS.get(name) or described(name).primary_key


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def create_statements(names: Iterable[str] = (*APDB_TABLES, *OWN_TABLES)) -> list[str]:
    """SQL that makes tables, units and descriptions included.

    ``column_info`` must be there when the statements on others are run.
    """
    statements = []
    for name in sorted(names, key=lambda n: n != "column_info"):
        table = described(name)
        columns = [column_sql(c) for c in stored_columns(name)]
        key = ", ".join(f'"{c}"' for c in key_of(name))
        statements.append(f'CREATE TABLE "{name}" ({", ".join(columns)}, PRIMARY KEY ({key}))')
        statements.append(f'COMMENT ON TABLE "{name}" IS {_literal(table.description)}')
        statements += [s for i in range(len(columns)) for s in describe_statements(name, i)]
    return statements


def column_sql(column: Column) -> str:
    """A column, for CREATE TABLE."""
    default = " DEFAULT 0" if column.name in ("n_sources", "n_alerts", "trimmed") else ""
    return f'"{column.name}" {_TYPES.get(column.datatype, "VARCHAR")}{"" if column.nullable else " NOT NULL"}{default}'


def describe_statements(name: str, i: int) -> tuple[str, str]:
    """SQL that gives the i-th column of a table its unit and description."""
    c = stored_columns(name)[i]
    text = f"[{c.unit}] {c.description}" if c.unit else c.description
    row = ", ".join(_literal(t) for t in (c.datatype, c.unit, c.description))
    return (
        f'COMMENT ON COLUMN "{name}"."{c.name}" IS {_literal(text)}',
        f"INSERT INTO column_info VALUES ({_literal(name)}, {_literal(c.name)}, {i}, {row}, {c.nullable})",
    )


def stamp_statements() -> list[str]:
    """SQL that notes the versions of the schema and of the layout."""
    versions = {"version:schema": schema.version(), "version:layout": LAYOUT}
    return [f"INSERT OR REPLACE INTO metadata VALUES ({_literal(k)}, {_literal(v)})" for k, v in versions.items()]


def select_list(name: str) -> str:
    """The described columns of a table, for SELECT."""
    return ", ".join(f'"{c}"' for c in described(name).names)


def to_arrow(frame: pd.DataFrame, name: str) -> pa.Table:
    """A conforming frame as Arrow, with pixelId where the table has it; NaN becomes null."""
    # Of the values, not the series: Arrow looks into a series for four times as long as into what it holds.
    columns = {c: pa.array(series.values, from_pandas=True) for c, series in schema.bare(frame).items()}
    if name in PIXEL_TABLES:
        columns["pixelId"] = pa.array(pixel_id(frame["ra"].to_numpy(), frame["dec"].to_numpy()))
    # In one piece: pandas keeps text in as many as it was put together from, and each would be a batch to its reader.
    return pa.table(columns).combine_chunks()


def to_frame(rows: pa.Table, name: str, take: NDArray[np.int64] | None = None) -> pd.DataFrame:
    """Rows of an apdb.yaml table as a conforming frame; null becomes NaN in float columns.

    Parameters
    ----------
    rows, name
        Arrow table with the columns of the table `name`, and perhaps more;
        flags may be bytes, 0 and 1.
    take : `numpy.ndarray`, optional
        Which rows, in which order; default: all.
    """
    made = layout(name)
    room = made.room(rows.num_rows if take is None else len(take))
    texts = []
    whole = np.empty(rows.num_rows)
    for i, column in enumerate(made.names):
        values = rows.column(column)
        if made.text[i] >= 0:
            text = values.combine_chunks()
            texts.append((text if take is None else text.take(pa.array(take))).cast(pa.string()))
            continue
        if made.mask[i] >= 0:
            room.masks[made.mask[i]] = False
            if values.null_count:
                _put(room.masks[made.mask[i]], values.is_null(), take, whole)
                values = values.fill_null(False if pa.types.is_boolean(values.type) else 0)
        _put(room.values[i], values, take, whole)
    return room.frame(texts)


def _put(
    out: NDArray[Any], values: pa.ChunkedArray, take: NDArray[np.int64] | None, whole: NDArray[np.float64]
) -> None:
    """Values, or some, to where they belong; `whole` has room for all, and stays in the cache from column to column."""
    pieces = [piece.to_numpy(zero_copy_only=False) for piece in values.chunks]
    if not pieces:
        return
    if take is None:
        np.concatenate(pieces, out=out, casting="unsafe")  # flags may be bytes
        return
    plain = pieces[0]
    if len(pieces) > 1:
        plain = np.concatenate(pieces, out=whole.view(plain.dtype)[: len(whole)])
    np.take(plain.view(bool) if plain.dtype == np.uint8 else plain, take, out=out, mode="clip")


def cut(rows: pa.Table, take: NDArray[np.int64], offsets: NDArray[np.int64], name: str) -> list[pd.DataFrame]:
    """Rows of a table as one frame for each detector: ``rows[take[offsets[i]:offsets[i + 1]]]``."""
    whole = schema.bare(to_frame(rows, name, take))
    frames = []
    for start, stop in itertools.pairwise(offsets.tolist()):
        frame = whole.iloc[start:stop]
        frame.index = pd.RangeIndex(stop - start)
        if name not in OWN:
            frame.attrs = schema.attrs(name)
        frames.append(frame)
    return frames
