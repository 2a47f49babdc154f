"""A schema registry in mode IMPORT, in which clients choose the ids; Apicurio's, which is real, has no such mode.

It answers as Confluent's does, for the calls that a publisher makes, and keeps everything in memory.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import fastavro

#: What a client may ask for.
MODES = ("READWRITE", "READONLY", "IMPORT")


class Refusal(Exception):
    """An answer other than 200: HTTP status, Confluent's error code, message."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error_code": code, "message": message}


@dataclass
class Schemas:
    """What the registry knows."""

    by_id: dict[int, str] = field(default_factory=dict)
    #: Ids by subject and version.
    subjects: dict[str, dict[int, int]] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)

    def register(self, subject: str, request: dict[str, Any]) -> dict[str, Any]:
        schema, wanted = request["schema"], request.get("id", -1)
        try:
            fastavro.parse_schema(json.loads(schema))
        except (ValueError, KeyError, fastavro.schema.SchemaParseException) as error:
            raise Refusal(422, 42201, f"Invalid schema {schema} with refs [] of type AVRO, details: {error}") from error
        importing = self.modes.get(subject) == "IMPORT"
        if (wanted >= 0) != importing:
            raise Refusal(422, 42205, f"Subject {subject} is {'' if importing else 'not '}in import mode")
        known = {text: number for number, text in self.by_id.items()}
        number = wanted if importing else known.get(schema, max(self.by_id, default=0) + 1)
        if self.by_id.setdefault(number, schema) != schema:
            raise Refusal(422, 42207, f"Overwrite new schema with id {number} is not permitted.")
        versions = self.subjects.setdefault(subject, {})
        if number not in versions.values():
            versions[request.get("version") or max(versions, default=0) + 1] = number
        return {"id": number}

    def schema(self, number: str) -> dict[str, Any]:
        if int(number) not in self.by_id:
            raise Refusal(404, 40403, f"Schema {number} not found")
        return {"schema": self.by_id[int(number)]}

    def version(self, subject: str, version: str) -> dict[str, Any]:
        if subject not in self.subjects:
            raise Refusal(404, 40401, f"Subject '{subject}' not found.")
        versions = self.subjects[subject]
        wanted = max(versions) if version == "latest" else int(version)
        if wanted not in versions:
            raise Refusal(404, 40402, f"Version {wanted} not found.")
        number = versions[wanted]
        return {"subject": subject, "version": wanted, "id": number, "schema": self.by_id[number]}

    def set_mode(self, subject: str, request: dict[str, Any]) -> dict[str, Any]:
        mode = request["mode"]
        if mode not in MODES:
            raise Refusal(422, 42204, f"Invalid mode. Valid values are {', '.join(MODES)}")
        found = self.subjects.get(subject) and self.modes.get(subject) != "IMPORT"
        if mode == "IMPORT" and found and not request.get("force"):
            raise Refusal(422, 42205, f"Cannot import since found existing subjects {subject}")
        self.modes[subject] = mode
        return {"mode": mode}

    def mode(self, subject: str) -> dict[str, Any]:
        if subject not in self.modes:
            raise Refusal(404, 40409, f"Subject '{subject}' does not have subject-level mode configured")
        return {"mode": self.modes[subject]}


#: Calls by method and path.
CALLS = {
    ("GET", r"/subjects"): lambda schemas, request: sorted(schemas.subjects),
    ("POST", r"/subjects/([^/]+)/versions"): lambda schemas, request, subject: schemas.register(subject, request),
    ("GET", r"/subjects/([^/]+)/versions/(latest|\d+)"): lambda schemas, request, *which: schemas.version(*which),
    ("GET", r"/schemas/ids/(\d+)"): lambda schemas, request, number: schemas.schema(number),
    ("PUT", r"/mode/([^/]+)"): lambda schemas, request, subject: schemas.set_mode(subject, request),
    ("GET", r"/mode/([^/]+)"): lambda schemas, request, subject: schemas.mode(subject),
}


class RegistryDouble:
    """A server on loopback while the context is open."""

    def __init__(self) -> None:
        self.schemas = Schemas()
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                try:
                    with lock:
                        status, reply = 200, outer.call(self.command, urlsplit(self.path), body)
                except Refusal as refusal:
                    status, reply = refusal.status, refusal.body
                text = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, format: str, *args: object) -> None:
                """Keep the terminal for the tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def call(self, method: str, url: SplitResult, body: bytes) -> Any:
        request = json.loads(body or b"{}") | dict(parse_qsl(url.query))
        for (verb, pattern), function in CALLS.items():
            if verb == method and (found := re.fullmatch(pattern, url.path)):
                return function(self.schemas, request, *map(unquote, found.groups()))
        raise Refusal(404, 404, "HTTP 404 Not Found")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
