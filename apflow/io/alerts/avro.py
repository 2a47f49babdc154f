"""The types of an Avro schema, out of what fastavro parsed (Apache Avro 1.11, "Schema Declaration")."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apflow.errors import BadRequest


class Kind(enum.IntEnum):
    """Scalar types, with the numbers by which the encoder's kernel knows them."""

    NULL = 0
    BOOLEAN = 1
    INT = 2
    LONG = 3
    FLOAT = 4
    DOUBLE = 5
    BYTES = 6
    STRING = 7
    ENUM = 8
    FIXED = 9


@dataclass(frozen=True)
class Scalar:
    """A type without parts; an enum has `symbols`, a fixed type a `size` in bytes, a time a `logical` type."""

    kind: Kind
    symbols: tuple[str, ...] = ()
    size: int = 0
    logical: str = ""


@dataclass(frozen=True, eq=False)
class Array:
    """A list of items of one type."""

    items: Type


@dataclass(frozen=True)
class Field:
    """One field of a record.

    Attributes
    ----------
    name : `str`
    type : `Scalar`, `Array` or `Record`
        What it holds where it is not null.
    branch, null : `int`
        Positions of that type and of null in the field's union; -1 where
        there is none.
    default : `object`
        What the schema gives it; `NO_DEFAULT` where it gives nothing.
    """

    name: str
    type: Type
    branch: int
    null: int
    default: Any

    @property
    def nullable(self) -> bool:
        """Whether the schema lets it be null."""
        return self.null >= 0 or self.kind == Kind.NULL

    @property
    def kind(self) -> Kind | None:
        """The scalar type; None for a list or a record."""
        return self.type.kind if isinstance(self.type, Scalar) else None


@dataclass(frozen=True, eq=False)
class Record:
    """Fields in the order in which they are encoded."""

    name: str
    fields: tuple[Field, ...]

    @property
    def flat(self) -> bool:
        """Whether every field is a scalar."""
        return all(f.kind is not None for f in self.fields)

    def field(self, name: str) -> Field:
        """A field by name.

        Raises
        ------
        BadRequest
            There is no such field.
        """
        for field in self.fields:
            if field.name == name:
                return field
        raise BadRequest(f"Avro record {self.name} has no field {name!r}")


Type = Scalar | Array | Record
NO_DEFAULT = object()


def record_of(definition: Mapping[str, Any]) -> Record:
    """The record that a schema describes.

    Parameters
    ----------
    definition : `~collections.abc.Mapping`
        As `fastavro.parse_schema` and `fastavro.schema.load_schema` give it.

    Raises
    ------
    BadRequest
        The schema is no record, or holds what columns cannot fill: a map, a
        union of several types besides null, or a record within itself.
    """
    read = _type(definition, definition.get("__named_schemas", {}), ())
    if not isinstance(read, Record):
        raise BadRequest(f"Avro schema of type {definition.get('type')!r}; accepted: a record")
    return read


def _type(spec: Any, named: Mapping[str, Any], within: tuple[str, ...]) -> Type:
    if isinstance(spec, str):
        if spec.upper() in Kind.__members__:
            return Scalar(Kind[spec.upper()])
        if spec not in named:
            raise BadRequest(f"Avro type {spec!r} is not defined")
        spec = named[spec]
    kind = spec["type"]
    if kind == "array":
        return Array(_type(spec["items"], named, within))
    if kind == "enum":
        return Scalar(Kind.ENUM, symbols=tuple(spec["symbols"]))
    if kind == "fixed":
        return Scalar(Kind.FIXED, size=int(spec["size"]))
    if kind == "record":
        name = str(spec["name"])
        if name in within:
            raise BadRequest(f"Avro record {name} holds itself; accepted: records of finite depth")
        return Record(name, tuple(_field(f, named, (*within, name)) for f in spec["fields"]))
    if kind == "map":
        raise BadRequest("Avro maps cannot be filled; accepted: records, arrays and scalars")
    plain = _type(kind, named, within)
    if isinstance(plain, Scalar) and "logicalType" in spec:
        return dataclasses.replace(plain, logical=str(spec["logicalType"]))
    return plain


def _field(spec: Mapping[str, Any], named: Mapping[str, Any], within: tuple[str, ...]) -> Field:
    name, union = str(spec["name"]), spec["type"]
    default = spec.get("default", NO_DEFAULT)
    if not isinstance(union, list):
        return Field(name, _type(union, named, within), -1, -1, default)
    held = [i for i, branch in enumerate(union) if branch != "null"]
    if len(held) != 1:
        raise BadRequest(f"Avro field {within[-1]}.{name} is a union of {len(held)} types; accepted: one and null")
    null = union.index("null") if "null" in union else -1
    return Field(name, _type(union[held[0]], named, within), held[0], null, default)
