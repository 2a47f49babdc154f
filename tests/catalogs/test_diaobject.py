"""DiaObject versions say what their sources say."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apflow.catalogs.diaobject import BANDS, new_versions, with_forced_fluxes
from apflow.model import schema
from apflow.model.products import History
from tests.catalogs.sky import ARCSEC, CENTRE, NOTHING, errors, history, table

FLOOR = 0.05
DAYS = 365.0


def sources(ids: list[int], objects: list[int], **columns: object) -> pd.DataFrame:
    given: dict[str, object] = {"diaSourceId": ids, "diaObjectId": objects, "psfFlux": 100.0, "psfFluxErr": 10.0}
    return table("DiaSource", np.zeros(len(ids)), np.zeros(len(ids)), **(given | columns))


def versions(new: pd.DataFrame, past: History = NOTHING) -> pd.DataFrame:
    return new_versions(new, past, position_floor_arcsec=FLOOR, history_days=DAYS)


def many(n_objects: int, seed: int, mjd: float | None = None) -> pd.DataFrame:
    """Sources of some objects in all bands, some without flux or position error; one each at a time `mjd`."""
    rng = np.random.default_rng(seed)
    n = n_objects if mjd is not None else 12 * n_objects
    owner = np.arange(n) % n_objects
    flux, science = rng.normal(1000, 300, (2, n))
    flux[rng.random(n) < 0.1] = np.nan
    sigma = rng.uniform(0.02, 0.4, (2, n))
    sigma[:, rng.random(n) < 0.05] = np.nan
    x, y = rng.normal(0, 0.1, (2, n)) + 20.0 * np.stack([owner % 10, owner // 10])
    return table(
        "DiaSource",
        x,
        y,
        (359.999, 60.0),
        **errors(*sigma, rng.uniform(-0.9, 0.9, n)),
        diaSourceId=10_000 * seed + rng.permutation(n),
        diaObjectId=5000 - owner,
        midpointMjdTai=np.round(rng.uniform(59800.0, 60000.0, n), 1) if mjd is None else mjd,  # some at the same time
        band=rng.choice(list(BANDS[:5]), n),
        psfFlux=flux,
        psfFluxErr=rng.uniform(5, 50, n),
        scienceFlux=science,
        scienceFluxErr=rng.uniform(5, 50, n),
    )


def expected(rows: pd.DataFrame) -> dict[str, Any]:
    """A version from all rows of one object, in plain words."""
    out: dict[str, Any] = {"diaObjectId": rows["diaObjectId"].iloc[0], "nDiaSources": len(rows)}
    times = rows["midpointMjdTai"]
    out |= {"firstDiaSourceMjdTai": times.min(), "lastDiaSourceMjdTai": times.max()}
    out["validityStartMjdTai"] = times.max()
    weight_sum, weighted, spread = np.zeros((2, 2)), np.zeros(2), np.zeros((2, 2))
    dec0 = np.radians(rows["dec"].iloc[0])
    for row in rows.fillna({"raErr": 0.0, "decErr": 0.0, "ra_dec_Cov": 0.0}).itertuples():
        claimed = np.array([[row.raErr**2, row.ra_dec_Cov], [row.ra_dec_Cov, row.decErr**2]])
        weight = np.linalg.inv(claimed + (FLOOR * ARCSEC) ** 2 * np.eye(2))
        ra = (row.ra + 180.0) % 360.0 - 180.0
        weight_sum += weight
        weighted += weight @ [ra * np.cos(dec0), row.dec]
        spread += weight @ claimed @ weight
    mean, inverse = np.linalg.solve(weight_sum, weighted), np.linalg.inv(weight_sum)
    covariance = inverse @ spread @ inverse
    out |= {"ra": (mean[0] / np.cos(dec0)) % 360.0, "dec": mean[1], "ra_dec_Cov": covariance[0, 1]}
    out |= {"raErr": covariance[0, 0] ** 0.5, "decErr": covariance[1, 1] ** 0.5}
    for band in BANDS:
        of_band = rows[rows["band"] == band].sort_values(["midpointMjdTai", "diaSourceId"])
        good = of_band[of_band["psfFlux"].notna()]
        flux, error = good["psfFlux"].to_numpy(float), good["psfFluxErr"].to_numpy(float)
        p = f"{band}_psfFlux"
        out[f"{p}Ndata"] = len(good)
        out |= {f"{p}{name}": np.nan for name in ("Mean", "MeanErr", "Sigma", "Min", "Max", "MaxSlope", "ErrMean")}
        if len(good):
            out |= {f"{p}Mean": np.average(flux, weights=error**-2), f"{p}MeanErr": (error**-2.0).sum() ** -0.5}
            out |= {f"{p}Min": flux.min(), f"{p}Max": flux.max(), f"{p}ErrMean": error.mean()}
        if len(good) > 1:
            out[f"{p}Sigma"] = flux.std(ddof=1)
        steps = itertools.pairwise(zip(good["midpointMjdTai"], flux, strict=True))
        slopes = [(f1 - f0) / (t1 - t0) for (t0, f0), (t1, f1) in steps if t1 > t0]
        out[f"{p}MaxSlope"] = max(slopes, default=np.nan)
        science, error = of_band["scienceFlux"].to_numpy(float), of_band["scienceFluxErr"].to_numpy(float)
        any_of_it = len(of_band) > 0
        out[f"{band}_scienceFluxMean"] = np.average(science, weights=error**-2) if any_of_it else np.nan
        out[f"{band}_scienceFluxMeanErr"] = (error**-2.0).sum() ** -0.5 if any_of_it else np.nan
        out[f"{band}_fpFluxMean"] = out[f"{band}_fpFluxMeanErr"] = np.nan
    return out | {"validityEndMjdTai": np.nan}


def compare(found: pd.DataFrame, wanted: pd.DataFrame, rtol: float) -> None:
    wanted = schema.conform(wanted, "DiaObject").sort_values("diaObjectId", ignore_index=True)
    for column in found:
        tolerance = {"ra": 1e-10, "dec": 1e-11, "ra_dec_Cov": 1e-13}.get(column, 0.0)
        np.testing.assert_allclose(
            found[column].to_numpy(float), wanted[column].to_numpy(float), rtol=rtol, atol=tolerance, err_msg=column
        )


def test_every_column_is_what_a_plain_loop_gives() -> None:
    old, new = many(24, 1), many(24, 2, mjd=60000.5)
    known = versions(old)
    compare(known, pd.DataFrame([expected(rows) for _, rows in old.groupby("diaObjectId")]), 2e-6)
    both = pd.concat([old, new])
    out = versions(new, history(known, old))
    compare(out, pd.DataFrame([expected(rows) for _, rows in both.groupby("diaObjectId")]), 2e-6)
    null = {c for c in out if out[c].isna().all() and not c.startswith("y_")}
    assert null == {"validityEndMjdTai"} | {f"{b}_fpFlux{s}" for b in "ugriz" for s in ("Mean", "MeanErr")}


def test_an_object_older_than_the_history_goes_on_from_its_last_version() -> None:
    """Exact for what can be: the same as from all rows, of which the history holds half."""
    old, new = many(20, 1), many(20, 2, mjd=60000.5)
    known = versions(old)
    within = old[old["midpointMjdTai"] >= 60000.5 - 100.0]
    out = new_versions(new, history(known, within), position_floor_arcsec=FLOOR, history_days=100.0)
    of_history = ("psfFluxSigma", "psfFluxMaxSlope")
    exact = [c for c in out if not c.endswith(of_history)]
    whole = pd.DataFrame([expected(rows) for _, rows in pd.concat([old, new]).groupby("diaObjectId")])
    position = ["ra", "dec", "raErr", "decErr", "ra_dec_Cov"]
    compare(out[[c for c in exact if c not in position]], whole, 5e-6)
    window = pd.DataFrame([expected(rows) for _, rows in pd.concat([within, new]).groupby("diaObjectId")])
    compare(out[[c for c in out if c.endswith(of_history)]], window, 5e-6)
    # Errors that differ: the mean is off by a fraction of its error, and far less than what the history alone says.
    truth = schema.conform(whole, "DiaObject").sort_values("diaObjectId", ignore_index=True)
    assert np.median(np.abs(out["dec"] - truth["dec"]) / truth["decErr"]) < 0.1
    assert np.median(np.abs(out["decErr"] / truth["decErr"] - 1.0)) < 0.1
    recent = window.set_index("diaObjectId").loc[out["diaObjectId"]]
    assert np.abs(out["dec"] - truth["dec"]).mean() < 0.5 * np.abs(recent["dec"].to_numpy() - truth["dec"]).mean()


def test_going_on_is_exact_for_the_position_too_where_errors_are_equal() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(0, 0.1, (2, 9))
    given = {"diaObjectId": 7, **errors(np.full(9, 0.1), np.full(9, 0.07), 0.5), "psfFlux": 1.0, "psfFluxErr": 1.0}
    rows = table("DiaSource", x, y, **given)
    step = known = versions(rows[:1])
    for k in range(1, 9):
        step = new_versions(
            rows[k : k + 1].assign(midpointMjdTai=60000.5 + k),
            history(known),
            position_floor_arcsec=FLOOR,
            history_days=0.5,
        )
        known = step
    at_once = versions(rows)
    assert step["nDiaSources"][0] == 9
    np.testing.assert_allclose(step[["ra", "dec"]], at_once[["ra", "dec"]], atol=1e-12)
    np.testing.assert_allclose(
        step[["raErr", "decErr", "ra_dec_Cov"]], at_once[["raErr", "decErr", "ra_dec_Cov"]], rtol=1e-5
    )


def test_order_of_rows_does_not_change_a_digit() -> None:
    old, new = many(30, 1), many(30, 2, mjd=60000.5)
    known = versions(old)
    first = versions(new, history(known, old))
    shuffled = history(known.sample(frac=1, random_state=1), old.sample(frac=1, random_state=2))
    pd.testing.assert_frame_equal(first, versions(new.sample(frac=1, random_state=3), shuffled), check_exact=True)


@pytest.mark.parametrize("pole", [90.0, -90.0])
def test_positions_about_ra_zero_and_the_poles(pole: float) -> None:
    ring = np.radians(np.arange(0, 360, 45))
    for centre in ((0.0, -60.0), (123.0, pole)):
        rows = table("DiaSource", 0.3 * np.cos(ring), 0.3 * np.sin(ring), centre, diaObjectId=7)
        out = versions(rows).iloc[0]
        assert out["dec"] == pytest.approx(centre[1], abs=1e-9) and 0.0 <= out["ra"] < 360.0
        if centre[0] == 0.0:
            assert min(out["ra"], 360.0 - out["ra"]) < 1e-9


def test_errors_of_the_mean_position_are_honest() -> None:
    rng = np.random.default_rng(0)
    n, size = 2000, 5
    err = np.tile(rng.uniform(0.05, 0.4, size), n)
    correlation = np.tile(rng.uniform(-0.9, 0.9, size), n)
    z = rng.normal(0, 1, (2, n * size))
    x, y = err * z[0], err * (correlation * z[0] + np.sqrt(1 - correlation**2) * z[1])
    rows = table("DiaSource", x, y, diaObjectId=np.repeat(np.arange(n) + 1, size), **errors(err, err, correlation))
    out = versions(rows)
    east = (out["ra"] - CENTRE[0]) * np.cos(np.radians(CENTRE[1]))
    assert np.std((out["dec"] - CENTRE[1]) / out["decErr"]) == pytest.approx(1.0, abs=0.05)
    assert np.std(east / out["raErr"]) == pytest.approx(1.0, abs=0.05)
    assert np.mean(east * (out["dec"] - CENTRE[1])) == pytest.approx(out["ra_dec_Cov"].mean(), abs=1e-10)


def test_withdrawn_sources_do_not_count() -> None:
    old = sources([1, 2], [7, 7], psfFlux=[1e6, 100.0], midpointMjdTai=[59998.0, 59999.0])
    known = versions(old)
    old = old.assign(timeWithdrawnMjdTai=[60000.0, np.nan])
    for rows in (old, old[1:]):  # whether the history marks them or leaves them out
        row = versions(sources([3], [7]), history(known, rows)).iloc[0]
        assert row["r_psfFluxMean"] == 100.0 and row["r_psfFluxNdata"] == 2 and row["r_psfFluxMax"] == 100.0
        assert row["nDiaSources"] == 3


def test_a_late_visit_makes_a_newer_version_of_all_sources() -> None:
    """The history ends at the visit; what came after it is in the version before."""
    early, later = sources([1], [7], midpointMjdTai=59999.0, psfFlux=90.0), sources([2], [7], midpointMjdTai=60001.0)
    known = versions(later, history(versions(early), early))
    late = versions(sources([3], [7], psfFlux=80.0), history(known, early)).iloc[0]
    assert 60001.0 < late["validityStartMjdTai"] < 60001.0 + 1e-7
    assert (late["firstDiaSourceMjdTai"], late["lastDiaSourceMjdTai"]) == (59999.0, 60001.0)
    assert late["nDiaSources"] == 3 and late["r_psfFluxNdata"] == 3
    assert late["r_psfFluxMean"] == 90.0 and late["r_psfFluxMax"] == 100.0


def test_sources_without_errors_or_objects() -> None:
    bare = sources([1, 2], [7, 7], raErr=np.nan, decErr=np.nan, ra_dec_Cov=np.nan, psfFlux=np.nan)
    row = versions(bare)
    assert row["dec"][0] == pytest.approx(CENTRE[1]) and row["r_psfFluxNdata"][0] == 0
    assert np.isnan(row["r_psfFluxMean"][0]) and row["nDiaSources"][0] == 2
    assert versions(bare.assign(diaObjectId=pd.NA)).empty


def test_forced_fluxes_of_history_and_visit_are_averaged() -> None:
    def forced(ids: list[int], objects: list[int], **columns: object) -> pd.DataFrame:
        given: dict[str, object] = {"diaForcedSourceId": ids, "diaObjectId": objects, "ra": 1.0, "dec": 1.0, "visit": 1}
        given |= {"detector": 1, "midpointMjdTai": 60000.0, "psfFlux": 10.0, "psfFluxErr": 1.0, "band": "r"}
        return schema.conform(pd.DataFrame(given | columns), "DiaForcedSource")

    objects = versions(sources([1, 2], [7, 8]))
    past = forced([1, 2, 3, 4], [7, 7, 9, 7], psfFlux=[20.0, 5.0, 1.0, 1e9], psfFluxErr=[2.0, 1.0, 1.0, 1.0],
                  band=["r", "g", "r", "r"], timeWithdrawnMjdTai=[np.nan] * 3 + [60000.0])  # fmt: skip
    out = with_forced_fluxes(objects, past, forced([5, 6], [8, 7], psfFlux=[np.nan, 10.0]))
    assert out["r_fpFluxMean"][0] == pytest.approx((20.0 / 4 + 10.0) / (1 / 4 + 1))
    assert out["r_fpFluxMeanErr"][0] == pytest.approx((1 / 4 + 1) ** -0.5)
    assert out["g_fpFluxMean"][0] == 5.0 and np.isnan(out["r_fpFluxMean"][1])
    assert out.dtypes.equals(schema.empty("DiaObject").dtypes) and objects["r_fpFluxMean"].isna().all()
    nothing = schema.empty("DiaForcedSource")
    pd.testing.assert_frame_equal(with_forced_fluxes(objects, nothing, nothing), objects)
