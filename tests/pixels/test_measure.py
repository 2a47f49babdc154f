"""Measured DiaSources agree with the truth within their errors, in the schema's columns."""

from __future__ import annotations

import dataclasses
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.spatial import cKDTree

from apflow.model.exposure import Mask
from apflow.pixels.detect import detect
from apflow.pixels.measure import measure
from apflow.pixels.subtract import subtract
from tests.pixels.differences import SIGMA, difference, line, points
from tests.pixels.scenes import INFO, pair


@pytest.fixture(scope="module")
def measured() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sources and the truth matched to them, over several images."""
    tables, truths = [], []
    for seed in range(4):
        snr = tuple(np.random.default_rng(seed).uniform(12, 60, 49) * np.where(np.arange(49) % 3, 1, -1))
        p = pair(n=384, seed=seed, stars=100, snr=snr)
        d = subtract(p.science, p.template)
        m = measure(d, p.science, detect(d, 5.0))
        distance, i = cKDTree(np.c_[p.x, p.y]).query(m[["x", "y"]].to_numpy())
        near = distance < 2
        tables.append(m[near])
        truths.append(pd.DataFrame({"x": p.x, "y": p.y, "flux": p.flux}).iloc[i[near]])
    return pd.concat(tables, ignore_index=True), pd.concat(truths, ignore_index=True)


def mad(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def test_columns_are_the_schemas(measured: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    text = (resources.files("lsst.sdm.schemas") / "apdb.yaml").read_text()
    table = next(t for t in yaml.safe_load(text)["tables"] if t["name"] == "DiaSource")
    assert set(measured[0].columns) <= {c["name"] for c in table["columns"]}
    required = {"x", "y", "ra", "dec", "psfFlux", "psfFluxErr", "apFlux", "apFluxErr", "psfNdata", "bboxSize", "band"}
    assert not measured[0][sorted(required)].isna().any().any()


def test_positions(measured: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    m, t = measured
    for axis in "xy":
        pulls = ((m[axis] - t[axis]) / m[f"{axis}Err"]).to_numpy()
        assert mad(pulls) == pytest.approx(1.0, abs=0.25)
        assert abs(np.median(pulls)) < 0.3
    assert not m["centroid_flag"].any()


def test_fluxes(measured: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    m, t = measured
    pulls = ((m["psfFlux"] - t["flux"]) / m["psfFluxErr"]).to_numpy()
    assert mad(pulls) == pytest.approx(1.0, abs=0.25)
    assert np.median(m["psfFlux"] / t["flux"]) == pytest.approx(1.0, abs=0.012)
    assert (m["isNegative"] == (t["flux"] < 0)).all()
    assert np.median(m["psfChi2"] / m["psfNdata"]) == pytest.approx(1.0, abs=0.15)
    change = m["scienceFlux"] - m["templateFlux"]
    np.testing.assert_allclose(change, m["psfFlux"], atol=8 * m["psfFluxErr"].max())


def test_sky_positions_and_covariance(measured: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    m, _ = measured
    wcs = pair(n=384, stars=0, snr=()).science.wcs
    assert wcs is not None
    ra, dec = wcs.pixel_to_sky(m["x"], m["y"])
    np.testing.assert_allclose(m["ra"], ra, atol=1e-9)
    np.testing.assert_allclose(m["dec"], dec, atol=1e-9)
    np.testing.assert_allclose(m["raErr"] * 3600, m["xErr"] * 0.2, rtol=1e-6)
    np.testing.assert_allclose(m["decErr"] * 3600, m["yErr"] * 0.2, rtol=1e-6)
    assert (m["ra_dec_Cov"].abs() <= m["raErr"] * m["decErr"]).all()


def test_rows_say_what_they_belong_to(measured: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    m, _ = measured
    assert (m["visit"] == INFO.exposure).all() and (m["detector"] == INFO.detector).all() and (m["band"] == "r").all()
    assert m["midpointMjdTai"].iloc[0] == INFO.mjd_mid_tai


def test_flags_come_from_the_mask() -> None:
    p = pair(snr=(30.0, 30.0, 30.0, 30.0), stars=30)
    ix, iy = np.rint(p.x).astype(int), np.rint(p.y).astype(int)
    p.science.mask[iy[0], ix[0]] |= Mask.INTRP
    p.science.mask[iy[1] + 3, ix[1]] |= Mask.SUSPECT
    d = subtract(p.science, p.template)
    m = measure(d, p.science, detect(d, 5.0))
    i = cKDTree(m[["x", "y"]].to_numpy()).query(np.c_[p.x, p.y])[1]
    assert m["pixelFlags_interpolatedCenter"].to_numpy()[i].tolist() == [True, False, False, False]
    assert m["pixelFlags_suspect"].to_numpy()[i].tolist() == [False, True, False, False]
    assert not m["pixelFlags_suspectCenter"].to_numpy()[i].any()
    assert not m[["pixelFlags_offimage", "pixelFlags_nodata"]].to_numpy()[i].any()


def test_order_is_by_y_then_x_and_runs_repeat() -> None:
    p = pair(n=256, stars=60)
    d = subtract(p.science, p.template)
    one, two = (measure(d, p.science, detect(d, 5.0)) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    assert one["y"].is_monotonic_increasing


def test_nothing_detected_gives_an_empty_table() -> None:
    p = pair(n=128, stars=20, snr=())
    d = subtract(p.science, p.template)
    m = measure(d, dataclasses.replace(p.science, wcs=None), detect(d, 1000.0))
    assert len(m) == 0 and "psfFlux" in m


def test_a_blend_a_trail_and_a_dipole_have_the_columns_that_readme_says() -> None:
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    found = re.search(r"^Null in DiaSources that are no .*: (.*)$", readme, re.M)
    assert found
    columns = re.findall(r"`(\w+)`", found[1])
    now = points(192, [40.0, 46.0, 103.0], [40.0, 42.0, 40.0], [70.0, 70.0, 80.0])
    d, science = difference(now + line(192, 60.0, 130.0, 14.0, 0.5, 150 * SIGMA), points(192, [98.0], [40.0], [80.0]))
    m = measure(d, science, detect(d, 5.0))
    assert len(m) == 4
    kinds = {"parent": (m["x"] < 60) & (m["y"] < 60), "dipole": m["isDipole"], "trail": m["y"] > 100}
    for column in columns:
        kind = next(k for k in kinds if column.startswith(k))
        assert (m[column].notna() == kinds[kind]).all(), column


def test_every_plane_has_its_flag() -> None:
    planes = {
        "streak": (Mask.STREAK, Mask.STREAK),
        "injected": (Mask.INJECTED, Mask.INJECTED_CORE),
        "injected_template": (Mask.INJECTED_TEMPLATE, Mask.INJECTED_CORE_TEMPLATE),
    }
    for name, (plane, core) in planes.items():
        d, science = difference(points(64, [32.0], [32.0], [50.0]))
        d.exposure.mask[35, 32] |= plane
        (row,) = measure(d, science, detect(d, 5.0)).to_dict("records")
        assert row[f"pixelFlags_{name}"] and not row[f"pixelFlags_{name}Center"]
        d.exposure.mask[33, 32] |= core
        (row,) = measure(d, science, detect(d, 5.0)).to_dict("records")
        assert row[f"pixelFlags_{name}Center"]


def test_no_good_pixels_of_the_science_image_are_flagged() -> None:
    d, science = difference(points(64, [32.0], [32.0], [50.0]))
    peaks = detect(d, 5.0)
    assert not measure(d, science, peaks)["forced_PsfFlux_flag_noGoodPixels"].any()
    science.mask[24:41, 24:41] |= Mask.BAD
    m = measure(d, science, peaks)
    assert m["forced_PsfFlux_flag"].all() and m["forced_PsfFlux_flag_noGoodPixels"].all()


def test_moments_are_of_the_sky_s_size_along_the_pixels_axes() -> None:
    d, science = difference(points(64, [32.3], [31.8], [300.0]))
    (row,) = measure(d, science, detect(d, 5.0)).to_dict("records")
    true = (0.2 * 4.0 / 2.3548) ** 2
    for name in ("ixx", "iyy"):
        assert row[name] == pytest.approx(true, rel=0.03) and row[f"{name}PSF"] == pytest.approx(true, rel=0.005)
    assert abs(row["ixy"]) < 0.02 * true and abs(row["ixyPSF"]) < 0.002 * true
    assert row["extendedness"] < 0.01
    assert not any(row[f] for f in ("shape_flag", "shape_flag_no_pixels", "shape_flag_not_contained"))
