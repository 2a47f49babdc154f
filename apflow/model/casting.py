"""Casting columns to the types of the schema, without loss or with a `DataError`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import DataError

if TYPE_CHECKING:
    from apflow.model.schema import Column

#: Stamped by the PPDB when it stores a row, and NaN until then.
STAMPED = "timeProcessedMjdTai"


def cast(series: pd.Series, column: Column, dtype: Any, table_name: str) -> Any:
    """A column as an array of its schema's type; see `apflow.model.schema.conform` for what is refused."""
    what = f"{table_name}.{column.name}"
    if series.dtype == dtype:
        values = series.to_numpy() if isinstance(dtype, np.dtype) else series.array
    elif column.dtype.startswith("float"):
        values = _floats(series, dtype, what)
    elif "int" in column.dtype.lower():
        values = _integers(series, column, dtype, what)
    elif column.dtype.startswith("bool"):
        values = _flags(series, column, dtype, what)
    else:
        values = _strings(series, dtype, what)
    if not column.nullable and column.name != STAMPED and pd.isna(values).any():
        raise DataError(f"{what} is null in row {int(np.argmax(pd.isna(values)))}; it may not be null")
    if column.length is not None and len(values):
        texts = pd.Series(values, dtype=dtype)
        lengths = texts.str.len().fillna(0).to_numpy()
        if lengths.max() > column.length:
            longest = texts.iloc[int(np.argmax(lengths))]
            raise DataError(f"{what} is {longest!r}; accepted: at most {column.length} characters")
    return values


def _refuse(series: pd.Series, accepted: str, what: str) -> DataError:
    bad = next((v for v in series if isinstance(v, (str, bytes, list, dict))), None)
    shown = repr(bad) if bad is not None else f"of type {series.dtype}"
    return DataError(f"{what} is {shown}; accepted: {accepted}")


def _numeric(series: pd.Series, accepted: str, what: str) -> pd.Series:
    """An object column as one of numbers; others as they are."""
    if series.dtype == object:
        if series.isna().all():
            return pd.Series(np.full(len(series), np.nan))
        kind = pd.api.types.infer_dtype(series, skipna=True)
        if kind == "integer":
            return pd.Series(pd.array(series.to_numpy(), dtype="Int64"))
        if kind == "boolean":
            return pd.Series(pd.array(series.to_numpy(), dtype="boolean"))
        if kind in ("floating", "mixed-integer-float"):
            return pd.Series(series.to_numpy(np.float64, na_value=np.nan))
    if not (pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_bool_dtype(series.dtype)):
        raise _refuse(series, accepted, what)
    return series


def _floats(series: pd.Series, dtype: Any, what: str) -> NDArray[Any]:
    values = _numeric(series, "numbers", what).to_numpy(np.float64, na_value=np.nan)
    with np.errstate(over="ignore", under="ignore"):
        out = values.astype(dtype)
    lost = np.isinf(out) & np.isfinite(values)
    if lost.any():
        raise DataError(f"{what} is {values[lost][0]}; accepted: what fits {dtype}")
    return out


def _integers(series: pd.Series, column: Column, dtype: Any, what: str) -> Any:
    source = _numeric(series, "whole numbers", what)
    null = source.isna().to_numpy()
    if source.dtype.kind == "f":
        values = source.to_numpy(np.float64, na_value=np.nan)
        filled = np.where(null, 0.0, values)
        bad = (filled != np.round(filled)) | (np.abs(filled) > 2.0**53)
        if bad.any():
            raise DataError(f"{what} is {float(filled[bad][0])!r}; accepted: whole numbers, as integers beyond 2**53")
        whole = filled.astype(np.int64)
    else:
        whole = source.to_numpy(np.int64, na_value=0)
    base = np.dtype(column.dtype.lower())
    limits = np.iinfo(base)
    out_of_range = (whole < limits.min) | (whole > limits.max)
    if out_of_range.any():
        raise DataError(f"{what} is {whole[out_of_range][0]}; accepted: {limits.min} to {limits.max}")
    if column.nullable or null.any():
        return pd.arrays.IntegerArray(whole.astype(base), null.copy())
    return whole.astype(base)


def _flags(series: pd.Series, column: Column, dtype: Any, what: str) -> Any:
    source = _numeric(series, "true or false", what)
    null = source.isna().to_numpy()
    values = (
        source.to_numpy(np.float64, na_value=0.0) if source.dtype.kind != "b" else source.to_numpy(bool, na_value=False)
    )
    bad = ~null & (values != 0) & (values != 1)
    if bad.any():
        raise DataError(f"{what} is {values[bad][0]}; accepted: true or false")
    flags = np.where(null, False, values).astype(bool)
    return pd.arrays.BooleanArray(flags, null.copy()) if column.nullable or null.any() else flags


def _strings(series: pd.Series, dtype: Any, what: str) -> Any:
    kind = pd.api.types.infer_dtype(series, skipna=True)
    if kind not in ("string", "empty") and not series.isna().all():
        wrong = next(v for v in series.to_numpy(object) if not isinstance(v, str) and not pd.isna(v))
        raise DataError(f"{what} is {wrong!r}; accepted: text")
    return series.astype(dtype).array
