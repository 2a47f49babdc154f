"""Empty Apdbs with their companions for the tests of the PPDB: on SQLite with DuckDB, and on PostgreSQL throughout."""

from __future__ import annotations

import gc
import shutil
import sqlite3
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from lsst.dax.apdb.sql import ApdbSql, ApdbSqlConfig

from apflow.io.ppdb import open_ppdb
from apflow.operate.services import PostgresServer
from tests.io.ppdb_backends import Backend, Postgres


def _init(db_url: str, **options: Any) -> None:
    """Make the tables, as apdb-cli create-sql does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its connection to the garbage collector
        ApdbSql.init_database(db_url=db_url, **options)
        gc.collect()


def write_config(path: Path, db_url: str, **options: Any) -> Path:
    """The configuration of an Apdb that is there, with some of `ApdbSqlConfig`'s fields."""
    ApdbSqlConfig(db_url=db_url, **options).save(str(path))
    return path


def url_of(config: Path, companion: str) -> str:
    """URL of the PPDB."""
    return f"dax://{config}?companion={quote(companion, safe='')}"


class Pristine:
    """Databases to copy: making their tables takes a second."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def apdb(self, index: str = "baseline") -> Path:
        """An empty ApdbSql on SQLite."""
        path = self._folder / f"{index}.db"
        if not path.exists():
            _init(f"sqlite:///{path}", dia_object_index=index)
        return path

    def companion(self) -> Path:
        """An empty companion on DuckDB."""
        path = self._folder / "companion.duckdb"
        if not path.exists():
            open_ppdb(f"duckdb://{path}", create=True).close()
        return path


class DaxSqlite(Backend):
    """An ApdbSql on SQLite, with a companion on DuckDB or by URL."""

    def __init__(
        self, pristine: Pristine, folder: Path, *, index: str = "baseline", companion: str | None = None
    ) -> None:
        self.path = folder / "apdb.db"
        shutil.copy(pristine.apdb(index), self.path)
        config = write_config(folder / "apdb_config.yaml", f"sqlite:///file:{self.path}?mode=rw&uri=true")
        if companion is None:
            companion = f"duckdb://{folder}/companion.duckdb"
            shutil.copy(pristine.companion(), folder / "companion.duckdb")
        self.url = url_of(config, companion)

    def execute(self, statement: str) -> Sequence[tuple[Any, ...]]:
        """See `Backend`."""
        connection = sqlite3.connect(self.path)
        try:
            with connection:
                return connection.execute(statement).fetchall()
        finally:
            connection.close()


class DaxPostgres(Backend):
    """An ApdbSql and its companion in two databases of a PostgreSQL."""

    template = "apdb_template"

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        name = f"apdb_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(server.url, autocommit=True) as connection:
            there = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [self.template]).fetchone()
            if there is None:
                _init(_sqlalchemy(server.database(self.template)))
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        self.own = server.url_of(name)
        config = write_config(folder / "apdb_config.yaml", _sqlalchemy(self.own))
        self.companion = Postgres(server).url
        self.url = url_of(config, self.companion)

    def execute(self, statement: str) -> Sequence[tuple[Any, ...]]:
        """See `Backend`."""
        with psycopg.connect(self.own, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []


def _sqlalchemy(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)
