"""The private servers start, answer, survive a kill with their data, and leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from apflow.config import config_from, load_config
from apflow.errors import BadRequest, ServiceError
from apflow.io.sasquatch import flush, send_later
from apflow.model.metrics import Measurement
from apflow.operate.services import KafkaBroker, PostgresServer, SchemaRegistry
from apflow.operate.services.sasquatch_server import SasquatchServer
from tests.operate.command import APFLOW, apflow
from tests.registry_double import RegistryDouble

ROOT = Path(__file__).parents[2]


def traces(folder: Path) -> list[str]:
    """What is left of a server: its folder and whatever process names it."""
    processes = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    return [str(folder)] * folder.exists() + [line for line in processes if str(folder) in line]


# PostgreSQL ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secured() -> Iterator[PostgresServer]:
    with PostgresServer(tls=True) as server:
        yield server


def value(url: str, query: str) -> Any:
    with psycopg.connect(url) as connection:
        (row,) = connection.execute(query).fetchall()
        return row[0]


def shared_memory() -> list[str]:
    """Ids of the System V segments, which outlive processes."""
    return [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]


def test_each_database_is_new_and_durable(postgres: PostgresServer) -> None:
    first, second = postgres.database(), postgres.database()
    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE night (visit bigint)")
    assert value(first, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 1
    assert value(second, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    assert [value(first, f"SHOW {name}") for name in ("fsync", "jit", "max_connections")] == ["on", "off", "300"]
    with pytest.raises(psycopg.errors.DuplicateDatabase):
        postgres.database("postgres")


def test_postgresql_runs_as_an_ordinary_user_and_lets_nobody_else_in(postgres: PostgresServer) -> None:
    assert postgres.pid is not None
    assert psutil.Process(postgres.pid).uids().effective != 0
    assert postgres.folder.stat().st_mode & 0o077 == 0
    assert not psutil.Process(postgres.pid).net_connections("tcp")


def test_a_killed_postgresql_keeps_what_was_committed(secured: PostgresServer) -> None:
    url = secured.database()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE night (visit bigint)")
        connection.execute("INSERT INTO night VALUES (1)")
    lost = psycopg.connect(url)
    lost.execute("INSERT INTO night VALUES (2)")
    pid = secured.pid
    segment = (secured.folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
    assert segment in shared_memory()
    secured.kill()
    assert not secured.running
    assert segment not in shared_memory()
    with pytest.raises(psycopg.OperationalError):
        lost.execute("SELECT 1")
    lost.close()
    secured.restart()
    assert secured.pid != pid
    assert value(url, "SELECT array_agg(visit) FROM night") == [1]


def test_a_restart_of_a_running_server_is_a_stop_and_a_start(secured: PostgresServer) -> None:
    url, pid = secured.database(), secured.pid
    secured.restart()
    assert secured.pid not in (pid, None)
    assert value(url, "SELECT 1") == 1
    assert not any("not properly shut down" in line for line in secured.log.read_text().splitlines()[-3:])


def test_by_tcp_only_with_tls_and_the_password(secured: PostgresServer, tmp_path: Path) -> None:
    assert value(secured.tls_url(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        psycopg.connect(secured.tls_url().replace("sslmode=verify-full", "sslmode=disable"))
    wrong = tmp_path / "passfile"
    wrong.write_text("*:*:*:*:wrong\n")
    wrong.chmod(0o600)
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        psycopg.connect(f"{secured.tls_url(passfile=False)}&passfile={wrong}")


def test_the_server_that_runs_in_a_folder_is_found_again(secured: PostgresServer) -> None:
    same = PostgresServer(secured.folder, tls=True)
    assert (same.pid, same.url) == (secured.pid, secured.url)
    same.start()
    assert same.pid == secured.pid


def test_closing_leaves_nothing() -> None:
    with PostgresServer() as server:
        assert len(traces(server.folder)) >= 3  # folder, server and guard
    assert traces(server.folder) == []


def test_an_owner_that_is_killed_leaves_nothing() -> None:
    owner = (
        "import os; from apflow.operate.services import PostgresServer; server = PostgresServer(); server.start();"
        "print(server.folder, server.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", owner], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    folder, pid = ended.stdout.split()
    deadline = time.monotonic() + 20
    while traces(Path(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert traces(Path(folder)) == []
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def test_a_server_that_ends_at_once_says_why(secured: PostgresServer) -> None:
    with PostgresServer(tls=True) as server:
        server.stop()
        state = server.folder / "state.json"
        taken = json.loads((secured.folder / "state.json").read_text())["port"]
        state.write_text(json.dumps({"port": taken}))
        with pytest.raises(ServiceError, match=r"postgresql in .* ended with 1: .*Address already in use"):
            server.start()
        assert not server.running


def test_a_folder_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="at most 85 characters"):
        PostgresServer(tmp_path / ("x" * 80))


# Kafka ---------------------------------------------------------------------------------------------------------------


def produce(settings: dict[str, str], topic: str, *messages: bytes) -> list[str | None]:
    """Send messages; the cause of each one's failure, or None."""
    outcomes: list[str | None] = []
    producer = Producer({"acks": "all", "message.timeout.ms": 20_000, "log_level": 0, **settings})
    for message in messages:
        producer.produce(topic, message, on_delivery=lambda error, _: outcomes.append(error and error.name()))
    assert producer.flush(30) == 0
    return outcomes


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    """The first messages of partition 0."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        return [message.value() for message in consumer.consume(count, timeout=20)]
    finally:
        consumer.close()


def test_topics_have_the_partitions_and_settings_asked_for(kafka_broker: KafkaBroker) -> None:
    name = kafka_broker.create_topic("partitions-45", max_message_bytes=2000)
    topics = kafka_broker.admin().list_topics(timeout=10).topics
    assert len(topics[name].partitions) == 45
    outcomes = produce({"bootstrap.servers": kafka_broker.bootstrap}, name, b"short", b"long" * 1000)
    assert sorted(map(str, outcomes)) == ["MSG_SIZE_TOO_LARGE", "None"]
    with pytest.raises(ServiceError, match=r"partitions-45.*already exists"):
        kafka_broker.create_topic(name)


def test_a_topic_nobody_made_is_not_there(kafka_broker: KafkaBroker) -> None:
    settings = {"bootstrap.servers": kafka_broker.bootstrap, "topic.metadata.propagation.max.ms": "0"}
    assert produce(settings, "never-made", b"lost") == ["UNKNOWN_TOPIC_OR_PART"]


def test_sasl_takes_the_user_with_the_password_only(kafka_broker: KafkaBroker) -> None:
    topic = kafka_broker.create_topic("secured-by-password", partitions=1)
    settings = {
        "bootstrap.servers": kafka_broker.sasl_bootstrap,
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(kafka_broker.certificate),
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": kafka_broker.username,
        "sasl.password": kafka_broker.password_file.read_text().strip(),
    }
    assert produce(settings, topic, b"welcome") == [None]
    wrong = Producer({**settings, "sasl.password": "wrong", "log_level": 0})
    with pytest.raises(KafkaException):
        wrong.list_topics(topic, timeout=3)
    assert kafka_broker.password_file.stat().st_mode & 0o077 == 0


def test_a_killed_broker_keeps_what_it_acknowledged(kafka_broker: KafkaBroker) -> None:
    bootstrap, topic = kafka_broker.bootstrap, kafka_broker.create_topic("kept", partitions=1)
    messages = [b"%d" % number for number in range(1000)]
    assert produce({"bootstrap.servers": bootstrap}, topic, *messages) == [None] * 1000
    kafka_broker.kill()
    assert not kafka_broker.running
    kafka_broker.restart()
    assert kafka_broker.bootstrap == bootstrap
    assert consume(bootstrap, topic, 1000) == messages


# Schema registries ---------------------------------------------------------------------------------------------------

AVRO = {"schema": json.dumps({"type": "record", "name": "alert", "fields": [{"name": "id", "type": "long"}]})}
OTHER = {"schema": json.dumps({"type": "record", "name": "other", "fields": []})}


def ask(url: str, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and body of the answer."""
    headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    data = json.dumps(body).encode() if body is not None else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers, method=method)) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_double_answers_as_the_real_registry(
    schema_registry: SchemaRegistry, import_registry: RegistryDouble
) -> None:
    calls = [
        ("POST", "/subjects/alike/versions", AVRO),
        ("POST", "/subjects/alike/versions", AVRO),
        ("GET", "/subjects/alike/versions/latest", None),
        ("GET", "/subjects/alike/versions/1", None),
        ("GET", "/subjects/nobody/versions/latest", None),
        ("GET", "/schemas/ids/987654", None),
        ("POST", "/subjects/alike/versions", {"schema": '{"type": "nonsense"}'}),
    ]
    for call in calls:
        (status, real), (same_status, double) = (ask(url, *call) for url in (schema_registry.url, import_registry.url))
        assert status == same_status, call
        assert real.get("error_code") == double.get("error_code"), call
        assert set(double) <= set(real), call
    (_, real), (_, double) = (
        ask(url, "GET", f"/schemas/ids/{ask(url, *calls[0])[1]['id']}")
        for url in (schema_registry.url, import_registry.url)
    )
    assert real["schema"] == double["schema"] == AVRO["schema"]


def test_only_the_double_lets_a_client_choose_the_id(
    schema_registry: SchemaRegistry, import_registry: RegistryDouble
) -> None:
    assert ask(schema_registry.url, "PUT", "/mode/chosen", {"mode": "IMPORT"})[0] == 404
    url, chosen = import_registry.url, {**AVRO, "id": 1101, "version": 1101}
    assert ask(url, "POST", "/subjects/chosen/versions", chosen)[1]["error_code"] == 42205
    assert ask(url, "PUT", "/mode/chosen", {"mode": "IMPORT"}) == (200, {"mode": "IMPORT"})
    assert ask(url, "POST", "/subjects/chosen/versions", chosen) == (200, {"id": 1101})
    assert ask(url, "POST", "/subjects/chosen/versions", {**OTHER, "id": 1101})[1]["error_code"] == 42207
    assert ask(url, "GET", "/schemas/ids/1101") == (200, AVRO)
    assert ask(url, "GET", "/subjects/chosen/versions/latest")[1]["version"] == 1101
    assert ask(url, "POST", "/subjects/grown/versions", AVRO) == (200, {"id": 1101})
    assert ask(url, "PUT", "/mode/grown", {"mode": "IMPORT"})[1]["error_code"] == 42205


# apflow services -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the user whom PostgreSQL runs as can enter, unlike pytest's."""
    path = Path("/var/tmp" if os.geteuid() == 0 else os.environ.get("TMPDIR", "/var/tmp")) / f"apflow-{os.getpid()}"
    yield path
    apflow("services", "down", "--folder", str(path))
    shutil.rmtree(path)


def test_services_go_up_stay_and_go_down(folder: Path) -> None:
    where = ("--folder", str(folder))
    assert apflow("services", "status", *where).stdout.count("stopped") == 4
    up = apflow("services", "up", *where)
    assert up.returncode == 0, up.stderr
    config = config_from(tomllib.loads(up.stdout))
    with psycopg.connect(config.ppdb) as connection:
        connection.execute("CREATE TABLE night (visit bigint)")
    assert produce({"bootstrap.servers": config.kafka.bootstrap}, config.kafka.topic, b"kept") == [None]
    pids = [server(folder / server.name).pid for server in (PostgresServer, KafkaBroker)]
    assert None not in pids

    again = apflow("services", "up", *where)
    assert (again.stdout, again.stderr) == (up.stdout, "")
    assert [server(folder / server.name).pid for server in (PostgresServer, KafkaBroker)] == pids
    status = apflow("services", "status", *where).stdout
    assert up.stdout in status and status.count("running") == 2 and status.count("stopped") == 2

    assert apflow("services", "down", *where).returncode == 0
    assert apflow("services", "status", *where).stdout.count("stopped") == 4
    assert traces(folder) == [str(folder)]
    assert apflow("services", "down", *where).returncode == 0

    apflow("services", "up", "--postgres", *where)
    assert value(config.ppdb, "SELECT count(*) FROM night") == 0


def test_sasquatch_goes_up_and_takes_metrics(folder: Path, tmp_path: Path) -> None:
    where = ("--sasquatch", "--folder", str(folder))
    up = apflow("services", "up", *where)
    assert up.returncode == 0, up.stderr
    (tmp_path / "apflow.toml").write_text(f'butler = "{tmp_path}"\n{up.stdout}')
    config = load_config(tmp_path / "apflow.toml")
    send_later([Measurement("isr", {"x": 1.5}, {"visit": 1}, 60785.0)], config)
    assert flush(config, 30) == 0
    influxdb = SasquatchServer(folder / "sasquatch").influxdb
    assert influxdb.query("lsst.prompt", 'SELECT "x" FROM "lsst.prompt.isr"')[0]["x"] == 1.5
    assert apflow("services", "down", *where).returncode == 0
    assert not influxdb.running


def refused(*arguments: str, **environment: str) -> str:
    """Message of a command that must end with 69, a service that is not there."""
    run = subprocess.run(
        [APFLOW, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )
    assert (run.returncode, run.stdout) == (69, ""), run.stderr
    assert len(run.stderr.split("error:")) == 2
    return run.stderr


def test_what_is_missing_is_named_with_its_package(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    missing = {"PATH": str(tmp_path / "bin"), "JAVA_HOME": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    where = ("services", "up", "--kafka", "--folder", str(tmp_path / "state"))
    assert "openjdk-17-jre-headless" in refused(*where, **missing)
    java = shutil.which("java")
    assert java
    (tmp_path / "bin" / "java").symlink_to(java)
    assert "Debian's maven" in refused(*where, **missing)
    (tmp_path / "bin" / "java").unlink()
    (tmp_path / "bin" / "java").write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    (tmp_path / "bin" / "java").chmod(0o755)
    assert '"11.0.2", not 17 or newer' in refused(*where, **missing)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = apflow("services", "up", "--postgres", "--folder", str(tmp_path / "file" / "state"))
    assert run.returncode == 2 and "accepted: one that can be written to" in run.stderr


def test_installing_does_nothing_where_everything_is_there() -> None:
    run = subprocess.run(["bash", ROOT / "cluster" / "services" / "install.sh"], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
