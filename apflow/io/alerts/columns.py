"""Tables checked against an Avro record, column by column, before anything is encoded.

fastavro wraps an int32 that overflows, drops keys that it does not know and
refuses NumPy scalars in unions; so values are checked and converted here, for
whole columns at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.io.alerts.avro import Field, Kind, Record
from apflow.io.alerts.columnar import Batch
from apflow.io.alerts.schema import known_columns

_Series = pd.Series  # pandas-stubs alone knows its parameter
#: Columns of apdb.yaml, and of its indices, that no alert carries.
_PPDB_ONLY = frozenset({"validityEndMjdTai", "ssObjectReassocTimeMjdTai", "pixelId"})
#: Counts that are 0 where nothing was fitted: neither apdb.yaml nor the alert schema lets them be null.
_COUNTS = ("Ndata", "nDiaSources", "bboxSize")
#: How frames that conform to apdb.yaml store what may be null, where there are many columns of a kind.
_STORED: Mapping[Kind, Any] = {
    Kind.FLOAT: np.dtype("f4"),
    Kind.DOUBLE: np.dtype("f8"),
    Kind.BOOLEAN: pd.BooleanDtype(),
}
_INT64 = np.iinfo(np.int64)
_EXACT_FLOAT = 2.0**53


def check_table(
    table: pd.DataFrame,
    record: Record,
    name: str,
    fill: Mapping[str, float] | None = None,
    nan_for_null: bool = False,
) -> Batch:
    """Columns of a table as a record wants them.

    NaN, infinity, None and NA are unknown, and so is 0 in a nullable id;
    counts that are unknown are 0. A column that the table does not have gets
    the schema's default.

    Parameters
    ----------
    table : `pandas.DataFrame`
        Columns as apdb.yaml spells them.
    record : `~apflow.io.alerts.avro.Record`
        A flat one.
    name : `str`
        What the table is called in messages.
    fill : `~collections.abc.Mapping`, optional
        What to put where a required number is unknown, by field.
    nan_for_null : `bool`
        Nullable floats that are unknown become NaN instead of null.

    Raises
    ------
    DataError
        A column is unknown to the schema, a required value is missing, or a
        value does not fit its type; the message names the field and the row.
    """
    if not table.columns.is_unique:
        raise DataError(f"{name}.{table.columns[table.columns.duplicated()][0]} is there twice")
    unknown = set(table.columns.tolist()) - {f.name for f in record.fields} - known_columns() - _PPDB_ONLY
    if unknown:
        raise DataError(f"{name}.{min(map(str, unknown))} is not a field of the alert schema or of apdb.yaml")
    batch = Batch(record, len(table), name)
    _put_columns(batch, table)
    for i in batch.layout.required.tolist():
        if not batch.known[i].all():
            _settle(batch, record.fields[i], batch.known[i], fill or {})
    if nan_for_null:
        for field, known in zip(record.fields, batch.known, strict=True):
            if field.kind in (Kind.FLOAT, Kind.DOUBLE) and not known.all():
                batch.put(field.name, np.where(known, batch.column(field.name), np.nan))
    return batch


def _put_columns(batch: Batch, table: pd.DataFrame) -> None:
    """All columns that the record has: those stored as the schema wants them together, the others one by one."""
    fields = {f.name: f for f in batch.record.fields}
    names = table.columns.tolist()
    bare = table.copy(deep=False)
    bare.attrs = {}  # pandas would copy them for every column that is touched
    bare.columns = pd.RangeIndex(len(names))  # looked up faster than text
    alike: dict[Kind, list[int]] = {kind: [] for kind in _STORED}
    for i, (name, dtype) in enumerate(zip(names, bare.dtypes, strict=True)):
        field = fields.get(name)
        if field is None:
            continue
        kind = field.kind or Kind.NULL
        if kind in _STORED and dtype == _STORED[kind]:
            alike[kind].append(i)
        else:
            _PUT[kind](batch, field, bare[i])
    for kind, columns in alike.items():
        if kind == Kind.BOOLEAN and columns:
            flags = np.array([bare[i].array.to_numpy(dtype=np.int8, na_value=-1) for i in columns])
            batch.put_many([names[i] for i in columns], flags > 0, flags >= 0)
        elif columns:
            values = bare[columns].to_numpy().T
            batch.put_many([names[i] for i in columns], values, np.isfinite(values))


def _settle(batch: Batch, field: Field, known: NDArray[np.bool_], fill: Mapping[str, float]) -> None:
    """Fill what is required and unknown, or say what is missing."""
    value = fill.get(field.name)
    if value is None and field.kind == Kind.INT and field.name.endswith(_COUNTS):
        value = 0
    if value is None:
        kind = (field.kind or Kind.NULL).name.lower()
        row = int(np.argmin(known))
        raise DataError(f"{batch.name}.{field.name} is missing or not finite in row {row}; accepted: a {kind}")
    batch.put(field.name, np.where(known, batch.column(field.name), value))


def _put_floats(batch: Batch, field: Field, series: _Series) -> None:
    """A column that is not stored as the schema wants it."""
    try:
        if isinstance(series.dtype, np.dtype) and series.dtype.kind not in "fiuO":
            raise TypeError(f"its dtype is {series.dtype}")
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"{batch.name}.{field.name} holds no numbers: {error}; accepted: a float") from error
    batch.put(field.name, values, np.isfinite(values))


def _put_integers(batch: Batch, field: Field, series: _Series) -> None:
    what = f"{batch.name}.{field.name}"
    values, known = _plain(series)
    if values.dtype.kind == "O":
        values = _from_objects(values, known, what)
    if values.dtype.kind == "M" and getattr(field.type, "logical", "") == "timestamp-micros":
        known, values = ~np.isnat(values), values.astype("datetime64[us]").view(np.int64)
    if values.dtype.kind == "f":
        known = known & np.isfinite(values)
        values = np.where(known, values, 0.0)
        if ((values != np.rint(values)) | (np.abs(values) >= _EXACT_FLOAT)).any():
            raise DataError(f"{what} holds floats that are no exact integers; accepted: integers")
    elif values.dtype.kind not in "biu":
        raise DataError(f"{what} holds {values.dtype}; accepted: integers")
    elif int(values.max(initial=0)) > _INT64.max:
        raise DataError(f"{what} is {values.max()}; accepted: integers up to {_INT64.max}")
    if field.nullable and field.name.endswith("Id"):
        known = known & (values != 0)
    batch.put(field.name, values, known)


def _put_flags(batch: Batch, field: Field, series: _Series) -> None:
    values, known = _plain(series)
    if values.dtype.kind == "f":
        known = known & np.isfinite(values)
    if values.dtype.kind != "b" and not all(v in (0, 1) for v in values[known].tolist()):
        raise DataError(f"{batch.name}.{field.name} holds values other than true and false; accepted: a boolean")
    batch.put(field.name, np.where(known, values, 0).astype(np.int64), known)


def _put_symbols(batch: Batch, field: Field, series: _Series) -> None:
    known = series.notna().to_numpy()
    symbols = {s: i for i, s in enumerate(getattr(field.type, "symbols", ()))}
    values = series.to_numpy(dtype=object)
    strange = [v for v in values[known].tolist() if v not in symbols]
    if strange:
        raise DataError(f"{batch.name}.{field.name} is {strange[0]!r}; accepted: {', '.join(symbols)}")
    batch.put(field.name, [symbols.get(v, 0) for v in values.tolist()], known)


def _put_text(batch: Batch, field: Field, series: _Series) -> None:
    """Strings or bytes, by way of Arrow, which holds a column of them in one piece."""
    binary = field.kind != Kind.STRING
    accepted, kind = (bytes, pa.large_binary()) if binary else (str, pa.large_string())
    array, known = series.array, ~np.asarray(series.array.isna())
    sure = isinstance(series.dtype, pd.StringDtype) and not binary
    if not sure and not all(isinstance(v, accepted) for v in series[known]):
        raise DataError(f"{batch.name}.{field.name} holds values other than {accepted.__name__}, which is accepted")
    try:
        column = pa.array(array, kind, from_pandas=True)
    except UnicodeError as error:
        raise DataError(f"{batch.name}.{field.name} cannot be written as UTF-8: {error}") from error
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    _, ends, data = column.buffers()
    offsets = np.frombuffer(ends, np.int64)[column.offset : column.offset + len(column) + 1]
    batch.put_text(field.name, np.frombuffer(data or b"", np.uint8), offsets, known)


def _plain(series: _Series) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A NumPy array, and which of its values are known (NaN is left to the caller)."""
    if isinstance(series.dtype, np.dtype):
        values = series.to_numpy()
        return values, ~series.isna().to_numpy() if values.dtype.kind == "O" else np.ones(len(values), bool)
    if series.dtype.kind == "b":
        flags = series.array.to_numpy(dtype=np.int8, na_value=-1)
        return flags > 0, flags >= 0
    known = ~np.asarray(series.array.isna())
    if series.dtype.kind in "iu":
        return series.array.to_numpy(dtype=np.int64, na_value=0), known
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        return _plain(series.dt.tz_convert(None))
    return series.to_numpy(dtype=object), known


def _from_objects(values: NDArray[Any], known: NDArray[np.bool_], what: str) -> NDArray[Any]:
    """Integers out of Python objects, exact beyond 2**53."""
    if not all(isinstance(v, int | np.integer | float) for v in values[known].tolist()):
        raise DataError(f"{what} holds values other than numbers; accepted: integers")
    kept = np.where(known, values, 0).tolist()
    if any(isinstance(v, float) for v in kept):
        return np.array(kept, np.float64)
    for value in (min(kept), max(kept)):
        if not _INT64.min <= value <= _INT64.max:
            raise DataError(f"{what} is {value}; accepted: {_INT64.min} to {_INT64.max}")
    return np.array(kept, np.int64)


def _put_nothing(batch: Batch, field: Field, series: _Series) -> None:
    """A field that the schema says is always null."""
    if series.notna().any():
        raise DataError(f"{batch.name}.{field.name} holds values; the alert schema accepts only null")


_PUT = {
    Kind.NULL: _put_nothing,
    Kind.BOOLEAN: _put_flags,
    Kind.INT: _put_integers,
    Kind.LONG: _put_integers,
    Kind.FLOAT: _put_floats,
    Kind.DOUBLE: _put_floats,
    Kind.BYTES: _put_text,
    Kind.STRING: _put_text,
    Kind.ENUM: _put_symbols,
    Kind.FIXED: _put_text,
}
