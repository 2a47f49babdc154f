"""What Sasquatch takes: topics, Avro schemas that grow compatibly, records that fit them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NoReturn

import fastavro

#: Fields that every record has, by type. The identifiers are those of lsst.analysis.tools; Telegraf makes tags of them.
IDENTIFIERS = (
    *("detector", "patch", "skymap", "visit", "tract", "physical_filter"),
    *("instrument", "band", "exposure", "group", "day_obs"),
)
TAGS = ("dataset_tag", *IDENTIFIERS)
REQUIRED = {"timestamp": "double", "id": "string", **dict.fromkeys(TAGS, "string")}
METRIC = ["null", "double"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Seconds of Unix of 2015 and 2100: milliseconds, or days, are not between them.
_PLAUSIBLE = 1.42e9, 4.11e9


class Refusal(Exception):
    """An answer that tells of an error: HTTP status, Confluent's error code, message."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error_code": code, "message": message}


@dataclass
class Topics:
    """The topics there are, and what has been registered for each.

    Attributes
    ----------
    namespace : `str`
        All topics begin with it and a dot.
    fields : `dict` of `str` to `dict`
        All fields that any schema of a topic had, with their definitions.
    """

    namespace: str
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)

    def create(self, request: Any) -> dict[str, Any]:
        """Make a topic; a `Refusal` with 40002 where there is one."""
        match request:
            case {"topic_name": str(name), "partitions_count": int(), "replication_factor": int()} if len(request) == 3:
                pass
            case _:
                raise Refusal(400, 400, "accepted: topic_name, partitions_count, replication_factor")
        if not name.startswith(f"{self.namespace}."):
            raise Refusal(403, 40301, f"topic {name} is outside of namespace {self.namespace}")
        if name in self.fields:
            raise Refusal(400, 40002, f"Topic '{name}' already exists.")
        self.fields[name] = {}
        return {"kind": "KafkaTopic", "topic_name": name}

    def take(self, topic: str, body: bytes) -> list[str]:
        """Check a request to produce; returns the points as lines of InfluxDB's protocol.

        Raises
        ------
        Refusal
            The topic, the schema, or a record is not as the contract says.
        """
        if topic not in self.fields:
            raise Refusal(404, 40401, f"Topic {topic} not found.")
        try:
            request = json.loads(body, parse_constant=_no_number)
        except ValueError as error:
            raise Refusal(400, 400, f"the body is not JSON: {error}") from error
        match request:
            case {"value_schema": str(schema), "records": [_, *_] as records} if len(request) == 2:
                parsed = self._register(topic, schema)
                return [_line(topic, _decode(record, parsed)) for record in records]
        raise Refusal(422, 42202, "accepted: value_schema as a string, and records")

    def _register(self, topic: str, text: str) -> Any:
        """The schema, parsed."""
        try:
            schema = json.loads(text)
            parsed = fastavro.parse_schema(schema)
        except (ValueError, KeyError, TypeError, fastavro.schema.SchemaParseException) as error:
            raise Refusal(422, 42205, f"Invalid schema: {error}") from error
        if f"{schema.get('namespace')}.{schema.get('name')}" != topic:
            raise Refusal(422, 42205, f"the schema is called otherwise than topic {topic}")
        fields = {one["name"]: one for one in schema["fields"]}
        # Registries insist on what the specification says of names; fastavro does not.
        if illegal := [name for name in fields if not _NAME.fullmatch(name)]:
            raise Refusal(422, 42205, f"Invalid schema: illegal name {illegal[0]!r}")
        for name, kind in REQUIRED.items():
            if fields.get(name, {}).get("type") != kind:
                raise Refusal(422, 42205, f"field {name} has to be a {kind}")
        for name in fields.keys() - REQUIRED.keys():
            kind, default = fields[name]["type"], fields[name].get("default", 0)
            if kind != "string" and (kind, default) != (METRIC, None):
                raise Refusal(422, 42205, f"metric {name} has to be null or double, and null by default")
        known = self.fields[topic]
        for name in fields.keys() | known.keys():
            new, old = fields.get(name), known.get(name)
            if new and old and new["type"] != old["type"]:
                raise Refusal(422, 42201, f"schema of {topic} is incompatible: the type of {name} changed")
            # Who reads by the one schema what was written by the other needs a value.
            if known and not (new and old) and "default" not in (new or old or {}):
                raise Refusal(422, 42201, f"schema of {topic} is incompatible: {name} came or went without a default")
        known.update(fields)
        return parsed


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _decode(record: Any, schema: Any) -> dict[str, Any]:
    """Values by field, from the JSON encoding of Avro."""
    if not isinstance(record, dict) or record.keys() != {"value"} or not isinstance(record["value"], dict):
        raise Refusal(422, 42203, "accepted: records with a value each")
    given, kinds = record["value"], {one["name"]: one["type"] for one in schema["fields"]}
    if given.keys() != kinds.keys():
        raise Refusal(422, 42203, f"fields differ from the schema: {', '.join(given.keys() ^ kinds.keys())}")
    value: dict[str, Any] = {name: _plain(name, v) if kinds[name] == METRIC else v for name, v in given.items()}
    if not fastavro.validate(value, schema, raise_errors=False, strict=True):
        raise Refusal(422, 42203, "a record does not fit its schema")
    earliest, latest = _PLAUSIBLE
    if not earliest < value["timestamp"] < latest:
        raise Refusal(422, 42203, f"timestamp {value['timestamp']} is no time in seconds of Unix")
    return value


def _plain(name: str, value: Any) -> float | None:
    match value:
        case None:
            return None
        case {"double": float(number)} if len(value) == 1:
            return number
    raise Refusal(422, 42203, f"{name} is {value!r}; accepted: null or an object with a double")


def _line(topic: str, value: dict[str, Any]) -> str:
    tags = "".join(f",{key}={_escape(value[key])}" for key in sorted(TAGS) if value[key])
    fields = [
        f"{_escape(key)}={_literal(v)}"
        for key, v in value.items()
        if key not in TAGS and key != "timestamp" and v is not None
    ]
    return f"{_escape(topic)}{tags} {','.join(fields)} {round(Fraction(value['timestamp']) * 10**9)}"


def _escape(text: str) -> str:
    for special in "\\,= ":
        text = text.replace(special, f"\\{special}")
    return text


def _literal(value: str | float) -> str:
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"'
    return repr(value)
