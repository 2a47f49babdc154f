"""Events by HTTP POST: ``/nextVisit``, ``/nextVisitCanceled``, ``/startIntegration``."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from apflow.errors import BadRequest
from apflow.io.next_visit.door import Notice, decode_json, notice
from apflow.model.next_visit import KINDS

_LARGEST = 1 << 20
#: A client that sends nothing for so long is left.
_CLIENT_S = 10.0
#: For an event to be recorded; then the client is told to try again.
_RECORD_S = 10.0


class HttpDoor:
    """A small server; it has no authentication, so it listens on this machine alone unless told otherwise.

    A POST of an event's record, JSON, is answered 202 when what it asks for is
    safely recorded, 400 with the reason when it is not acceptable, 503 when it
    cannot be recorded now; ``GET /`` by 200 while the server is there.

    Parameters
    ----------
    address : `str`
        ``:port``, ``host:port``; port 0 takes a free one. Without a host: loopback.

    Raises
    ------
    BadRequest
        The address is not accepted, or in use.
    """

    def __init__(self, address: str = ":0") -> None:
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65_535:
            raise BadRequest(f"HTTP address {address!r} is not accepted: :port or host:port")
        self._notices: queue.SimpleQueue[Notice | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        try:
            self._server = _Server((host or "127.0.0.1", int(port)), self)
        except OSError as error:
            raise BadRequest(f"HTTP address {address!r} cannot be listened on: {error.strerror}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http door", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def notices(self) -> Iterator[Notice]:
        """See `Door`."""
        while (one := self._notices.get()) is not None:
            yield one

    def done(self, notice: Notice) -> None:
        """See `Door`: the client is answered now."""
        if notice.token is not None:
            notice.token.set()

    def close(self) -> None:
        """See `Door`; requests that were not recorded are answered 503."""
        if not self._closed.is_set():
            self._closed.set()
            self._notices.put(None)
            self._server.shutdown()
            self._server.server_close()

    def take(self, kind: str, body: bytes, client: str) -> tuple[int, str]:
        """Answer to a POST (the server's): status and reason."""
        token = threading.Event()
        try:
            one = notice(kind, decode_json(body, "the body"), client, token)
        except BadRequest as error:
            one = Notice(None, client, str(error), kind)
        if self._closed.is_set():
            return 503, "the service ends"
        self._notices.put(one)
        if one.message is None:
            return 400, one.refusal
        return (202, "recorded") if token.wait(_RECORD_S) else (503, f"not recorded within {_RECORD_S:g} s; try again")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], door: HttpDoor) -> None:
        self.door = door
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _CLIENT_S
    server: _Server

    def do_GET(self) -> None:
        """Say that the server is there."""
        self._answer(200 if self.path == "/" else 404, "POST an event to " + ", ".join(f"/{kind}" for kind in KINDS))

    def do_POST(self) -> None:
        """Take an event."""
        kind, length = self.path.strip("/"), self.headers.get("Content-Length", "")
        if kind not in KINDS:
            return self._answer(404, f"{self.path!r} is not accepted: " + ", ".join(f"/{kind}" for kind in KINDS))
        if not length.isdigit() or int(length) > _LARGEST:
            self.close_connection = True  # what follows cannot be told from the next request
            return self._answer(411 if not length else 413, f"Content-Length: up to {_LARGEST} is accepted")
        body = self.rfile.read(int(length))
        return self._answer(*self.server.door.take(kind, body, f"http {self.client_address[0]}"))

    def _answer(self, status: int, text: str) -> None:
        body = json.dumps({"error" if status >= 400 else "status": text}).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """The service logs what it takes."""
