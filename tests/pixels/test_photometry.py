"""Zero points of stars with outliers."""

import numpy as np
import pytest

from apflow.pixels.photometry import fit_zero_point, nanojansky_per_electron


def stars(n=60, seed=1, variables=0.1):
    rng = np.random.default_rng(seed)
    mag = rng.uniform(17, 22, n)
    flux = 30.0 * 10 ** (-0.4 * (mag - 28.2))
    error = np.sqrt(flux + 38 * 1200)
    seen = flux + rng.normal(0, error)
    odd = rng.random(n) < variables
    return seen * np.where(odd, rng.uniform(1.1, 1.6, n), 1.0), error, mag


def test_zero_point_is_unbiased_with_variables_and_galaxies():
    found = [fit_zero_point(flux, 30.0, mag, error) for flux, error, mag in (stars(seed=s) for s in range(20))]
    assert np.mean([z.zero_point_mag for z in found]) == pytest.approx(28.2, abs=0.002)
    assert np.std([z.zero_point_mag for z in found]) < 0.004
    assert all(z.n <= 60 and z.scatter_mag < 0.03 for z in found)


def test_without_errors_all_weigh_the_same():
    flux, _, mag = stars(variables=0.0)
    assert fit_zero_point(flux, 30.0, mag).zero_point_mag == pytest.approx(28.2, abs=0.01)


def test_no_star_gives_nan():
    zero = fit_zero_point(np.array([-3.0, np.nan]), 30.0, np.array([20.0, 20.0]))
    assert zero.n == 0 and np.isnan(zero.zero_point_mag)


def test_scale_to_nanojansky():
    electrons = 30.0 * 10 ** (-0.4 * (31.4 - 28.0))  # 1 nJy for 30 s
    assert electrons * nanojansky_per_electron(28.0, 30.0) == pytest.approx(1.0)
