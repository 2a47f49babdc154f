"""DiaForcedSource rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from apflow.catalogs.forced import forced_rows
from apflow.errors import DataError
from apflow.model import schema
from apflow.model.ids import source_id

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
