"""Alert schemas, as lsst-alert-packet publishes them."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
from lsst.alert.packet import get_latest_schema_version, get_schema_root

from apflow.errors import BadRequest


@dataclass(frozen=True)
class Field:
    """One field of a record: an Avro primitive, perhaps in a union with null."""

    name: str
    type: str
    nullable: bool


@dataclass(frozen=True, eq=False)
class AlertSchema:
    """One version of the alert schema.

    Attributes
    ----------
    version : `str`
        ``major.minor``.
    definition : `dict`
        The schema, parsed by fastavro, every type resolved.
    sources, objects, forced : `tuple` [`Field`, ...]
        Fields of the records diaSource, diaObject and diaForcedSource.
    """

    version: str
    definition: dict[str, Any]
    sources: tuple[Field, ...]
    objects: tuple[Field, ...]
    forced: tuple[Field, ...]

    @property
    def registry_id(self) -> int:
        """Id in Rubin's schema registry: 1101 for 11.1."""
        return registry_id(self.version)

    def decode(self, datum: bytes) -> dict[str, Any]:
        """The record of an unframed datum."""
        record: Any = fastavro.schemaless_reader(io.BytesIO(datum), self.definition, None)
        return dict(record)


def registry_id(version: str) -> int:
    """Id in Rubin's schema registry: 1101 for 11.1."""
    major, minor = version.split(".")
    return 100 * int(major) + int(minor)


def frame(datum: bytes, schema_id: int = 1101) -> bytes:
    """Confluent framing: a zero byte and the schema's id as a big-endian int32, then the datum."""
    return struct.pack(">bi", 0, schema_id) + datum


def available_versions() -> list[str]:
    """Versions that the installed lsst-alert-packet holds, oldest first."""
    found = {(int(p.parent.name), int(p.name)) for p in Path(str(get_schema_root())).glob("[0-9]*/[0-9]*")}
    return [f"{major}.{minor}" for major, minor in sorted(found)]


@functools.lru_cache(maxsize=8)
def load_schema(version: str) -> AlertSchema:
    """A schema by its version.

    Raises
    ------
    BadRequest
        lsst-alert-packet has no such version, or it describes records other
        than today's (diaSource, diaObject, diaForcedSource of flat fields).
    """
    if version not in available_versions():
        raise BadRequest(f"no alert schema {version!r}; accepted: {', '.join(available_versions())}")
    major, minor = version.split(".")
    path = Path(str(get_schema_root())) / major / minor / f"lsst.v{major}_{minor}.alert.avsc"
    definition: Any = fastavro.schema.load_schema(str(path))
    try:
        return AlertSchema(
            version,
            definition,
            _fields(definition, "diaSource"),
            _fields(definition, "diaObject"),
            _fields(definition, "prvDiaForcedSources"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"alert schema {version} cannot be filled: {error}; accepted: 11.0 and newer") from error


@functools.lru_cache(maxsize=1)
def known_columns() -> frozenset[str]:
    """Columns that the newest schema knows: an older one leaves some of them out on purpose."""
    schema = load_schema("{}.{}".format(*get_latest_schema_version()))
    return frozenset(f.name for fields in (schema.sources, schema.objects, schema.forced) for f in fields)


def _fields(definition: Mapping[str, Any], name: str) -> tuple[Field, ...]:
    """Flat fields of the record that a field of the alert holds, alone, in a list or in a union."""
    kind = {f["name"]: f["type"] for f in definition["fields"]}[name]
    record = _record(kind)
    if record is None:
        raise ValueError(f"field {name} holds no record")
    return tuple(_field(f) for f in record["fields"])


def _record(kind: Any) -> Mapping[str, Any] | None:
    if isinstance(kind, list):
        return next((r for r in map(_record, kind) if r is not None), None)
    if isinstance(kind, Mapping):
        return kind if kind["type"] == "record" else _record(kind["items"])
    return None


def _field(spec: Mapping[str, Any]) -> Field:
    kinds = spec["type"] if isinstance(spec["type"], list) else [spec["type"]]
    (kind,) = (k for k in kinds if k != "null")
    return Field(spec["name"], kind if isinstance(kind, str) else kind["type"], "null" in kinds)
