"""Repositories: made once, copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from apflow.io.butler import create_repository
from apflow.io.ppdb import Ppdb, open_ppdb
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
