"""A REST proxy like Sasquatch's that checks what it is sent and writes it into InfluxDB at once."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from apflow.errors import ServiceError
from apflow.operate.services.influxdb import InfluxServer
from apflow.operate.services.sasquatch_contract import Refusal, Topics

CLUSTER = "apflow-cluster"
_REMEMBERED = 256
_AVRO, _KAFKA, _JSON = "application/vnd.kafka.avro.v2+json", "application/vnd.kafka.v2+json", "application/json"


@dataclass(frozen=True)
class Trouble:
    """What is wrong with the service; by default nothing.

    Attributes
    ----------
    status : `int`
        HTTP status of every reply, instead of what was asked for; 0: none.
    error_code : `int`
        In replies with status 200; nothing is stored.
    record_error_code : `int`
        In such replies, for the first record of each request; the others are stored.
    delay_s : `float`
        Before each reply, seconds.
    hangs : `bool`
        Requests are read, and answered when the trouble is over.
    """

    status: int = 0
    error_code: int = 0
    record_error_code: int = 0
    delay_s: float = 0.0
    hangs: bool = False


@dataclass(frozen=True)
class Asked:
    """A request that came, and the points that it made, as lines of InfluxDB's protocol."""

    method: str
    path: str
    points: tuple[str, ...] = ()


class SasquatchProxy:
    """The part of Confluent's REST proxy that Sasquatch's clients use, on loopback, and what comes after it.

    Takes the place of Kafka and Telegraf too: a record is in InfluxDB before
    it is acknowledged.

    Parameters
    ----------
    influxdb : `~apflow.operate.services.influxdb.InfluxServer`
        Runs; the records come into its database `database`.
    token : `str`
        Who does not bear it is refused.
    database : `str`
    namespace : `str`, optional
    port : `int`, optional
        Default: a free one.

    Attributes
    ----------
    asked : `collections.deque` of `Asked`
        The last requests that were answered, in order.
    token : `str`
        May be changed, as a site does.
    most_at_once : `int`
        The most requests that were under way together.
    """

    def __init__(
        self, influxdb: InfluxServer, token: str, database: str, namespace: str = "lsst.prompt", port: int = 0
    ) -> None:
        self.token = token
        self.asked: deque[Asked] = deque(maxlen=_REMEMBERED)
        self.most_at_once = self._at_once = 0
        self.database = database
        self._influxdb, self._topics = influxdb, Topics(namespace)
        self._trouble, self._over = Trouble(), threading.Condition()
        self._lock = threading.Lock()
        self._port = port
        self._server: _Server | None = None
        self._thread = threading.Thread()

    @property
    def url(self) -> str:
        """Root of the API; the same after another start."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def trouble(self) -> Trouble:
        """What is wrong now; assign another, or `Trouble()` to end it."""
        return self._trouble

    @trouble.setter
    def trouble(self, trouble: Trouble) -> None:
        with self._over:
            self._trouble = trouble
            self._over.notify_all()

    def start(self) -> None:
        """Take requests; topics are remembered from before."""
        self._server = _Server(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        """Take no more, and cut the connections there are."""
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server.cut()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self.trouble = Trouble()

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and body of the reply to a request."""
        with self._over:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self._over.wait_for(lambda: not self._trouble.delay_s, self._trouble.delay_s)
            self._over.wait_for(lambda: not self._trouble.hangs)
            trouble = self._trouble
        with self._lock:
            self._at_once -= 1
            if trouble.status:
                self.asked.append(Asked(method, path))
                return trouble.status, {"error_code": trouble.status * 100 + 1, "message": "Trouble"}
            if trouble.error_code:
                self.asked.append(Asked(method, path))
                return 200, {"error_code": trouble.error_code, "message": "Trouble"}
            try:
                if headers.get("Authorization") != f"Bearer {self.token}":
                    raise Refusal(401, 40101, "Unauthorized")
                return self._route(method, path, headers, body, trouble.record_error_code)
            except Refusal as refusal:
                self.asked.append(Asked(method, path))
                return refusal.status, refusal.body

    def _route(
        self, method: str, path: str, headers: Any, body: bytes, record_error_code: int
    ) -> tuple[int, dict[str, Any]]:
        if (method, path) == ("GET", "/v3/clusters"):
            self.asked.append(Asked(method, path))
            return 200, {"kind": "KafkaClusterList", "data": [{"kind": "KafkaCluster", "cluster_id": CLUSTER}]}
        if (method, path) == ("POST", f"/v3/clusters/{CLUSTER}/topics"):
            _require(headers, "Content-Type", _JSON, 415)
            made = self._topics.create(json.loads(body))
            self.asked.append(Asked(method, path))
            return 201, made
        found = re.fullmatch(r"/topics/([\w.]+)", path)
        if method != "POST" or found is None:
            raise Refusal(404, 404, "HTTP 404 Not Found")
        _require(headers, "Content-Type", _AVRO, 415)
        _require(headers, "Accept", _KAFKA, 406)
        lines = self._topics.take(found[1], body)
        codes = [record_error_code or None] + [None] * (len(lines) - 1)
        stored = [line for line, code in zip(lines, codes, strict=True) if not code]
        if stored:
            try:
                self._influxdb.write(self.database, stored)
            except ServiceError as error:
                raise Refusal(503, 50301, str(error)) from error
        self.asked.append(Asked(method, path, tuple(stored)))
        offsets = [
            {"partition": 0, "offset": n, "error_code": code, "error": "Trouble" if code else None}
            for n, code in enumerate(codes)
        ]
        return 200, {"offsets": offsets, "key_schema_id": None, "value_schema_id": 1}


def _require(headers: Any, key: str, wanted: str, status: int) -> None:
    if headers.get(key) != wanted:
        raise Refusal(status, status, f"{key} is {headers.get(key)}; accepted: {wanted}")


class _Server(ThreadingHTTPServer):
    """Knows its connections, which clients keep open."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        """Break the connections off."""
        for connection in tuple(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # its client was faster


def _handler(proxy: SasquatchProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, reply = proxy.answer(self.command, self.path, self.headers, body)
            text = json.dumps(reply).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", _KAFKA)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except ConnectionError:
                self.close_connection = True  # the client did not wait

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
