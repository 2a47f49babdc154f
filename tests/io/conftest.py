"""Repositories: made once, copied for each test."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from apflow.io.butler import create_repository
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.operate.services import PostgresServer
from tests.io.dax_backends import DaxSqlite, Pristine
from tests.io.ppdb_backends import Backend, DuckDb, Postgres

from .outbox import Night


@pytest.fixture(scope="session")
def pristine_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("butler") / "pristine"
    create_repository(root, "comcam", 128)
    return root


@pytest.fixture
def root(pristine_repository: Path, tmp_path: Path) -> Path:
    """An empty repository for ComCam with cut-outs of 128 px."""
    return Path(shutil.copytree(pristine_repository, tmp_path / "repository"))


@pytest.fixture(scope="session")
def pristine_postgres_repository(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `pristine_repository`, its registry in the database ``pristine_butler``."""
    root = tmp_path_factory.mktemp("butler") / "pristine_postgres"
    create_repository(root, "comcam", 128, postgres.database("pristine_butler"), "butler")
    return root


@pytest.fixture(params=["sqlite", "postgresql"])
def either_root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """As `root`, with each kind of registry."""
    if request.param == "sqlite":
        yield request.getfixturevalue("root")
        return
    pristine: Path = request.getfixturevalue("pristine_postgres_repository")
    server: PostgresServer = request.getfixturevalue("postgres")
    root = Path(shutil.copytree(pristine, tmp_path / "repository"))
    name = f"butler_{secrets.token_hex(6)}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE pristine_butler")
    settings = root / "butler.yaml"
    settings.write_text(settings.read_text().replace("/pristine_butler?", f"/{name}?"))
    yield root
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def pristine_ppdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ppdb") / "pristine.duckdb"
    open_ppdb(f"duckdb://{path}", create=True).close()
    return path


@pytest.fixture
def night(pristine_ppdb: Path, tmp_path: Path) -> Iterator[Night]:
    """An empty outbox."""
    shutil.copy(pristine_ppdb, tmp_path / "ppdb.duckdb")
    made = Night(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def pristine_apdb(tmp_path_factory: pytest.TempPathFactory) -> Pristine:
    return Pristine(tmp_path_factory.mktemp("apdb"))


@pytest.fixture(params=["duckdb", "postgresql", "dax-sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Where an empty PPDB is to be: what is asked of a PPDB is asked of each kind."""
    if request.param == "duckdb":
        return DuckDb(tmp_path)
    if request.param == "dax-sqlite":
        return DaxSqlite(request.getfixturevalue("pristine_apdb"), tmp_path)
    return Postgres(request.getfixturevalue("postgres"))


@pytest.fixture
def ppdb(backend: Backend) -> Iterator[Ppdb]:
    """An empty PPDB."""
    with open_ppdb(backend.url, create=True) as opened:
        yield opened
