"""Sasquatch's REST proxy: Confluent's, which produces to Kafka."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import requests

from apflow.config_tables import Sasquatch
from apflow.errors import ServiceError
from apflow.io.sasquatch.records import Record, schema

#: Of a new topic, as Rubin's dispatcher asks for them.
PARTITIONS, REPLICAS = 1, 3
_AVRO = "application/vnd.kafka.avro.v2+json"
_REPLY = "application/vnd.kafka.v2+json"
#: Proxies in front of the service commonly refuse bodies of more than 1 MB.
_BODY_BYTES = 500_000
#: In a reply about one record: sent again it may succeed.
_RETRIABLE = 2
#: Statuses of 400 and more that tell of the service or of our rights, not of what was sent.
_NOT_THE_RECORDS = (401, 403, 404, 407, 408, 425, 429)


class Refused(Exception):
    """The service will never take what was sent."""


class _Bearer(requests.auth.AuthBase):
    """The token of a file; nothing else holds it, so that nothing can show it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.path:
            request.headers["Authorization"] = f"Bearer {self._token()}"
        return request

    def _token(self) -> str:
        try:
            token = Path(self.path).read_text().partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceError(f"token_file {self.path} cannot be read: {type(error).__name__}") from error
        if not (token.isascii() and token.isprintable() and token and " " not in token):
            raise ServiceError(f"token_file {self.path} holds no token; accepted: one in the first line")
        return token


class Proxy:
    """A client of the proxy, for one thread.

    Parameters
    ----------
    settings : `~apflow.config_tables.Sasquatch`
        The token is read anew for each request, so that a new one is used at once.
    """

    def __init__(self, settings: Sasquatch) -> None:
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._session = requests.Session()
        # Without one, requests would prefer a password of the user's .netrc.
        self._session.auth = _Bearer(settings.token_file)
        self._cluster = ""
        self._topics: set[str] = set()

    def send(self, records: Sequence[Record]) -> list[tuple[list[Record], str]]:
        """Send records of one action that have the same metrics.

        Returns
        -------
        refused : `list` of `tuple` of `list` of `Record` and `str`
            Those that the service will never take, and why.

        Raises
        ------
        ServiceError
            The service does not answer, or not now, or not to us. Some of the
            records may have been taken: send all again.
        """
        refused = []
        for part in _parts(records):
            try:
                refused += self._produce(*part)
            except Refused as error:
                refused.append((part[0], str(error)))
        return refused

    def cluster(self) -> str:
        """The Kafka cluster behind the proxy.

        Raises
        ------
        ServiceError
            The service does not answer, or not to us.
        """
        try:
            return self._find_cluster()
        except Refused as error:
            raise ServiceError(f"Sasquatch at {self._url} refuses to name its Kafka cluster: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _produce(self, records: list[Record], values: list[str]) -> list[tuple[list[Record], str]]:
        action, metrics = records[0].action, tuple(records[0].values)
        topic = f"{self._settings.namespace}.{action}"
        self._make(topic)
        text = json.dumps(schema(self._settings.namespace, action, metrics))
        body = f'{{"value_schema": {text}, "records": [{", ".join(f'{{"value": {v}}}' for v in values)}]}}'
        headers = {"Content-Type": _AVRO, "Accept": _REPLY}
        try:
            reply = self._ask("POST", f"/topics/{topic}", data=body.encode(), headers=headers)
        except ServiceError:
            # It may be that the topic was deleted.
            self._topics.discard(topic)
            raise
        return self._refused(records, reply.get("offsets") or [], topic)

    def _refused(
        self, records: list[Record], offsets: Sequence[dict[str, Any]], topic: str
    ) -> list[tuple[list[Record], str]]:
        refused = []
        for record, offset in zip(records, offsets, strict=False):
            code = offset.get("error_code")
            if code:
                reason = f"{topic}: error_code {code}: {offset.get('error')}"
                if code == _RETRIABLE or code // 100 in _NOT_THE_RECORDS or code // 100 >= 500:
                    raise ServiceError(f"Sasquatch at {self._url} did not take a record of {reason}")
                refused.append(([record], reason))
        return refused

    def _make(self, topic: str) -> None:
        if topic in self._topics:
            return
        if not self._cluster:
            self._cluster = self._find_cluster()
        wanted = {"topic_name": topic, "partitions_count": PARTITIONS, "replication_factor": REPLICAS}
        try:
            self._ask("POST", f"/v3/clusters/{self._cluster}/topics", json=wanted)
        except Refused as error:
            # Producing will tell whether it is there: proxies differ in how they say so here.
            if not str(error).startswith(("400", "409")):
                raise
        self._topics.add(topic)

    def _find_cluster(self) -> str:
        match self._ask("GET", "/v3/clusters"):
            case {"data": [{"cluster_id": str(cluster)}, *_]}:
                return cluster
        raise ServiceError(f"Sasquatch at {self._url} names no Kafka cluster")

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        where = f"Sasquatch at {self._url}"
        try:
            response = self._session.request(
                method, self._url + path, timeout=self._settings.timeout_s, allow_redirects=False, **request
            )
        except requests.RequestException as error:
            raise ServiceError(f"{where} does not answer {method} {path}: {type(error).__name__}") from error
        try:
            reply = response.json()
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            reply = {"error_code": response.status_code, "message": response.reason}
            if response.ok:
                raise ServiceError(f"{where} answers {method} {path} with something else than JSON")
        code = reply.get("error_code") or (0 if 200 <= response.status_code < 300 else response.status_code)
        if not code:
            return reply
        status = code // 100 if code >= 10_000 else code
        told = f"{code}: {reply.get('message')}"
        if status in (401, 403):
            raise ServiceError(f"{where} refuses the token of token_file {self._settings.token_file!r}: {told}")
        # A proxy whose registry refuses the schema says 40801, as it does when the registry is away.
        if (status in _NOT_THE_RECORDS and "incompatible" not in told.lower()) or not 400 <= status < 500:
            raise ServiceError(f"{where} answers {method} {path} with {told}")
        raise Refused(told)


def _parts(records: Iterable[Record]) -> Iterator[tuple[list[Record], list[str]]]:
    """Records and their JSON, as many at a time as fit into one request."""
    part: list[Record] = []
    values: list[str] = []
    size = 0
    for record in records:
        value = record.json()
        if part and size + len(value) > _BODY_BYTES:
            yield part, values
            part, values, size = [], [], 0
        part.append(record)
        values.append(value)
        size += len(value)
    if part:
        yield part, values
