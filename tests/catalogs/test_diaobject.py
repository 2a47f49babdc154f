"""DiaObject versions say what their sources say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from apflow.catalogs.diaobject import new_versions
from apflow.model import schema
from apflow.model.products import History


def sources(ids: list[int], objects: list[int], **columns: object) -> pd.DataFrame:
    given: dict[str, object] = {"diaSourceId": ids, "diaObjectId": objects, "visit": 2025042000123, "detector": 1}
    given |= {"midpointMjdTai": 60000.5, "ra": 10.0, "dec": 0.0, "x": 0.0, "y": 0.0, "band": "r"}
    given |= {"raErr": 0.1 / 3600, "decErr": 0.1 / 3600, "psfFlux": 100.0, "psfFluxErr": 10.0}
    return schema.conform(pd.DataFrame(given | columns), "DiaSource")


def past(objects: pd.DataFrame, rows: pd.DataFrame) -> History:
    return History(objects, rows, schema.empty("DiaForcedSource"))


NOTHING = past(schema.empty("DiaObject"), schema.empty("DiaSource"))


def test_statistics_of_one_band() -> None:
    old = sources([1, 2], [7, 7], psfFlux=[90.0, 130.0], psfFluxErr=[10.0, 20.0], midpointMjdTai=[59999.0, 59998.0])
    known = new_versions(old, NOTHING, position_floor_arcsec=0.05)
    new = sources([3], [7], psfFlux=110.0, psfFluxErr=10.0, scienceFlux=500.0, scienceFluxErr=5.0)
    row = new_versions(new, past(known, old), position_floor_arcsec=0.05).iloc[0]
    flux, error = np.array([90.0, 130.0, 110.0]), np.array([10.0, 20.0, 10.0])
    assert row["r_psfFluxMean"] == pytest.approx(np.average(flux, weights=error**-2), rel=1e-6)
    assert row["r_psfFluxMeanErr"] == pytest.approx((error**-2.0).sum() ** -0.5, rel=1e-6)
    assert row["r_psfFluxSigma"] == pytest.approx(flux.std(ddof=1), rel=1e-6)
    assert row["r_psfFluxNdata"] == 3 and row["g_psfFluxNdata"] == 0
    assert (row["r_psfFluxMin"], row["r_psfFluxMax"]) == (90.0, 130.0)
    assert row["r_psfFluxErrMean"] == pytest.approx(error.mean())
    assert row["r_scienceFluxMean"] == 500.0 and np.isnan(row["g_psfFluxMean"])
    assert (row["firstDiaSourceMjdTai"], row["lastDiaSourceMjdTai"]) == (59998.0, 60000.5)
    assert row["nDiaSources"] == 3 and row["validityStartMjdTai"] == 60000.5
    assert np.isnan(row["validityEndMjdTai"])


def test_position_is_the_weighted_mean_across_ra_zero() -> None:
    arcsec = 1 / 3600
    two = sources([1, 2], [7, 7], ra=[359.9999, 0.0001], dec=-60.0, raErr=[0.1 * arcsec, 0.2 * arcsec])
    row = new_versions(two, NOTHING, position_floor_arcsec=0.05).iloc[0]
    weight = 1.0 / (0.5 * (np.array([0.1, 0.2]) ** 2 + 0.1**2) + 0.05**2)
    expected = np.average([-0.0001, 0.0001], weights=weight)
    assert (row["ra"] + 180) % 360 - 180 == pytest.approx(expected, abs=1e-9)
    assert row["dec"] == pytest.approx(-60.0, abs=1e-9)
    assert 0.05 * arcsec < row["raErr"] < 0.2 * arcsec


def test_errors_of_the_mean_position_are_honest() -> None:
    rng = np.random.default_rng(0)
    n, size = 2000, 5
    err = np.repeat(rng.uniform(0.05, 0.4, (1, size)), n, 0).ravel()
    objects = np.repeat(np.arange(n) + 1, size).tolist()
    offset = rng.normal(0, err) / 3600
    many = sources(
        list(range(n * size)), objects, dec=offset, ra=180.0, raErr=err / 3600, decErr=err / 3600, psfFluxErr=1.0
    )
    out = new_versions(many, NOTHING, position_floor_arcsec=0.05)
    assert np.std(out["dec"] / out["decErr"]) == pytest.approx(1.0, abs=0.05)


def test_withdrawn_sources_do_not_count() -> None:
    old = sources([1, 2], [7, 7], psfFlux=[1e6, 100.0], timeWithdrawnMjdTai=[60000.0, np.nan])
    row = new_versions(sources([3], [7]), past(schema.empty("DiaObject"), old), position_floor_arcsec=0.05).iloc[0]
    assert row["r_psfFluxMean"] == 100.0 and row["r_psfFluxNdata"] == 2


def test_a_late_visit_still_makes_a_newer_version() -> None:
    known = new_versions(sources([1], [7], midpointMjdTai=60001.0), NOTHING, position_floor_arcsec=0.05)
    late = new_versions(sources([2], [7]), past(known, schema.empty("DiaSource")), position_floor_arcsec=0.05).iloc[0]
    assert 60001.0 < late["validityStartMjdTai"] < 60001.0 + 1e-7
    assert (late["firstDiaSourceMjdTai"], late["lastDiaSourceMjdTai"]) == (60000.5, 60001.0)


def test_the_count_outlives_the_history() -> None:
    known = new_versions(sources([1, 2], [7, 7]), NOTHING, position_floor_arcsec=0.05)
    row = new_versions(sources([3], [7]), past(known, schema.empty("DiaSource")), position_floor_arcsec=0.05).iloc[0]
    assert row["nDiaSources"] == 3 and row["r_psfFluxNdata"] == 1


def test_sources_without_errors_still_give_a_position() -> None:
    row = new_versions(
        sources([1], [7], raErr=np.nan, decErr=np.nan, psfFlux=np.nan), NOTHING, position_floor_arcsec=0.05
    )
    assert row["ra"][0] == pytest.approx(10.0) and row["r_psfFluxNdata"][0] == 0 and np.isnan(row["r_psfFluxMean"][0])
