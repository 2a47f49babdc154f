"""DiaForcedSource rows, and for which objects there are any."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from apflow.catalogs.associate import associate
from apflow.catalogs.forced import forced_rows, to_be_forced
from apflow.errors import DataError
from apflow.model import schema
from apflow.model.ids import source_id
from tests.catalogs.sky import NOTHING, history, table

PLACES = pd.DataFrame({"diaObjectId": [30, 10, 20], "ra": [1.0, 2.0, 3.0], "dec": [-1.0, -2.0, -3.0]})
VISIT = {"visit": 2025042000123, "detector": 94, "band": "r", "midpoint_mjd_tai": 60000.5}


def test_rows_are_ordered_and_numbered_by_object() -> None:
    flux = np.array([3.0, 1.0, np.nan])
    rows = forced_rows(
        PLACES, psf_flux=flux, psf_flux_err=flux / 10, science_flux=flux * 2, science_flux_err=flux / 5, **VISIT
    )
    assert rows.dtypes.equals(schema.empty("DiaForcedSource").dtypes)
    assert rows["diaObjectId"].tolist() == [10, 20, 30]
    assert rows["diaForcedSourceId"].tolist() == [source_id(2025042000123, 94, k) for k in (1, 2, 3)]
    np.testing.assert_array_equal(rows["psfFlux"], [1.0, np.nan, 3.0])
    assert rows["ra"].tolist() == [2.0, 3.0, 1.0] and (rows["band"] == "r").all()


def test_wrong_length_and_repeated_objects_are_refused() -> None:
    three = np.ones(3)
    fluxes = {"psf_flux_err": three, "science_flux": three, "science_flux_err": three}
    with pytest.raises(DataError, match=r"psfFlux has shape \(2,\)"):
        forced_rows(PLACES, psf_flux=np.ones(2), **fluxes, **VISIT)
    with pytest.raises(DataError, match="object 10 is to be forced twice"):
        forced_rows(PLACES.assign(diaObjectId=[10, 10, 20]), psf_flux=three, **fluxes, **VISIT)


def test_detected_objects_are_forced_and_others_by_rules() -> None:
    known = table("DiaObject", np.arange(5) * 10.0, np.zeros(5), nDiaSources=[1, 1, 2, 5, 5])
    past = table("DiaSource", np.zeros(4), np.zeros(4), diaObjectId=[3, 4, 4, 5], reliability=[0.4, 0.2, 0.9, np.nan])
    new = table("DiaSource", [0.0, 200.0], np.zeros(2))
    out = associate(new, history(known), radius_arcsec=1.0, position_floor_arcsec=0.05, max_new_objects=10)

    def ids(min_sources: int, min_reliability: float) -> set[int]:
        rows = to_be_forced(out, history(known, past), min_sources=min_sources, min_reliability=min_reliability)
        assert rows["diaObjectId"].is_unique and list(rows) == ["diaObjectId", "ra", "dec"]
        return set(rows["diaObjectId"])

    assert ids(1, 0.0) == {1, 2, 3, 4, 5, 1001}
    assert ids(2, 0.0) == {1, 3, 4, 5, 1001}  # object 1 and the new one were detected, with few sources
    assert ids(2, 0.5) == {1, 4, 5, 1001}  # the best of object 4 is good enough; of object 5 nothing is known
    assert ids(9, 1.0) == {1, 1001}


def test_a_detected_object_is_forced_at_its_new_position() -> None:
    known = table("DiaObject", [0.0], [0.0], nDiaSources=1)
    out = associate(
        table("DiaSource", [0.4], [0.0]),
        history(known),
        radius_arcsec=1.0,
        position_floor_arcsec=0.05,
        max_new_objects=1,
    )
    rows = to_be_forced(out, history(known), min_sources=1, min_reliability=0.0)
    assert len(rows) == 1 and rows["ra"][0] == out.objects["ra"][0] != known["ra"][0]
    nothing = to_be_forced(
        associate(schema.empty("DiaSource"), NOTHING, radius_arcsec=1.0, position_floor_arcsec=0.05, max_new_objects=1),
        NOTHING,
        min_sources=1,
        min_reliability=0.0,
    )
    assert nothing.empty and list(nothing) == ["diaObjectId", "ra", "dec"]
