"""Solar System objects: where they are predicted to be, which DiaSources are theirs, and what SSSource says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.coordinates import BarycentricMeanEcliptic, SkyCoord
from numpy.polynomial import chebyshev

from apflow.catalogs.associate import associate
from apflow.catalogs.solar_system import predicted
from apflow.errors import DataError
from apflow.model.products import Associated
from apflow.model.sky import separation_arcsec
from tests.catalogs.sky import ARCSEC, CENTRE, history, place, table

MJD = 60786.3
DAY = u.AU.to("km") / 86400.0


def objects(x: list[float], y: list[float], **columns: Any) -> pd.DataFrame:
    """Predictions at offsets from a point, arcsec."""
    ids = {"ssObjectId": 70 + np.arange(len(x)), "designation": [f"2025 A{i}" for i in range(len(x))]}
    return pd.DataFrame(ids | place(x, y) | {"raErr": 0.1 * ARCSEC, "decErr": 0.1 * ARCSEC} | columns)


def run(new: pd.DataFrame, known: pd.DataFrame, given: pd.DataFrame | None) -> Associated:
    return associate(
        new,
        history(known),
        radius_arcsec=1.0,
        position_floor_arcsec=0.05,
        max_new_objects=100,
        ss_objects=None if given is None else predicted(given, MJD),
    )


def test_a_solar_system_object_beats_a_nearer_diaobject() -> None:
    new, known = table("DiaSource", [0.0, 20.0], [0.0, 0.0]), table("DiaObject", [0.05, 20.05], [0.0, 0.0])
    out = run(new, known, objects([0.6], [0.0]))
    assert out.sources["ssObjectId"].tolist() == [70, pd.NA]
    assert out.sources["diaObjectId"].tolist() == [pd.NA, 2]
    assert out.objects["diaObjectId"].tolist() == [2]
    (row,) = out.ss_sources.to_dict("records")
    assert (row["diaSourceId"], row["ssObjectId"], row["designation"]) == (1000, 70, "2025 A0")
    assert row["ephOffset"] == pytest.approx(0.6, abs=1e-6) and row["ephOffsetRa"] == pytest.approx(-0.6, abs=1e-6)
    assert row["ephRa"] == place([0.6], [0.0])["ra"][0]
    unknown = ("ephVmag", "elongation", "ephRate", "ephOffsetAlongTrack", "helioRange", "topo_x")
    assert out.ss_sources[list(unknown)].isna().all(axis=None)


def test_a_prediction_without_a_source_does_nothing() -> None:
    new, known = table("DiaSource", [0.0, 20.0], [0.0, 0.0]), table("DiaObject", [0.05], [0.0])
    without = run(new, known, None)
    for given in (objects([3.0, 21.1], [0.0, 0.0]), objects([], [])):
        out = run(new, known, given)
        for name in ("sources", "objects", "matches", "ss_sources"):
            pd.testing.assert_frame_equal(getattr(out, name), getattr(without, name))
        assert out.guard == without.guard and out.ss_sources.empty


def test_sources_are_ranked_by_their_distance_from_the_prediction() -> None:
    # The nearest to the second object is the first one's; one beyond the radius does not count.
    new = table("DiaSource", [0.0, 0.4, -1.1], [0.0, 0.0, 0.0])
    out = run(new, table("DiaObject", [], []), objects([-0.05, 0.15], [0.0, 0.0]))
    assert out.sources["ssObjectId"].tolist() == [70, 71, pd.NA]
    assert out.ss_sources["diaDistanceRank"].tolist() == [1, 2]


def test_offsets_along_and_across_the_motion() -> None:
    # Moving to the South-West; the source is 0.3 arcsec ahead and 0.2 to the left, East being to the right.
    ahead, left = np.array([-0.6, -0.8]), np.array([0.8, -0.6])
    x, y = 0.3 * ahead + 0.2 * left
    given = objects([0.0], [0.0], ephRateRa=-0.06, ephRateDec=-0.08, ephVmag=19.5, phaseAngle=12.0)
    (row,) = run(table("DiaSource", [x], [y]), table("DiaObject", [], []), given).ss_sources.to_dict("records")
    assert row["ephOffsetAlongTrack"] == pytest.approx(0.3, abs=1e-6)
    assert row["ephOffsetCrossTrack"] == pytest.approx(0.2, abs=1e-6)
    assert row["ephRate"] == pytest.approx(0.1) and row["ephVmag"] == 19.5 and row["phaseAngle"] == 12.0


def test_observed_positions_in_ecliptic_and_galactic_coordinates() -> None:
    new = table("DiaSource", [0.0, 30.0], [0.0, -10.0])
    rows = run(new, table("DiaObject", [], []), objects([0.0, 30.0], [0.0, -10.0])).ss_sources
    sky = SkyCoord(new["ra"].to_numpy() * u.deg, new["dec"].to_numpy() * u.deg)
    ecliptic = sky.transform_to(BarycentricMeanEcliptic(equinox="J2000"))
    for frame, names in ((ecliptic, ("eclLambda", "eclBeta")), (sky.galactic, ("galLon", "galLat"))):
        away = separation_arcsec(
            rows[names[0]], rows[names[1]], frame.spherical.lon.to_value("deg"), frame.spherical.lat.to_value("deg")
        )
        assert away.max() < 0.1


def test_positions_are_carried_on_to_the_time_of_the_image() -> None:
    # 0.24 deg/d for two minutes: 1.2 arcsec.
    given = objects([0.0], [0.0], ephRateRa=0.24, ephRateDec=0.0, midpointMjdTai=MJD - 120 / 86400)
    out = predicted(given, MJD)
    assert separation_arcsec(out["ra"], out["dec"], **_second(place([1.2], [0.0])))[0] < 1e-3
    still = predicted(given.drop(columns="ephRateRa"), MJD)
    assert still["ra"][0] == given["ra"][0]


def _second(position: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"ra2_deg": position["ra"], "dec2_deg": position["dec"]}


def orbit(t: np.ndarray, radius_au: float, days: float, phase: float, tilt: float = 0.4) -> np.ndarray:
    """A circle about the Sun, shape (3, len(t)), AU."""
    a = phase + 2 * np.pi * t / days
    return radius_au * np.array([np.cos(a), np.sin(a) * np.cos(tilt), np.sin(a) * np.sin(tilt)])


def series(mjd: float) -> pd.DataFrame:
    """An asteroid and an observer as mpSkyEphemerisQuery gives them: Chebyshev series in days since tmin."""
    tmin = np.floor(mjd)
    t = np.linspace(0.0, 1.0, 50)
    fits = {
        of: [chebyshev.chebfit(t, axis, 7) for axis in orbit(tmin - 60000.0 + t, *how)]
        for of, how in (("obj", (2.5, 1400.0, 1.0, 0.5)), ("obs", (1.0, 365.25, 0.7)))
    }
    columns = {f"{of}_{axis}_poly": [c] for of, found in fits.items() for axis, c in zip("xyz", found, strict=True)}
    names = {"ObjID": "A", "MPCORB_unpacked_primary_provisional_designation": "2008 AB", "trailedSourceMagTrue": 20.5}
    old = {"ssObjectId": [7], "ra": [0.0], "dec": [0.0], "Err(arcsec)": 2.0, "tmin": tmin, "tmax": tmin + 1.0}
    return pd.DataFrame(old | names | columns)


def test_series_as_rubin_stores_them() -> None:
    def seen(mjd: float) -> tuple[np.ndarray, np.ndarray]:
        t = np.array([mjd - 60000.0])
        helio = orbit(t, 2.5, 1400.0, 1.0, 0.5)[:, 0]
        return helio, helio - orbit(t, 1.0, 365.25, 0.7)[:, 0]

    step = 1e-3
    (helio, topo), (_, before), (_, after) = seen(MJD), seen(MJD - step), seen(MJD + step)
    sky = SkyCoord(*topo, representation_type="cartesian").spherical
    (row,) = predicted(series(MJD), MJD).to_dict("records")
    assert (row["ssObjectId"], row["designation"], row["ephVmag"]) == (7, "2008 AB", 20.5)
    assert row["raErr"] == row["decErr"] == 2.0 / 3600
    assert separation_arcsec(row["ra"], row["dec"], sky.lon.deg, sky.lat.deg) < 1e-3
    np.testing.assert_allclose([row[f"helio_{a}"] for a in "xyz"], helio, atol=1e-9)
    np.testing.assert_allclose([row[f"topo_v{a}"] for a in "xyz"], (after - before) / 2 / step * DAY, atol=1e-4)
    one, two = (SkyCoord(*v, representation_type="cartesian").spherical for v in (before, after))
    rate = (two.lon - one.lon).deg / 2 / step * np.cos(sky.lat.rad), (two.lat - one.lat).deg / 2 / step
    np.testing.assert_allclose([row["ephRateRa"], row["ephRateDec"]], rate, atol=1e-6)

    # What follows from them in SSSource: a circle has no radial velocity; a triangle has 180 degrees.
    new = table("DiaSource", [0.0], [0.0], (row["ra"], row["dec"]))
    (out,) = run(new, table("DiaObject", [], []), series(MJD)).ss_sources.to_dict("records")
    assert out["helioRange"] == pytest.approx(2.5, rel=1e-6) and out["helioRangeRate"] == pytest.approx(0.0, abs=1e-4)
    assert out["helio_vtot"] == pytest.approx(2 * np.pi * 2.5 / 1400 * DAY, rel=1e-5)
    assert out["topoRange"] == pytest.approx(np.linalg.norm(topo), rel=1e-6)
    at_sun = np.degrees(np.arccos(helio @ (helio - topo) / 2.5))
    assert out["phaseAngle"] + out["elongation"] + at_sun == pytest.approx(180.0, abs=1e-3)
    assert out["ephOffset"] == pytest.approx(0.0, abs=1e-3)


def test_series_that_do_not_reach_the_time_are_left_out() -> None:
    assert predicted(series(MJD), MJD + 1.0).empty
    both = pd.concat([series(MJD), series(MJD - 5).assign(ssObjectId=8)])
    assert predicted(both, MJD)["ssObjectId"].tolist() == [7]
    pair = pd.concat([series(MJD), series(MJD).assign(ssObjectId=8)])
    assert predicted(pair, MJD)["ra"].tolist() == predicted(series(MJD), MJD)["ra"].tolist() * 2
    assert run(table("DiaSource", [0.0], [0.0]), table("DiaObject", [], []), series(MJD - 5)).ss_sources.empty


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raErr": None}, "lack column 'raErr'"),
        ({"ssObjectId": [70, 70]}, "ssObjectId 70 comes twice"),
        ({"dec": [CENTRE[1], np.nan]}, "dec is unknown in row 1"),
        ({f"ob{o}_{x}_poly": [[0.0], [0.0, 1.0]] for o in "js" for x in "xyz"} | {"tmin": MJD, "tmax": MJD}, "length"),
    ],
)
def test_bad_predictions_are_refused(change: dict[str, Any], message: str) -> None:
    given = objects([0.0, 5.0], [0.0, 0.0])
    given = given.drop(columns="raErr") if change == {"raErr": None} else given.assign(**change)
    with pytest.raises(DataError, match=message):
        predicted(given, MJD)
