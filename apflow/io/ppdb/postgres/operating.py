"""What operations ask of PostgreSQL: SQL that DuckDB understands too, its tables given and taken as Arrow."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from psycopg import sql

from apflow.errors import BadRequest
from apflow.io.ppdb.interface import Statement
from apflow.io.ppdb.postgres import ddl
from apflow.io.ppdb.postgres.copy import ARROW, copy_in, copy_out
from apflow.io.ppdb.postgres.pool import Connection

#: PostgreSQL's numbers of the types that are transferred (pg_type.oid; fixed).
_OIDS = {20: "int8", 21: "int2", 23: "int4", 700: "float4", 701: "float8", 16: "bool", 25: "text", 1114: "timestamp"}
_KINDS = {arrow: kind for kind, arrow in ARROW.items()} | {pa.large_string(): "text"}


def select(con: Connection, query: str) -> pa.Table:
    """See `Ppdb.select`."""
    found = con.execute(sql.SQL("SELECT * FROM ({}) q LIMIT 0").format(sql.SQL(query)), prepare=False)
    columns = found.description or []
    for column in columns:
        if column.type_code not in _OIDS:
            raise BadRequest(f"column {column.name} of a SELECT is of type {column.type_display}; cast it")
    names = [c.name for c in columns]
    return copy_out(con.cursor(), sql.SQL(query), names, [_OIDS[c.type_code] for c in columns])


def change(con: Connection, statements: Sequence[Statement]) -> None:
    """See `Ppdb.change`; within the transaction that `con` has open.

    Whoever stores has looked at DiaObjectLast before, and holds that until it
    commits: nobody stores on what is changed here.
    """
    con.execute('LOCK TABLE "DiaObjectLast" IN ACCESS EXCLUSIVE MODE')
    for statement in statements:
        for name, rows in statement.tables.items():
            _give(con, name, rows)
        n = con.execute(sql.SQL(statement.sql), prepare=False).rowcount
        statement.check(n)
        for name in statement.tables:
            con.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)), prepare=False)


def _give(con: Connection, name: str, rows: pa.Table) -> None:
    """A table that a statement reads by name."""
    kinds = [_KINDS[t] for t in rows.schema.types]
    columns = [
        sql.SQL("{} {}").format(sql.Identifier(c), sql.SQL(k)) for c, k in zip(rows.column_names, kinds, strict=True)
    ]
    made = sql.SQL("CREATE TEMP TABLE {} ({})").format(sql.Identifier(name), sql.SQL(", ").join(columns))
    con.execute(made, prepare=False)
    copy_in(con.cursor(), name, rows, kinds)


def sizes(con: Connection) -> dict[str, int]:
    """See `Ppdb.sizes`: with indexes and all partitions."""
    rows = con.execute(
        "SELECT t, (pg_total_relation_size(quote_ident(t)) + coalesce(sum(pg_total_relation_size(i.inhrelid)), 0))"
        "::int8 FROM unnest(%s::text[]) t LEFT JOIN pg_inherits i ON i.inhparent = to_regclass(quote_ident(t)) "
        "GROUP BY t",
        [list(ddl.TABLES)],
    ).fetchall()
    return dict(rows)
