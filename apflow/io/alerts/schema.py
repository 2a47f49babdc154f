"""Alert schemas, as lsst-alert-packet publishes them."""

from __future__ import annotations

import functools
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
from lsst.alert.packet import get_latest_schema_version, get_schema_root

from apflow.errors import BadRequest
from apflow.io.alerts.avro import Array, Record, record_of


@dataclass(frozen=True, eq=False)
class AlertSchema:
    """One version of the alert schema.

    Attributes
    ----------
    version : `str`
        ``major.minor``.
    definition : `dict`
        The schema, parsed by fastavro, every type resolved.
    record : `~apflow.io.alerts.avro.Record`
        The same as types, for the encoder.
    """

    version: str
    definition: dict[str, Any]
    record: Record

    def part(self, name: str) -> Record | None:
        """The record that a field of the alert holds, alone or in a list; None where this version has no such field."""
        for field in self.record.fields:
            if field.name == name:
                held = field.type.items if isinstance(field.type, Array) else field.type
                return held if isinstance(held, Record) else None
        return None

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
    return read_schema(path, version)


def read_schema(path: str | Path, version: str) -> AlertSchema:
    """A schema from a file, beside which lie the files of the types that it names.

    Raises
    ------
    BadRequest
        It describes records other than today's.
    """
    definition: Any = fastavro.schema.load_schema(str(path))
    schema = AlertSchema(version, definition, record_of(definition))
    for name in ("diaSource", "diaObject", "prvDiaSources", "prvDiaForcedSources"):
        part = schema.part(name)
        if part is None or not part.flat:
            raise BadRequest(
                f"alert schema {version} has no records of flat fields in {name}; accepted: 11.0 and newer"
            )
    return schema


@functools.lru_cache(maxsize=1)
def known_columns() -> frozenset[str]:
    """Columns that the newest schema knows: an older one leaves some of them out on purpose."""
    schema = load_schema("{}.{}".format(*get_latest_schema_version()))
    parts = (schema.part(f.name) for f in schema.record.fields)
    return frozenset(f.name for part in parts if part is not None for f in part.fields)
