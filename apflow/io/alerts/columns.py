"""Tables checked against an Avro record, column by column, before anything is encoded.

fastavro wraps an int32 that overflows, drops keys that it does not know and
refuses NumPy scalars in unions; so values are checked and converted here, for
whole columns at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.io.alerts.schema import Field, known_columns

_Series = pd.Series  # pandas-stubs alone knows its parameter
#: Columns of apdb.yaml, and of its indices, that no alert carries.
_PPDB_ONLY = frozenset({"validityEndMjdTai", "ssObjectReassocTimeMjdTai", "pixelId"})
#: Counts that are 0 where nothing was fitted: neither apdb.yaml nor the alert schema lets them be null.
_COUNTS = ("Ndata", "nDiaSources", "bboxSize")
_INT_RANGE = {"int": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_EXACT_FLOAT = 2.0**53


@dataclass(frozen=True, eq=False)
class Column:
    """Values of one field, and which of them are known (None: all)."""

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None = None

    def take(self, rows: NDArray[np.intp]) -> Column:
        """The column of some rows."""
        return Column(self.values[rows], None if self.valid is None else self.valid[rows])

    def to_list(self) -> list[Any]:
        """Python values, None where unknown."""
        values: list[Any] = self.values.tolist()
        if self.valid is None:
            return values
        return [v if known else None for v, known in zip(values, self.valid.tolist(), strict=True)]


def check_table(
    table: pd.DataFrame, fields: Sequence[Field], name: str, fill: Mapping[str, float] | None = None
) -> dict[str, Column]:
    """Columns of a table as a record's fields want them.

    NaN, infinity, None and NA are unknown, and so is 0 in a nullable id;
    counts that are unknown are 0. A nullable field without any known value is
    left out.

    Parameters
    ----------
    table : `pandas.DataFrame`
        At least one row; columns as apdb.yaml spells them.
    fields : `~collections.abc.Sequence` [`Field`]
        Fields of the record.
    name : `str`
        What the table is called in messages.
    fill : `~collections.abc.Mapping`, optional
        What to put where a required value is unknown, by field.

    Raises
    ------
    DataError
        A column is unknown to the schema, a required value is missing, or a
        value does not fit its type; the message names the field and the row.
    """
    if not table.columns.is_unique:
        raise DataError(f"{name}.{table.columns[table.columns.duplicated()][0]} is there twice")
    unknown = set(map(str, table.columns)) - {f.name for f in fields} - known_columns() - _PPDB_ONLY
    if unknown:
        raise DataError(f"{name}.{sorted(unknown)[0]} is not a field of the alert schema or of apdb.yaml")
    bare = table.copy(deep=False)
    bare.attrs = {}  # pandas would copy them for every column that is touched
    out = _floats(bare, [f for f in fields if f.name in bare.columns and f.type in ("float", "double")], name)
    for field in fields:
        if field.name in bare.columns and field.name not in out:
            out[field.name] = _CONVERT[field.type](bare[field.name], field, name)
    empty = Column(np.zeros(len(table), np.int64), np.zeros(len(table), bool))
    settled = {f.name: _settled(out.get(f.name, empty), f, name, (fill or {}).get(f.name)) for f in fields}
    return {key: column for key, column in settled.items() if column is not None}


def to_records(columns: Mapping[str, Column]) -> list[dict[str, Any]]:
    """Rows as mappings of Python values."""
    names = tuple(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*(c.to_list() for c in columns.values()), strict=True)]


def _settled(column: Column, field: Field, name: str, fill: float | None) -> Column | None:
    """The column with what is required filled; None where there is nothing to say."""
    if column.valid is None:
        return column
    if field.nullable:
        return column if column.valid.any() else None
    if fill is None and field.type == "int" and field.name.endswith(_COUNTS):
        fill = 0
    if fill is not None:
        return Column(np.where(column.valid, column.values, fill))
    raise DataError(
        f"{name}.{field.name} is missing or not finite in row {int(np.argmin(column.valid))}; accepted: a {field.type}"
    )


def _floats(table: pd.DataFrame, fields: Sequence[Field], name: str) -> dict[str, Column]:
    """All columns of floats at once."""
    if not fields:
        return {}
    names = [f.name for f in fields]
    kind_of = {c: d.kind if isinstance(d, np.dtype) else "O" for c, d in zip(table.columns, table.dtypes, strict=True)}
    kinds = [kind_of[n] for n in names]
    plain = [n for n, kind in zip(names, kinds, strict=True) if kind in "fiu"]
    matrix = np.empty((len(fields), len(table)))
    matrix[[kind in "fiu" for kind in kinds]] = table[plain].to_numpy(np.float64).T
    for i, field in enumerate(fields):
        if kinds[i] not in "fiu":
            matrix[i] = _as_floats(table[field.name], field, name)
    valid = np.isfinite(matrix)
    narrow = np.array([f.type == "float" for f in fields])
    over = valid & narrow[:, None] & (np.abs(matrix) > _FLOAT32_MAX)
    if over.any():
        i, row = np.argwhere(over)[0]
        raise DataError(f"{name}.{fields[i].name} is {float(matrix[i, row])} in row {row}; accepted: |value| < 3.4e38")
    full = valid.all(1).tolist()
    return {
        f.name: Column(values, None if whole else known)
        for f, values, known, whole in zip(fields, matrix, valid, full, strict=True)
    }


def _as_floats(series: _Series, field: Field, name: str) -> NDArray[np.float64]:
    """A column of Python objects or of a dtype of pandas's own."""
    try:
        if isinstance(series.dtype, np.dtype) and series.dtype.kind != "O":
            raise TypeError(f"its dtype is {series.dtype}")
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}.{field.name} holds no numbers: {error}; accepted: a {field.type}") from error


def _integers(series: _Series, field: Field, name: str) -> Column:
    values, valid = _plain(series)
    if values.dtype.kind not in "iufb":
        values = _from_objects(values, valid, field, name)
    if values.dtype.kind == "f":
        valid = valid & np.isfinite(values)
        values = np.where(valid, values, 0.0)
        if ((values != np.rint(values)) | (np.abs(values) >= _EXACT_FLOAT)).any():
            raise DataError(f"{name}.{field.name} holds floats that are no exact integers; accepted: a {field.type}")
        values = values.astype(np.int64)
    low, high = _INT_RANGE[field.type]
    for value in (int(values[valid].min(initial=0)), int(values[valid].max(initial=0))):
        if not low <= value <= high:
            raise DataError(f"{name}.{field.name} is {value}; accepted: a {field.type}, {low} to {high}")
    if field.nullable and field.name.endswith("Id"):
        valid = valid & (values != 0)
    return Column(values.astype(np.int64, copy=False), None if valid.all() else valid)


def _booleans(series: _Series, field: Field, name: str) -> Column:
    values, valid = _plain(series)
    if values.dtype.kind == "b":
        return Column(values, None if valid.all() else valid)
    known = values[valid]
    if values.dtype.kind == "f":
        valid = valid & np.isfinite(values)
        known = values[valid]
    if not all(v in (0, 1) for v in known.tolist()):
        raise DataError(f"{name}.{field.name} holds values other than true and false; accepted: a boolean")
    out = np.zeros(len(values), bool)
    out[valid] = known.astype(bool)
    return Column(out, None if valid.all() else valid)


def _strings(series: _Series, field: Field, name: str) -> Column:
    valid = series.notna().to_numpy()
    values = series.to_numpy(dtype=object)
    if not all(isinstance(v, str) for v in values[valid].tolist()):
        raise DataError(f"{name}.{field.name} holds values other than text; accepted: a string")
    return Column(values, None if valid.all() else valid)


def _plain(series: _Series) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A NumPy array, and which of its values are known (NaN is left to the caller)."""
    if isinstance(series.dtype, np.dtype) and series.dtype.kind != "O":
        return series.to_numpy(), np.ones(len(series), bool)
    array = series.array
    valid = ~np.asarray(array.isna())
    if isinstance(series.dtype, np.dtype):
        return series.to_numpy(), valid
    if series.dtype.kind in "biu":
        kind = bool if series.dtype.kind == "b" else np.int64
        return array.to_numpy(dtype=kind, na_value=0), valid
    return array.to_numpy(dtype=object), valid


def _from_objects(values: NDArray[Any], valid: NDArray[np.bool_], field: Field, name: str) -> NDArray[Any]:
    """Integers out of Python objects, exact beyond 2**53."""
    if not all(isinstance(v, int | np.integer | float) for v in values[valid].tolist()):
        raise DataError(f"{name}.{field.name} holds values other than numbers; accepted: a {field.type}")
    kept = np.where(valid, values, 0).tolist()
    if any(isinstance(v, float) for v in kept):
        return np.array(kept, np.float64)
    low, high = _INT_RANGE["long"]
    for value in (min(kept), max(kept)):
        if not low <= value <= high:
            raise DataError(f"{name}.{field.name} is {value}; accepted: a {field.type}")
    return np.array(kept, np.int64)


_CONVERT = {"int": _integers, "long": _integers, "boolean": _booleans, "string": _strings}
