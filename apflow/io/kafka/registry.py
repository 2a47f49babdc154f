"""A Confluent-compatible schema registry: the alert schema under the id that Rubin uses."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from typing import Any

import fastavro

from apflow.config_tables import Kafka
from apflow.errors import BadRequest, ServiceError
from apflow.io.alerts.schema import load_schema
from apflow.io.kafka.settings import password

SUBJECT = "alert-packet"
_TIMEOUT_S = 10.0
_TYPE = "application/vnd.schemaregistry.v1+json"
#: "Schema not found", "subject not found", "version not found".
_NOT_FOUND = 404


def canonical(definition: dict[str, Any]) -> str:
    """A schema in Avro's parsing canonical form, as Rubin's tools register it."""
    text: str = fastavro.schema.to_parsing_canonical_form(definition)
    return text


def register(kafka: Kafka, schema_version: str) -> int:
    """Register an alert schema under subject ``alert-packet`` and Rubin's id, unless it is there.

    The id is given, not taken: as ``syncAllSchemasToRegistry`` of
    lsst-alert-packet does, the subject is in mode IMPORT meanwhile. Nothing
    that is registered already is touched.

    Returns
    -------
    schema_id : `int`
        1101 for 11.1.

    Raises
    ------
    ServiceError
        The registry cannot be reached, refuses the credentials, or does not
        give the id that is asked for.
    """
    schema = load_schema(schema_version)
    registry, wanted, text = Registry(kafka), schema.registry_id, canonical(schema.definition)
    found = registry.find(wanted)
    if found is not None:
        _check_same(registry, wanted, text, found)
        if registry.has_version(wanted):
            return wanted
    registry.set_mode("IMPORT")
    try:
        given = registry.add(wanted, text)
    finally:
        registry.set_mode("READWRITE")
    if given != wanted:
        raise ServiceError(
            f"schema registry {kafka.registry} gave id {given} to alert schema {schema_version}, not {wanted}: "
            "it does not import ids; accepted: one that does, or kafka.registry empty"
        )
    return wanted


def _check_same(registry: Registry, schema_id: int, text: str, found: str) -> None:
    if json.loads(canonical(json.loads(found))) != json.loads(text):
        raise ServiceError(
            f"schema registry {registry.url} has another schema under id {schema_id}; accepted: the alert schema, "
            "or an id that is free"
        )


class Registry:
    """The few calls that alerts need.

    Raises
    ------
    BadRequest
        The URL is not one of http or https, or the password file cannot be read.
    """

    def __init__(self, kafka: Kafka) -> None:
        self.url = kafka.registry.rstrip("/")
        if not self.url.startswith(("http://", "https://")) or "@" in self.url:
            raise BadRequest(
                "kafka.registry is not accepted: http://host:port or https://host:port, "
                "with kafka.registry_username and registry_password_file beside it"
            )
        self._user = kafka.registry_username
        self._headers = {"Content-Type": _TYPE, "Accept": f"{_TYPE}, application/json"}
        if self._user:
            secret = password(kafka.registry_password_file, "kafka.registry_password_file")
            token = base64.b64encode(f"{self._user}:{secret}".encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"

    def find(self, schema_id: int) -> str | None:
        """The schema of an id, JSON; None if there is none."""
        found = self._ask("GET", f"/schemas/ids/{schema_id}", missing=True)
        return None if found is None else str(found["schema"])

    def has_version(self, version: int) -> bool:
        """Whether the subject has a version."""
        return self._ask("GET", f"/subjects/{SUBJECT}/versions/{version}", missing=True) is not None

    def set_mode(self, mode: str) -> None:
        """Put the subject into a mode; forced, since others may have registered versions before."""
        if self._ask("PUT", f"/mode/{SUBJECT}?force=true", {"mode": mode}, missing=True) is None:
            raise ServiceError(
                f"schema registry {self.url} has no mode {mode}, in which ids are given to it; accepted: one that "
                "has, as Confluent's, or kafka.registry empty"
            )

    def add(self, schema_id: int, text: str) -> int:
        """Register a schema under an id and the version of the same number; gives the id that it has."""
        body = {"version": schema_id, "id": schema_id, "schema": text}
        return int(self._ask("POST", f"/subjects/{SUBJECT}/versions", body)["id"])

    def _ask(self, method: str, path: str, body: Any = None, missing: bool = False) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                if missing and error.code == _NOT_FOUND:
                    return None
                raise self._refused(error, method, path) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ServiceError(
                f"schema registry {self.url} cannot be reached: {reason}; check kafka.registry"
            ) from None
        except ValueError as error:
            raise ServiceError(f"schema registry {self.url}: the answer to {method} {path} is no JSON") from error

    def _refused(self, error: urllib.error.HTTPError, method: str, path: str) -> ServiceError:
        if error.code in (401, 403):
            who = f"user {self._user!r}" if self._user else "this client, which has no user name"
            return ServiceError(
                f"schema registry {self.url} refuses {who} ({error.code}); check kafka.registry_username and "
                "registry_password_file"
            )
        said = error.read(500).decode(errors="replace")
        return ServiceError(f"schema registry {self.url} refuses {method} {path}: {error.code} {said}")
