"""Injected trails come back: flux, position, length and bearing within their errors."""

from __future__ import annotations

import numpy as np
import pytest

from apflow.model.exposure import Mask
from apflow.pixels.detect import detect
from apflow.pixels.forced import psf_stack
from apflow.pixels.measure import measure
from apflow.pixels.trail import fit_trail, trail_box
from tests.pixels.differences import FWHM, SIGMA, difference, line, points, pulls_are_noise
from tests.pixels.scenes import wcs


@pytest.mark.parametrize(("length", "flux"), [(6.0, 1500.0), (30.0, 4000.0)])
def test_a_trail_scatters_as_its_errors_say(length, flux):
    truth, pulls, rng = np.array([flux, 63.3, 64.2, length, 0.6]), [], np.random.default_rng(2)
    signal = line(128, 63.3, 64.2, length, 0.6, flux)
    for seed in range(40):
        d, _ = difference(signal, seed=seed)
        start = (63.3 + rng.normal(), 64.2 + rng.normal(), length * rng.uniform(0.6, 1.3), 0.6 + 0.15 * rng.normal())
        psf = psf_stack(d.exposure.psf, np.array([64.0]), np.array([64.0]))[0]
        trail = fit_trail(d.exposure, psf, start, trail_box(*start, 10, (128, 128)), FWHM)
        assert trail.ok and not trail.edge
        pulls.append((trail.values - truth) / np.sqrt(np.diag(trail.covariance)))
    pulls_are_noise(np.array(pulls), 40)


@pytest.mark.parametrize("rotation", [0.0, 90.0, 217.0])
@pytest.mark.parametrize("length", [6.0, 14.0, 40.0])
def test_a_mover_is_one_source_with_its_trail_on_the_sky(length, rotation):
    angle, grid = np.radians(25.0), wcs(160, rotation)
    d, science = difference(line(160, 80.3, 79.2, length, angle, 150 * SIGMA), grid=grid)
    (row,) = measure(d, science, detect(d, 5.0)).to_dict("records")
    ra, dec = grid.pixel_to_sky(np.array([80.3, 80.3 + np.cos(angle)]), np.array([79.2, 79.2 + np.sin(angle)]))
    bearing = np.degrees(np.arctan2((ra[1] - ra[0]) * np.cos(np.radians(dec[0])), dec[1] - dec[0])) % 180
    assert not row["trail_flag"] and not row["trail_flag_edge"] and row["trailAlgorithm"] == 2
    assert abs(row["trailFlux"] - 150 * SIGMA) < 4.5 * row["trailFluxErr"]
    assert abs(row["trailLength"] - 0.2 * length) < 4.5 * row["trailLengthErr"]
    assert abs((row["trailAngle"] - bearing + 90) % 180 - 90) < 4.5 * row["trailAngleErr"]
    assert abs(row["trailDec"] - dec[0]) < 4.5 * row["trailDecErr"]
    assert abs(row["trailRa"] - ra[0]) * np.cos(np.radians(dec[0])) < 4.5 * row["trailRaErr"]
    assert row["trailChi2"] / row["trailNdata"] == pytest.approx(1.0, abs=0.2)
    assert row["extendedness"] > 0.99 or length > 30


def test_a_negative_trail_has_a_negative_flux():
    d, science = difference(np.zeros((128, 128)), line(128, 63.3, 64.2, 12.0, 2.0, 100 * SIGMA))
    (row,) = measure(d, science, detect(d, 5.0)).to_dict("records")
    assert row["isNegative"] and abs(row["trailFlux"] + 100 * SIGMA) < 4.5 * row["trailFluxErr"]


def test_a_pair_is_no_trail_and_a_point_neither():
    d, science = difference(points(128, [40.0, 46.0, 90.0], [40.0, 42.0, 90.0], [70.0, 70.0, 150.0]))
    m = measure(d, science, detect(d, 5.0))
    assert len(m) == 3 and m["trailFlux"].isna().all() and (m["trailNdata"] == 0).all()


def test_a_trail_that_ends_on_the_border_says_so():
    d, science = difference(line(128, 7.0, 64.2, 14.0, 0.1, 150 * SIGMA))
    m = measure(d, science, detect(d, 5.0))
    assert m["trail_flag_edge"].tolist() == [True]
    e, science = difference(line(128, 63.3, 64.2, 14.0, 0.1, 150 * SIGMA))
    e.exposure.mask[:, 72:] |= Mask.EDGE
    assert measure(e, science, detect(e, 5.0))["trail_flag_edge"].tolist() == [True]
