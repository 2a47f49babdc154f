"""Real servers for the tests, each started once and only if a test asks for it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from apflow.operate.services import InfluxServer, KafkaBroker, PostgresServer, SchemaRegistry
from apflow.operate.services.sasquatch import SasquatchProxy
from apflow.operate.services.slurm import Nodes, SlurmCluster
from tests.registry_double import RegistryDouble


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A private PostgreSQL; `database()` makes an empty database and returns its URL."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """A private Kafka, with and without SASL; each test makes topics of its own by `create_topic`."""
    with KafkaBroker(sasl=True) as broker:
        yield broker


@pytest.fixture(scope="session")
def schema_registry() -> Iterator[SchemaRegistry]:
    """A private Apicurio Registry; each test takes subjects of its own."""
    with SchemaRegistry() as registry:
        yield registry


@pytest.fixture(scope="session")
def influxdb() -> Iterator[InfluxServer]:
    """A private InfluxDB; `database()` makes an empty database and returns its name."""
    with InfluxServer() as server:
        yield server


@pytest.fixture
def sasquatch(influxdb: InfluxServer) -> Iterator[SasquatchProxy]:
    """A new Sasquatch in front of a new database, with a token and no trouble."""
    with SasquatchProxy(influxdb, f"token-{uuid.uuid4()}", influxdb.database()) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A private SLURM of two nodes; commands reach it in its `environment`."""
    with SlurmCluster(nodes=Nodes(number=2, cores=4, memory_mb=8000)) as cluster:
        yield cluster


@pytest.fixture
def import_registry() -> Iterator[RegistryDouble]:
    """A new stand-in of a registry that lets clients choose ids, which `schema_registry` does not."""
    with RegistryDouble() as registry:
        yield registry
