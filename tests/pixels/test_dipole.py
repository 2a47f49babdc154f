"""Injected dipoles come back: fluxes, length and bearing within their errors."""

from __future__ import annotations

import numpy as np
import pytest

from apflow.pixels.detect import detect
from apflow.pixels.dipole import fit_dipole
from apflow.pixels.measure import measure
from tests.pixels.differences import SIGMA, difference, points, pulls_are_noise
from tests.pixels.scenes import wcs


def moved(length, angle, snr, share=0.5, seed=0, grid=None):
    """A star that moved by `length` px along `angle`; the template's has the part 1 - share of the light."""
    dx, dy = 0.5 * length * np.cos(angle), 0.5 * length * np.sin(angle)
    now = points(64, [31.7 + dx], [32.2 + dy], [2 * share * snr])
    before = points(64, [31.7 - dx], [32.2 - dy], [2 * (1 - share) * snr])
    return difference(now, before, seed, grid)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("length", [2.0, 5.0])
def test_fluxes_come_back_within_their_errors(length, both):
    pulls, lengths = [], []
    for seed in range(40):
        d, science = moved(length, 0.7, 100.0, 0.52, seed)
        dipole = fit_dipole(d, science if both else None, 31.9, 32.1)
        assert dipole is not None and dipole.likely
        (mean, mean_err), (diff, diff_err) = dipole.mean, dipole.difference
        pulls.append([(mean - 100 * SIGMA) / mean_err, (diff - 8 * SIGMA) / diff_err])
        lengths.append(np.hypot(*(dipole.positive - dipole.negative)[1:]))
    # Lobes closer than the PSF trade flux for length in the difference alone: no Gaussian errors.
    if both or length > 4:
        pulls_are_noise(np.array(pulls), 40)
    assert np.mean(lengths) == pytest.approx(length, abs=0.02 if both or length > 4 else 0.15)


def test_science_and_template_tell_flux_from_length():
    errors = []
    for both in (True, False):
        d, science = moved(1.0, 0.3, 100.0)
        errors.append(fit_dipole(d, science if both else None, 31.7, 32.2).mean[1])
    assert errors[0] < 0.2 * errors[1]


def test_a_host_that_the_difference_does_not_show_does_not_spoil_the_fit():
    from tests.pixels.scenes import stars_image

    host = stars_image((64, 64), np.array([31.0]), np.array([33.0]), np.array([60000.0]), 9.0)
    now, before = points(64, [34.2], [32.2], [80]), points(64, [29.2], [32.2], [80])
    d, science = difference(now + host, before + host, 3)
    dipole = fit_dipole(d, science, 31.7, 32.2)
    assert dipole is not None and dipole.likely
    assert abs(dipole.mean[0] - 80 * SIGMA) < 5 * dipole.mean[1]


@pytest.mark.parametrize("rotation", [0.0, 90.0, 217.0])
def test_the_bearing_is_from_the_negative_to_the_positive_lobe_on_the_sky(rotation):
    grid = wcs(64, rotation)
    d, science = moved(4.0, np.radians(30.0), 100.0, grid=grid)
    (row,) = measure(d, science, detect(d, 5.0)).to_dict("records")
    ra, dec = grid.pixel_to_sky(np.array([31.7, 31.7 + np.cos(np.pi / 6)]), np.array([32.2, 32.2 + np.sin(np.pi / 6)]))
    bearing = np.degrees(np.arctan2((ra[1] - ra[0]) * np.cos(np.radians(dec[0])), dec[1] - dec[0])) % 360
    assert row["isDipole"] and row["dipoleFitAttempted"]
    assert row["dipoleAngle"] == pytest.approx(bearing, abs=2.0)
    assert row["dipoleLength"] == pytest.approx(0.8, abs=0.03)
    assert row["dipoleMeanFlux"] == pytest.approx(100 * SIGMA, abs=5 * row["dipoleMeanFluxErr"])
    assert row["dipoleChi2"] / row["dipoleNdata"] == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("change", [0.3, -0.3])
def test_a_variable_star_is_no_dipole(change):
    d, science = difference(points(64, [31.7], [32.2], [300 * (1 + change)]), points(64, [31.75], [32.2], [300]), 1)
    m = measure(d, science, detect(d, 5.0))
    near = m[np.hypot(m["x"] - 31.7, m["y"] - 32.2) < 1]
    assert len(near) == 1 and not near["isDipole"].any()


def test_a_point_source_is_not_even_tried():
    d, science = difference(points(64, [31.7], [32.2], [50]))
    m = measure(d, science, detect(d, 5.0))
    assert not m["dipoleFitAttempted"].any() and m["dipoleMeanFlux"].isna().all()


def test_light_of_one_sign_is_no_dipole():
    d, science = difference(points(64, [31.7], [32.2], [500]), seed=None)
    assert fit_dipole(d, science, 31.7, 32.2) is None or not fit_dipole(d, science, 31.7, 32.2).likely
