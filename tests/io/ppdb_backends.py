"""Empty databases for the conformance suite of the PPDB, one kind a backend."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import psycopg

from apflow.io.ppdb import open_ppdb
from apflow.operate.services import PostgresServer


class Backend(ABC):
    """Where a test's PPDB is to be."""

    url: str

    @abstractmethod
    def execute(self, statement: str) -> Sequence[tuple[Any, ...]]:
        """Run SQL behind the PPDB's back, while no handle is open; gives the rows."""


class DuckDb(Backend):
    """A file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ppdb.duckdb"
        self.url = f"duckdb://{self.path}"

    def execute(self, statement: str) -> Sequence[tuple[Any, ...]]:
        """See `Backend`."""
        with duckdb.connect(str(self.path)) as connection:
            rows: list[tuple[Any, ...]] = connection.execute(statement).fetchall()
            return rows


class Postgres(Backend):
    """A database of a server, copied from one that has the tables already."""

    template = "ppdb_template"

    def __init__(self, server: PostgresServer) -> None:
        name = f"ppdb_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(server.url, autocommit=True) as connection:
            there = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [self.template]).fetchone()
            if there is None:
                open_ppdb(server.database(self.template), create=True).close()
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        self.url = server.url_of(name)

    def execute(self, statement: str) -> Sequence[tuple[Any, ...]]:
        """See `Backend`."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []
