"""The tables of apdb.yaml (lsst-sdm-schemas), read through felis, and frames that conform to them.

Names, types, units and descriptions of the columns of DiaSource, DiaObject,
DiaForcedSource... come from there and are typed nowhere else. In a frame a
float column is a plain float32 or float64 with NaN for null, an integer that
may be null is Int16/Int32/Int64, a flag that may be null is ``boolean``.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import BadRequest, DataError
from apflow.model.casting import STAMPED, cast

_KINDS = {
    "double": ("float64", "float64"),
    "float": ("float32", "float32"),
    "long": ("int64", "Int64"),
    "int": ("int32", "Int32"),
    "short": ("int16", "Int16"),
    "boolean": ("bool", "boolean"),
    "string": ("str", "str"),
    "char": ("str", "str"),
}
#: Counts that are zero, not unknown, where nothing was fitted: apdb.yaml does not let them be null.
_COUNTS = ("Ndata", "nDiaSources", "bboxSize")
_RANGES = {"ra": (0.0, 360.0), "dec": (-90.0, 90.0)}


class Notes(dict[str, str]):
    """Units or descriptions by column; shared by every frame of a table, so not to be changed.

    pandas copies ``attrs`` deeply on each operation and JSON-encodes them into
    Parquet files: this copies as itself, pickles as a reference and encodes as a dict.
    """

    def __init__(self, table: str, what: str, values: dict[str, str]) -> None:
        super().__init__(values)
        self._reference = (table, what)

    def __deepcopy__(self, memo: Any) -> Notes:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _notes, self._reference


@dataclass(frozen=True)
class Column:
    """One column: `dtype` is its pandas dtype, `datatype` felis's word for it."""

    name: str
    datatype: str
    dtype: str
    unit: str
    description: str
    nullable: bool
    length: int | None = None
    default: int | None = None


@dataclass(frozen=True)
class Table:
    """One table, columns in the order of the schema."""

    name: str
    description: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(c.name for c in self.columns)

    @functools.cached_property
    def dtypes(self) -> tuple[Any, ...]:
        """pandas dtypes of the columns."""
        return tuple(pd.api.types.pandas_dtype(c.dtype) for c in self.columns)

    def column(self, name: str) -> Column:
        """A column by name."""
        for column in self.columns:
            if column.name == name:
                return column
        raise BadRequest(f"table {self.name} has no column {name!r}; accepted: {', '.join(self.names)}")


@functools.lru_cache(maxsize=1)
def _schema() -> tuple[str, dict[str, Table]]:
    # felis pulls in sqlalchemy and pydantic: half a second that only users of the schema pay.
    from felis.datamodel import Schema

    text = resources.files("lsst.sdm.schemas").joinpath("apdb.yaml")
    with resources.as_file(text) as path:
        schema = Schema.from_uri(str(path), context={"id_generation": True})
    return str(schema.version), {t.name: _table(t) for t in schema.tables}


def _table(source: Any) -> Table:
    key = source.primary_key or []
    ids = [key] if isinstance(key, str) else key
    columns = tuple(_column(c) for c in source.columns)
    return Table(source.name, source.description or "", columns, tuple(i.rsplit(".", 1)[1] for i in ids))


def _column(source: Any) -> Column:
    kind = source.datatype.value
    nullable = bool(source.nullable)
    default = source.value if source.value is not None else 0 if source.name.endswith(_COUNTS) else None
    return Column(
        source.name,
        kind,
        _KINDS.get(kind, ("str", "str"))[nullable],
        str(source.fits_tunit or source.ivoa_unit or ""),
        " ".join((source.description or "").split()),
        nullable,
        source.length,
        None if nullable or default is None else int(default),
    )


def version() -> str:
    """Version of apdb.yaml."""
    return _schema()[0]


def table(name: str) -> Table:
    """A table of apdb.yaml by name.

    Raises
    ------
    BadRequest
        There is no such table.
    """
    tables = _schema()[1]
    if name not in tables:
        raise BadRequest(f"no table {name!r} in apdb.yaml; accepted: {', '.join(tables)}")
    return tables[name]


@functools.cache
def _notes(name: str, what: str) -> Notes:
    return Notes(name, what, {c.name: getattr(c, what) for c in table(name).columns})


def attrs(name: str) -> dict[Hashable | None, Any]:
    """What `pandas.DataFrame.attrs` of a table hold: ``table``, ``unit`` and ``description`` by column."""
    return {"table": name, "unit": _notes(name, "unit"), "description": _notes(name, "description")}


def bare(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame without attrs, which pandas copies for each column that is taken out."""
    out = frame.copy(deep=False)
    out.attrs = {}
    return out


def empty(name: str) -> pd.DataFrame:
    """A table without rows."""
    return conform(pd.DataFrame(), name)


def conform(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A frame with all columns of a table, in its order and with its types.

    Missing columns become null; counts that may not be null become 0, and
    timeProcessedMjdTai waits, NaN, for the store. The index is dropped.

    Raises
    ------
    DataError
        A column is unknown, a value cannot be cast without loss, a column that
        may not be null is missing or holds nulls, or a position is out of
        range. The message names table, column and value.
    """
    target = table(name)
    if tuple(frame.columns) == target.names and tuple(frame.dtypes) == target.dtypes:
        return _checked(frame, target)
    unknown = [c for c in frame.columns if c not in set(target.names)]
    if unknown:
        raise DataError(
            f"{name} has no column {unknown[0]!r}; accepted: the columns of {name} in apdb.yaml {version()}"
        )
    if not frame.columns.is_unique:
        raise DataError(f"{name}: column {frame.columns[frame.columns.duplicated()][0]!r} is there twice")
    n = len(frame)
    given = dict(bare(frame).items())
    data = {
        column.name: cast(given[column.name], column, dtype, name)
        if column.name in given
        else _nulls(n, column, dtype, name)
        for column, dtype in zip(target.columns, target.dtypes, strict=True)
    }
    for column_name, (low, high) in _RANGES.items():
        if column_name in data and target.name.startswith("Dia"):
            _check_range(data[column_name], low, high, f"{name}.{column_name}")
    out = pd.DataFrame(data, copy=True)
    out.attrs = attrs(name)
    return out


def _checked(frame: pd.DataFrame, target: Table) -> pd.DataFrame:
    """A frame that has the columns and types of a table, if its values are accepted too."""
    plain = bare(frame)
    for column, dtype in zip(target.columns, target.dtypes, strict=True):
        # Only these types leave anything to be said about a value.
        if column.length is not None or (not column.nullable and column.dtype[0] in "fs"):
            cast(plain[column.name], column, dtype, target.name)
    for column_name, (low, high) in _RANGES.items():
        if column_name in target.names and target.name.startswith("Dia"):
            _check_range(plain[column_name].to_numpy(), low, high, f"{target.name}.{column_name}")
    plain.index = pd.RangeIndex(len(plain))
    plain.attrs = attrs(target.name)
    return plain


def _nulls(n: int, column: Column, dtype: Any, table_name: str) -> Any:
    if column.default is not None:
        return np.full(n, column.default, dtype)
    if not column.nullable and n and column.name != STAMPED:
        raise DataError(f"{table_name}.{column.name} is missing; it may not be null")
    if column.dtype in ("float32", "float64"):
        return np.full(n, np.nan, dtype)
    if column.nullable:
        return _null_array(n, dtype)
    return np.empty(0, dtype) if n == 0 and column.dtype != "str" else pd.array([""] * n, dtype=dtype)


@functools.lru_cache(maxsize=256)
def _null_array(n: int, dtype: Any) -> Any:
    return pd.array([None] * n, dtype=dtype)


def _check_range(values: NDArray[np.float64], low: float, high: float, what: str) -> None:
    bad = ~((values >= low) & (values <= high))
    if bad.any():
        raise DataError(f"{what} is {values[bad][0]}; accepted: {low:g} to {high:g}")
