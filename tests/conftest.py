"""Real servers for the tests, each started once and only if a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apflow.operate.services import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A private PostgreSQL; `database()` makes an empty database and returns its URL."""
    with PostgresServer() as server:
        yield server
