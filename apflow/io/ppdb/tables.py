"""Tables of the PPDB in DuckDB, and frames to and from Arrow."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa

from apflow.io.ppdb.sky_index import pixel_id
from apflow.model import schema

#: Tables of apdb.yaml that are kept so far.
APDB_TABLES = ("DiaObject", "DiaSource", "DiaForcedSource", "metadata")
SKY_TABLES = APDB_TABLES[:3]
#: Layout of the tables that apdb.yaml does not know; raise it when they change.
LAYOUT = "1"

_TYPES = {
    "double": "DOUBLE",
    "float": "FLOAT",
    "long": "BIGINT",
    "int": "INTEGER",
    "short": "SMALLINT",
    "boolean": "BOOLEAN",
}

_OWN_TABLES = (
    """CREATE TABLE ledger (
        instrument VARCHAR NOT NULL, visit BIGINT NOT NULL, detector SMALLINT NOT NULL,
        state VARCHAR NOT NULL, cause VARCHAR, step VARCHAR,
        n_sources INTEGER NOT NULL DEFAULT 0, n_alerts INTEGER NOT NULL DEFAULT 0,
        arrived_unix DOUBLE, stored_unix DOUBLE, published_unix DOUBLE,
        deadline_unix DOUBLE, region VARCHAR,
        PRIMARY KEY (instrument, visit, detector))""",
    """CREATE TABLE outbox (
        alert_id BIGINT PRIMARY KEY, object_id BIGINT NOT NULL, visit BIGINT NOT NULL, detector SMALLINT NOT NULL,
        "file" VARCHAR NOT NULL, "offset" BIGINT NOT NULL, "length" BIGINT NOT NULL, "checksum" BIGINT NOT NULL,
        published_unix DOUBLE)""",
    """CREATE TABLE step_record (
        instrument VARCHAR NOT NULL, visit BIGINT NOT NULL, detector SMALLINT NOT NULL,
        step VARCHAR NOT NULL, start_unix DOUBLE NOT NULL, stop_unix DOUBLE NOT NULL,
        core_s DOUBLE NOT NULL, worker VARCHAR NOT NULL,
        PRIMARY KEY (instrument, visit, detector, step, start_unix))""",
    """CREATE TABLE column_info (
        table_name VARCHAR NOT NULL, column_name VARCHAR NOT NULL, "position" INTEGER NOT NULL,
        datatype VARCHAR NOT NULL, unit VARCHAR NOT NULL, description VARCHAR NOT NULL, nullable BOOLEAN NOT NULL,
        PRIMARY KEY (table_name, column_name))""",
)
OWN_TABLES = ("ledger", "outbox", "step_record", "column_info")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def create_statements() -> list[str]:
    """SQL that makes an empty PPDB, units and descriptions included."""
    statements = list(_OWN_TABLES)
    for name in APDB_TABLES:
        table = schema.table(name)
        columns = [
            f'"{c.name}" {_TYPES.get(c.datatype, "VARCHAR")}{"" if c.nullable else " NOT NULL"}' for c in table.columns
        ]
        if name in SKY_TABLES:
            columns.append('"pixelId" BIGINT NOT NULL')
        key = ", ".join(f'"{c}"' for c in table.primary_key)
        statements.append(f'CREATE TABLE "{name}" ({", ".join(columns)}, PRIMARY KEY ({key}))')
        statements.append(f'COMMENT ON TABLE "{name}" IS {_literal(table.description)}')
        info = []
        for i, c in enumerate(table.columns):
            text = f"[{c.unit}] {c.description}" if c.unit else c.description
            statements.append(f'COMMENT ON COLUMN "{name}"."{c.name}" IS {_literal(text)}')
            texts = ", ".join(_literal(t) for t in (c.datatype, c.unit, c.description))
            info.append(f"({_literal(name)}, {_literal(c.name)}, {i}, {texts}, {c.nullable})")
        statements.append(f"INSERT INTO column_info VALUES {', '.join(info)}")
    for key, value in (("version:schema", schema.version()), ("version:layout", LAYOUT)):
        statements.append(f"INSERT INTO metadata VALUES ({_literal(key)}, {_literal(value)})")
    return statements


def select_list(name: str) -> str:
    """The columns of an apdb.yaml table, for SELECT."""
    return ", ".join(f'"{c}"' for c in schema.table(name).names)


def to_arrow(frame: pd.DataFrame, name: str) -> pa.Table:
    """A conforming frame as Arrow, with pixelId; NaN becomes null."""
    columns = {c: pa.array(values, from_pandas=True) for c, values in schema.bare(frame).items()}
    if name in SKY_TABLES:
        columns["pixelId"] = pa.array(pixel_id(frame["ra"].to_numpy(), frame["dec"].to_numpy()))
    return pa.table(columns)


def to_frame(rows: pa.Table, name: str) -> pd.DataFrame:
    """Rows of an apdb.yaml table as a conforming frame; null becomes NaN in float columns."""
    table = schema.table(name)
    data = {
        c.name: _to_pandas(rows.column(c.name), c.dtype, dtype)
        for c, dtype in zip(table.columns, table.dtypes, strict=True)
    }
    frame = pd.DataFrame(data)
    frame.attrs = schema.attrs(name)
    return frame


def _to_pandas(column: pa.ChunkedArray, dtype: str, pandas_dtype: Any) -> Any:
    values = column.combine_chunks()
    if dtype == "str":
        return pd.array(values.to_pylist(), dtype=pandas_dtype)
    if not dtype[0].isupper() and dtype != "boolean":
        return values.to_numpy(zero_copy_only=False)
    null = values.is_null().to_numpy(zero_copy_only=False)
    filled = values.fill_null(False if dtype == "boolean" else 0).to_numpy(zero_copy_only=False)
    make = pd.arrays.BooleanArray if dtype == "boolean" else pd.arrays.IntegerArray
    return make(filled, null, copy=True)
