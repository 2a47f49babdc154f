"""Distortion beyond the camera's own: found with many stars, never invented."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apflow.model.camera import load_camera
from apflow.model.sky import separation_arcsec
from apflow.pixels.astrometry import fit_wcs
from apflow.pixels.distortion import bend, bent_by_arcsec

RA, DEC = 210.3, -42.7
CAMERA = load_camera("lsstcam")
CCD = CAMERA.detector(94)
GUESS = CAMERA.wcs(CCD, RA, DEC, 20.0)


def bent(x, y, size_px):
    """Pixels moved by quadratic terms of some size at the border."""
    u, v = 2 * x / CCD.nx - 1, 2 * y / CCD.ny - 1
    return x + size_px * (u * u - 0.7 * u * v), y + size_px * (0.5 * v * v + 0.4 * u * v)


def field(n, size_px, seed=1, error_px=0.05, part=1.0):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, CCD.nx - 1, n) * part, rng.uniform(0, CCD.ny - 1, n)
    ra, dec = GUESS.pixel_to_sky(*bent(x, y, size_px))
    reference = pd.DataFrame({"ra": ra, "dec": dec, "mag": rng.uniform(17, 22, n)})
    return x + rng.normal(0, error_px, n), y + rng.normal(0, error_px, n), reference


def worst(fitted, size_px):
    x, y = np.meshgrid(np.linspace(0, CCD.nx - 1, 7), np.linspace(0, CCD.ny - 1, 7))
    return separation_arcsec(*fitted.pixel_to_sky(x, y), *GUESS.pixel_to_sky(*bent(x, y, size_px))).max()


@pytest.mark.parametrize("size_px", [0.3, 1.0])
def test_distortion_is_recovered_to_the_corners(size_px):
    x, y, reference = field(600, size_px)
    fitted, found = fit_wcs(x, y, reference, GUESS, 5.0, shape=CCD.shape)
    assert worst(fitted, size_px) < 0.008
    assert found.distortion_arcsec > 0.1 * size_px
    px, py = fitted.sky_to_pixel(*fitted.pixel_to_sky(x, y))
    np.testing.assert_allclose([px, py], [x, y], atol=1e-5)


def test_wrong_pairs_do_not_bend_the_sky():
    x, y, reference = field(600, 0.5)
    off = np.random.default_rng(3).random(len(reference)) < 0.15
    reference.loc[off, "ra"] += 0.25 / 3600
    fitted, _ = fit_wcs(x, y, reference, GUESS, 5.0, shape=CCD.shape)
    assert worst(fitted, 0.5) < 0.015


@pytest.mark.parametrize(("n", "part", "size_px"), [(60, 1.0, 0.3), (600, 0.5, 0.3), (600, 1.0, 0.0)])
def test_few_stars_stars_on_one_side_and_stars_without_distortion_bend_nothing(n, part, size_px):
    x, y, reference = field(n, size_px, part=part)
    fitted, found = fit_wcs(x, y, reference, GUESS, 5.0, shape=CCD.shape)
    assert fitted.a is GUESS.a and fitted.b is GUESS.b
    assert found.distortion_arcsec == 0.0
    assert worst(fitted, size_px) < 0.4


@given(st.integers(0, 2**31), st.floats(0.0, 1.0), st.integers(3, 400))
@settings(max_examples=15, deadline=None)
def test_no_corner_is_ever_far_off(seed, size_px, n):
    """Whatever the stars, the error is at most the distortion itself, or a part of a star's error."""
    x, y, reference = field(n, size_px, seed=seed)
    fitted = bend(x, y, reference["ra"].to_numpy(), reference["dec"].to_numpy(), GUESS, CCD.shape)
    before, after = worst(GUESS, size_px), worst(fitted, size_px)
    assert after < max(before + 1e-9, 0.02)
    assert bent_by_arcsec(fitted, GUESS, CCD.shape) < 1.0
