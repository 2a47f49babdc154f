"""Forced PSF fluxes are unbiased, and NaN where there is nothing to measure."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.model.exposure import Mask
from apflow.pixels.forced import forced_flux
from tests.pixels.scenes import exposure, gaussian_psf, stars_image

N = 200


def test_fluxes_and_errors() -> None:
    rng = np.random.default_rng(0)
    x, y = (c.ravel() + rng.uniform(-0.5, 0.5, 49) for c in np.mgrid[25:176:25, 25:176:25])
    flux = np.full(49, 1e4)
    e = exposure(stars_image((N, N), x, y, flux, 4.0), 400.0, gaussian_psf(4.0, N), rng)
    got, err = forced_flux(e, x, y)
    pulls = (got - flux) / err
    assert got.mean() == pytest.approx(1e4, rel=0.01)
    assert pulls.std() == pytest.approx(1.0, abs=0.25)


def test_off_the_image_is_nan() -> None:
    e = exposure(np.zeros((N, N)), 1.0, gaussian_psf(4.0, N), np.random.default_rng(0))
    flux, err = forced_flux(e, np.array([-3.0, 100.0, np.nan, 50.0, 199.4]), np.array([50.0, 250.0, 9.0, 50.0, 199.4]))
    assert np.isnan(flux).tolist() == np.isnan(err).tolist() == [True, True, True, False, True]


def test_masked_pixels_do_not_count() -> None:
    rng = np.random.default_rng(0)
    e = exposure(
        stars_image((N, N), np.array([60.0]), np.array([80.0]), np.array([1e5]), 4.0), 1.0, gaussian_psf(4, N), rng
    )
    image, mask = e.image.copy(), e.mask.copy()
    image[81, 62] = 1e6
    mask[81, 62] = Mask.CR
    flux, _ = forced_flux(dataclasses.replace(e, image=image, mask=mask), np.array([60.0]), np.array([80.0]))
    assert flux[0] == pytest.approx(1e5, rel=0.01)


def test_needs_a_psf() -> None:
    e = exposure(np.zeros((20, 20)), 1.0, gaussian_psf(4.0, 20), np.random.default_rng(0))
    with pytest.raises(DataError, match="PSF"):
        forced_flux(dataclasses.replace(e, psf=None), np.array([5.0]), np.array([5.0]))
