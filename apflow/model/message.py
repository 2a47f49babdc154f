"""Fields of a record that somebody sent, checked one by one."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from apflow.errors import BadRequest
from apflow.model.ids import ImageName, parse_image_name

_LONGEST = 256
#: Of names, which become names of files.
_LONGEST_NAME = 80
_LARGEST = 1e18
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Fields:
    """Takes fields out of a record; each method raises `BadRequest` with field, value and what is accepted."""

    def __init__(self, what: str, record: Mapping[str, Any]) -> None:
        self._what, self._record = what, record

    def number(
        self, field: str, default: float | None = None, *, low: float = -math.inf, high: float = math.inf
    ) -> float:
        """A finite number in a range."""
        value = self._value(field, default)
        if not _is_number(value):
            raise self._refused(field, value, "a finite number")
        if not low <= value <= high:
            raise self._refused(field, value, f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more")
        return float(value)

    def optional_number(self, field: str, *, low: float, high: float) -> float | None:
        """A number, None where there is none."""
        return None if self._record.get(field) is None else self.number(field, low=low, high=high)

    def whole(self, field: str, default: int | None = None, *, low: float = -math.inf, high: float = math.inf) -> int:
        """A whole number in a range."""
        value = self._value(field, default)
        if not isinstance(value, int) or not _is_number(value):
            raise self._refused(field, value, "a whole number")
        return int(self.number(field, default, low=low, high=high))

    def code[E: enum.IntEnum](self, field: str, codes: type[E], default: E | None = None) -> E:
        """A number that stands for something."""
        value = self.whole(field, None if default is None else int(default))
        try:
            return codes(value)
        except ValueError:
            accepted = ", ".join(f"{code.value} ({code.name.lower()})" for code in codes)
            raise self._refused(field, value, accepted) from None

    def text(self, field: str, default: str | None = None) -> str:
        """A short text."""
        value = self._value(field, default)
        if not isinstance(value, str) or len(value) > _LONGEST or _CONTROL.search(value):
            raise self._refused(field, value, f"a text of up to {_LONGEST} characters")
        return value

    def name(self, field: str) -> str:
        """A text that says something."""
        value = self.text(field).strip()
        if not value or len(value) > _LONGEST_NAME or not value.isascii():
            raise self._refused(field, value, f"a name of 1 to {_LONGEST_NAME} ASCII characters")
        return value

    def pair(self, field: str, ranges: Sequence[tuple[float, float]] | None) -> tuple[float, float]:
        """Two finite numbers, each in its range where ranges are given."""
        value = self._value(field, None)
        accepted = "two numbers"
        if ranges:
            accepted += ", " + " and ".join(f"{low:g} to {high:g}" for low, high in ranges)
        is_pair = isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 2
        numbers = [v for v in value if _is_number(v)] if is_pair else []
        if len(numbers) != 2:
            raise self._refused(field, value, accepted)
        if ranges and not all(low <= v <= high for v, (low, high) in zip(numbers, ranges, strict=True)):
            raise self._refused(field, value, accepted)
        return float(numbers[0]), float(numbers[1])

    def image(self, field: str) -> tuple[str, ImageName]:
        """The name of an image, and its parts."""
        value = self.name(field)
        try:
            parts = parse_image_name(value)
        except BadRequest:
            raise self._refused(field, value, "MC_O_YYYYMMDD_NNNNNN") from None
        if parts.detector is not None:
            raise self._refused(field, value, "MC_O_YYYYMMDD_NNNNNN")
        return value, parts

    def additional(self, keys_field: str, values_field: str) -> dict[str, str]:
        """Keys and values separated by colons.

        A colon inside a value is escaped by a backslash; where it is not, the
        values that are too many belong to ``groupId``, the only one that is
        known to hold colons (it is a time).
        """
        keys = _split(self._long(keys_field))
        values = _split(self._long(values_field))
        more = len(values) - len(keys)
        if more > 0 and "groupId" in keys:
            at = keys.index("groupId")
            values[at : at + more + 1] = [":".join(values[at : at + more + 1])]
        if len(values) != len(keys):
            raise self._refused(values_field, ":".join(values), f"{len(keys)} values, as {keys_field} has keys")
        return dict(zip(keys, values, strict=True))

    def _long(self, field: str) -> str:
        value = self._value(field, "")
        if not isinstance(value, str) or len(value) > 16 * _LONGEST:
            raise self._refused(field, value, f"a text of up to {16 * _LONGEST} characters")
        return value

    def _value(self, field: str, default: Any) -> Any:
        value = self._record.get(field)
        if value is None:
            if default is None:
                raise BadRequest(f"{self._what}.{field} is missing")
            return default
        return value

    def _refused(self, field: str, value: Any, accepted: str) -> BadRequest:
        return BadRequest(f"{self._what}.{field} {repr(value)[:120]} is not accepted: {accepted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST  # not NaN


def _split(text: str) -> list[str]:
    return [part.replace("\\:", ":").strip() for part in re.split(r"(?<!\\):", text)] if text.strip() else []
