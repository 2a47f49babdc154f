"""Registering the alert schema as Rubin has it, and what a registry may have against that."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fastavro
import pytest

from apflow.config_tables import Kafka
from apflow.errors import BadRequest, ServiceError
from apflow.io.alerts.schema import load_schema
from apflow.io.kafka.registry import Registry, canonical, register
from tests.registry_double import RegistryDouble

PASSWORD = "correct-horse-battery"


@pytest.fixture
def importing() -> Iterator[RegistryDouble]:
    with RegistryDouble() as made:
        yield made


def test_the_schema_gets_rubins_id_and_subject(importing):
    kafka = Kafka(registry=importing.url)
    assert register(kafka, "11.1") == 1101
    assert importing.schemas.subjects == {"alert-packet": {1101: 1101}}
    assert importing.schemas.modes == {"alert-packet": "READWRITE"}
    found = fastavro.parse_schema(json.loads(importing.schemas.by_id[1101]))
    assert canonical(found) == canonical(load_schema("11.1").definition)


def test_registering_again_changes_nothing_and_another_version_comes_beside(importing):
    kafka = Kafka(registry=importing.url + "/")
    for version in ("11.1", "11.0", "11.1", "11.0"):
        register(kafka, version)
    assert importing.schemas.subjects == {"alert-packet": {1101: 1101, 1100: 1100}}
    assert importing.schemas.modes == {"alert-packet": "READWRITE"}


def test_an_id_that_is_taken_is_not_overwritten(importing):
    importing.schemas.by_id[1101] = '"string"'
    with pytest.raises(ServiceError, match=f"{importing.url} has another schema under id 1101"):
        register(Kafka(registry=importing.url), "11.1")
    assert importing.schemas.by_id == {1101: '"string"'}


def test_a_registry_without_mode_import_is_told_from_one_that_has_it(schema_registry):
    with pytest.raises(ServiceError, match=r"has no mode IMPORT, .*; accepted: .* kafka.registry empty"):
        register(Kafka(registry=schema_registry.url), "11.1")


def test_schemas_that_a_real_registry_has_are_found_by_id(schema_registry):
    registry = Registry(Kafka(registry=schema_registry.url))
    body = {"schema": canonical(load_schema("11.1").definition)}
    given = registry._ask("POST", "/subjects/of-this-test/versions", body)["id"]
    assert json.loads(registry.find(given) or "")["name"].endswith("alert")
    assert registry.find(123456) is None


class Guarded(BaseHTTPRequestHandler):
    """Refuses everybody."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.seen = self.headers["Authorization"]  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_refused_credentials_are_told_and_not_shown(tmp_path):
    (tmp_path / "password").write_text(PASSWORD + "\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        kafka = Kafka(registry=url, registry_username="someone", registry_password_file=str(tmp_path / "password"))
        with pytest.raises(
            ServiceError, match=f"{url} refuses user 'someone' .401.; check kafka.registry_username"
        ) as told:
            register(kafka, "11.1")
        with pytest.raises(ServiceError, match="refuses this client, which has no user name"):
            register(Kafka(registry=url), "11.1")
        server.shutdown()
    assert PASSWORD not in str(told.value) + repr(kafka) + repr(Registry(kafka))


def test_a_registry_that_is_not_there_is_named():
    with pytest.raises(ServiceError, match=r"schema registry http://127.0.0.1:9 cannot be reached: .*kafka.registry"):
        register(Kafka(registry="http://127.0.0.1:9"), "11.1")


@pytest.mark.parametrize("url", ["127.0.0.1:8081", "ftp://x", f"http://user:{PASSWORD}@host"])
def test_urls_that_are_none_or_hold_a_password_are_refused(url):
    with pytest.raises(BadRequest, match=r"kafka.registry is not accepted: http://host:port") as told:
        register(Kafka(registry=url), "11.1")
    assert PASSWORD not in str(told.value)
