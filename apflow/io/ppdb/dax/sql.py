"""Whole tables of an Apdb on SQL, which the interface of an Apdb does not give; for operations and tests."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import pandas as pd
import sqlalchemy
from lsst.utils.db_auth import DbAuth, DbAuthNotFoundError

from apflow.errors import BadRequest
from apflow.io.ppdb.dax.door import Door, errors
from apflow.model import schema

TABLES = ("DiaObject", "DiaSource", "DiaForcedSource", "DiaObjectLast")


def table(door: Door, name: str, where: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Rows of a table of apdb.yaml; see `Ppdb.table`.

    Raises
    ------
    BadRequest
        The Apdb is not on SQL.
    """
    if not door.transactional:
        raise BadRequest(f"{name} of an Apdb on Cassandra cannot be read as a whole; accepted: an Apdb on SQL")
    engine = sqlalchemy.create_engine(_url(door.config.db_url), poolclass=sqlalchemy.NullPool)
    with errors(), engine.connect() as connection:
        found = connection.execute(sqlalchemy.text(_select(door, name, where)))
        rows = pd.DataFrame(found.fetchall(), columns=list(found.keys()), dtype=object)
    return schema.conform(rows, name)


def _select(door: Door, name: str, where: Mapping[str, Sequence[int]]) -> str:
    config, held = door.config, name
    conditions = [f'"{c}" IN ({", ".join(str(int(v)) for v in values) or "NULL"})' for c, values in where.items()]
    if name == "DiaObjectLast" and config.dia_object_index != "last_object_table":
        held = "DiaObject"
        conditions.append('"validityEndMjdTai" IS NULL')
    place = (f'"{config.namespace}".' if config.namespace else "") + f'"{config.prefix}{held}"'
    columns = ", ".join(f'"{c}"' for c in schema.table(name).names)
    condition = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {columns} FROM {place}{condition} ORDER BY 1, 2"


def _url(url: str) -> str:
    """With what LSST_DB_AUTH or ~/.lsst/db-auth.yaml adds to it, as the Apdb does."""
    with contextlib.suppress(DbAuthNotFoundError):
        if sqlalchemy.make_url(url).host:
            return str(DbAuth().getUrl(url))
    return url
