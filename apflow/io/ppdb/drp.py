"""Objects of the last Data Release, checked before they are loaded."""

from __future__ import annotations

import numpy as np
import pandas as pd

from apflow.errors import DataError
from apflow.model.products import no_drp_objects

#: How far from a detector DRP Objects are read, arcsec: DiaObject_To_Object_Match reaches as far.
DRP_MARGIN_ARCSEC = 60.0
_ACCEPTED = {"ra": (0.0, 360.0), "dec": (-90.0, 90.0), "extendedness": (0.0, 1.0)}


def conform_drp(objects: pd.DataFrame) -> pd.DataFrame:
    """DRP Objects with the columns and types of `History.drp`.

    Raises
    ------
    DataError
        A column is missing or unknown, an id is no whole number or is there
        twice, a value is out of range. Only extendedness may be NaN or missing.
    """
    expected = no_drp_objects()
    given = objects if "extendedness" in objects.columns else objects.assign(extendedness=np.nan)
    for name in (*given.columns, *expected.columns):
        if name not in given.columns or name not in expected.columns:
            raise DataError(
                f"DrpObject: column {name!r} is {'unknown' if name in given.columns else 'missing'}; "
                f"accepted: {', '.join(expected.columns)}"
            )
    if not pd.api.types.is_integer_dtype(given["objectId"].dtype) or given["objectId"].isna().any():
        raise DataError(
            f"DrpObject.objectId is of type {given['objectId'].dtype} or null; accepted: whole numbers, none null"
        )
    for name, (low, high) in _ACCEPTED.items():
        if not pd.api.types.is_numeric_dtype(given[name].dtype):
            raise DataError(f"DrpObject.{name} is of type {given[name].dtype}; accepted: numbers")
        values = given[name].to_numpy(np.float64, na_value=np.nan)
        bad = ~((values >= low) & (values <= high))
        if name == "extendedness":
            bad &= ~np.isnan(values)
        if bad.any():
            raise DataError(f"DrpObject.{name} is {values[bad][0]}; accepted: {low:g} to {high:g}")
    twice = given["objectId"].duplicated()
    if twice.any():
        raise DataError(f"DrpObject.objectId {given['objectId'][twice].iloc[0]} is there twice; accepted: each once")
    return pd.DataFrame({c: given[c].astype(expected[c].dtype).to_numpy() for c in expected.columns})
