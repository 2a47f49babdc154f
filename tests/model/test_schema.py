"""The schema is apdb.yaml's, and frames conform to it or say why not."""

from __future__ import annotations

import pickle
import time
from importlib import resources

import numpy as np
import pandas as pd
import pytest
import yaml

from apflow.errors import BadRequest, DataError
from apflow.model import schema


def sources(n: int = 3, **columns: object) -> pd.DataFrame:
    """DiaSources with the columns that may not be null."""
    given = {
        "diaSourceId": 168691488537968641 + np.arange(n),
        "visit": 2025042000123,
        "detector": 94,
        "midpointMjdTai": 60785.3,
        "ra": 10.0,
        "dec": np.linspace(-30, -29, n),
        "x": 1.0,
        "y": 2.0,
    }
    return pd.DataFrame(given | columns, index=range(n))


@pytest.mark.parametrize("name", ["DiaSource", "DiaObject", "DiaForcedSource"])
def test_columns_are_those_of_apdb_yaml(name: str) -> None:
    text = resources.files("lsst.sdm.schemas").joinpath("apdb.yaml").read_text()
    raw = next(t for t in yaml.safe_load(text)["tables"] if t["name"] == name)["columns"]
    table = schema.table(name)
    assert list(table.names) == [c["name"] for c in raw]
    assert [c.unit for c in table.columns] == [c.get("fits:tunit") or c.get("ivoa:unit") or "" for c in raw]
    assert [c.datatype for c in table.columns] == [c["datatype"] for c in raw]
    assert [c.nullable for c in table.columns] == [c.get("nullable", True) for c in raw]
    assert all(c.description for c in table.columns)


def test_dtypes_follow_type_and_nullability() -> None:
    found = {c.name: c.dtype for c in schema.table("DiaSource").columns}
    assert found["ra"] == "float64" and found["raErr"] == "float32"
    assert found["diaSourceId"] == "int64" and found["diaObjectId"] == "Int64"
    assert found["detector"] == "int16" and found["trailAlgorithm"] == "Int32"
    assert found["isNegative"] == "boolean" and found["band"] == "str"


def test_conform_fills_in_order_and_keeps_the_input() -> None:
    given = sources(diaObjectId=[None, 7, None], psfFlux=[1.5, None, 3.0], isNegative=[True, None, False], band="r")
    before = given.copy()
    frame = schema.conform(given, "DiaSource")
    assert tuple(frame.columns) == schema.table("DiaSource").names
    assert frame.dtypes.equals(schema.empty("DiaSource").dtypes)
    assert frame["diaObjectId"].isna().tolist() == [True, False, True]
    assert np.isnan(frame["psfFlux"].to_numpy()[1]) and frame["psfFlux"].dtype == np.float32
    assert frame["isNegative"].isna().tolist() == [False, True, False]
    assert frame["apFlux"].isna().all() and (frame["trailNdata"] == 0).all()
    frame.loc[0, "dec"] = 5.0
    frame.loc[0, "ssObjectId"] = 3
    assert frame["parentDiaSourceId"].isna().all()
    pd.testing.assert_frame_equal(given, before)


def test_conforming_again_changes_nothing() -> None:
    frame = schema.conform(sources(band="g"), "DiaSource")
    pd.testing.assert_frame_equal(schema.conform(frame, "DiaSource"), frame)


def test_large_ids_are_exact() -> None:
    ids = [168691488537968641, 168691488537968643, 2**63 - 1]
    frame = schema.conform(sources(diaSourceId=ids, diaObjectId=pd.array([ids[0], None, ids[2]], "Int64")), "DiaSource")
    assert frame["diaSourceId"].tolist() == ids
    assert frame["diaObjectId"][2] == ids[2]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"flux": 1.0}, ["DiaSource", "'flux'"]),
        ({"psfFlux": "bright"}, ["DiaSource.psfFlux", "'bright'"]),
        ({"detector": 40_000}, ["DiaSource.detector", "40000", "32767"]),
        ({"detector": 1.5}, ["DiaSource.detector", "1.5"]),
        ({"diaObjectId": 1.6869148853796864e17}, ["DiaSource.diaObjectId", "2**53"]),
        ({"diaSourceId": [1, None, 3]}, ["DiaSource.diaSourceId", "null", "row 1"]),
        ({"ra": [1.0, np.nan, 3.0]}, ["DiaSource.ra", "null", "row 1"]),
        ({"ra": 360.5}, ["DiaSource.ra", "360.5"]),
        ({"dec": -90.1}, ["DiaSource.dec", "-90.1"]),
        ({"isNegative": 2}, ["DiaSource.isNegative", "2"]),
        ({"band": 5}, ["DiaSource.band", "5"]),
        ({"band": "r_57"}, ["DiaSource.band", "'r_57'", "1 char"]),
        ({"psfFlux": 1e300}, ["DiaSource.psfFlux", "1e+300"]),
        ({"midpointMjdTai": pd.Timestamp("2025-04-20")}, ["DiaSource.midpointMjdTai", "datetime64"]),
    ],
)
def test_bad_values_are_named(columns: dict[str, object], words: list[str]) -> None:
    with pytest.raises(DataError) as error:
        schema.conform(sources(**columns), "DiaSource")
    assert all(word in str(error.value) for word in words), error.value


def test_a_missing_column_that_may_not_be_null_is_named() -> None:
    with pytest.raises(DataError, match=r"DiaSource.x is missing"):
        schema.conform(sources().drop(columns="x"), "DiaSource")


def test_unknown_table_is_refused() -> None:
    with pytest.raises(BadRequest, match="DiaSauce"):
        schema.table("DiaSauce")


def test_units_and_descriptions_travel_with_the_frame(tmp_path: object) -> None:
    frame = schema.empty("DiaSource")
    assert frame.attrs["unit"]["psfFlux"] == "nJy" and frame.attrs["description"]["ra"]
    again = pickle.loads(pickle.dumps(frame))
    assert again.attrs == frame.attrs and again.attrs["unit"] is frame.attrs["unit"]
    assert frame.copy().attrs["unit"] is frame.attrs["unit"]
    frame.to_parquet(f"{tmp_path}/empty.parquet")
    assert pd.read_parquet(f"{tmp_path}/empty.parquet").attrs["unit"]["psfFlux"] == "nJy"


def test_conform_is_quick() -> None:
    given = sources(40, band="r", psfFlux=1.0)
    schema.conform(given, "DiaSource")
    spent = []
    for _ in range(10):
        start = time.process_time()
        schema.conform(given, "DiaSource")
        spent.append(time.process_time() - start)
    assert min(spent) < 0.005
