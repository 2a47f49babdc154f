"""Frames of detectors are joined as pandas joins them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from apflow.io.ppdb.blocks import joined
from apflow.model import schema


def filled(name: str, n: int, seed: int) -> pd.DataFrame:
    """Rows with values and nulls in every column that may have them."""
    rng = np.random.default_rng(seed)
    data: dict[str, object] = {}
    for column in schema.table(name).columns:
        values = rng.uniform(1, 80, n)
        null = (rng.random(n) < 0.3) & column.nullable
        if column.dtype == "str":
            data[column.name] = pd.Series(np.where(null, None, "r"), dtype=object)
        elif column.dtype.startswith("float"):
            data[column.name] = np.where(null, np.nan, values)
        elif column.dtype.startswith("bool"):
            data[column.name] = pd.array(np.where(null, None, values < 40), "boolean")
        elif column.dtype.startswith("datetime"):
            continue
        else:
            data[column.name] = pd.array(np.where(null, None, values.astype(int)), "Int64")
    return schema.conform(pd.DataFrame(data), name)


@pytest.mark.parametrize("name", ["DiaSource", "DiaObject", "DiaForcedSource", "SSSource"])
def test_joined_is_concatenated(name: str):
    frames = [filled(name, n, seed) for seed, n in enumerate((3, 0, 7, 1))]
    frames.append(frames[2].iloc[2:5])  # a view, in blocks of other memory
    assert_frame_equal(joined(frames, name), pd.concat(frames, ignore_index=True), check_flags=False)


def test_frames_of_other_columns_or_types_are_not_joined():
    good = filled("DiaForcedSource", 3, 0)
    bad = [
        good.drop(columns="psfFlux"),
        good.astype({"psfFlux": "float64"}),
        good.astype({"diaForcedSourceId": "float64"}),
        good[sorted(good.columns)],
    ]
    for other in bad:
        assert joined([good, other], "DiaForcedSource") is None
        assert joined([other], "DiaForcedSource") is None
