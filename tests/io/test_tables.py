"""Tables keep types, nulls, units and descriptions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from apflow.errors import DataError
from apflow.io.tables import read_table, write_table
from apflow.model import schema


def test_a_table_comes_back_with_types_and_notes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"diaSourceId": [1, 2], "psfFlux": [1.5, None], "isDipole": pd.array([True, None], "boolean")})
    frame["psfFlux"] = frame["psfFlux"].astype("float32")
    frame.attrs = schema.attrs("DiaSource")
    write_table(tmp_path / "t.parquet", frame)
    back = read_table(tmp_path / "t.parquet")
    assert back.attrs["unit"]["psfFlux"] == "nJy"
    assert back.attrs["description"]["psfFlux"] == schema.table("DiaSource").column("psfFlux").description
    assert_frame_equal(back, frame, check_flags=False)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("not a table")
    for name in ("t.parquet", "none.parquet"):
        with pytest.raises(DataError, match=name):
            read_table(tmp_path / name)
