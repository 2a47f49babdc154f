"""Tables as Parquet files that the Butler, pandas and astropy read, units and descriptions included."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from apflow.errors import DataError, ServiceError
from apflow.io.atomic import atomic


def write_table(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a table; the index is left out.

    Parameters
    ----------
    path : `str` or `pathlib.Path`
    frame : `pandas.DataFrame`
        ``frame.attrs["unit"]`` and ``frame.attrs["description"]``, mappings by
        column, go to the file where they are given.
    """
    notes = {what: frame.attrs.get(what, {}) for what in ("unit", "description")}
    bare = frame.copy(deep=False)
    bare.attrs = {}
    table = pa.Table.from_pandas(bare, preserve_index=False)
    fields = [
        field.with_metadata({what: text for what, of in notes.items() if (text := of.get(field.name))})
        for field in table.schema
    ]
    with atomic(path) as file:
        pq.write_table(table.cast(pa.schema(fields, table.schema.metadata)), file)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table that `write_table` wrote, notes included.

    Raises
    ------
    DataError
        The file is missing or not Parquet.
    ServiceError
        The file system failed.
    """
    try:
        table = pq.read_table(path, partitioning=None)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    except OSError as error:
        raise ServiceError(f"{path} cannot be read: {error}") from error
    frame: pd.DataFrame = table.to_pandas()
    for what in (b"unit", b"description"):
        frame.attrs[what.decode()] = {
            field.name: field.metadata[what].decode() for field in table.schema if what in (field.metadata or {})
        }
    return frame
