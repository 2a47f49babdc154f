"""Zero points of stars with outliers."""

import numpy as np
import pytest

from apflow.pixels.photometry import (
    effective_time_ratio,
    fit_zero_point,
    in_our_band,
    nanojansky_per_electron,
    surface_brightness,
)


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


def test_effective_time_by_hand() -> None:
    """Neilsen et al. (2016): half the light, seeing worse by a tenth, a sky twice as bright as what is left of it.

    eta = 0.5; the sky counted is 0.5 * 2 = 1 times the nominal one: tau = 0.5^2 / 1.1^2 / 1 = 0.2066.
    """
    nominal = {"zero_point_mag": 28.36, "sky_mag_arcsec2": 21.2, "fwhm_arcsec": 0.83}
    summary = {
        "zero_point_mag": 28.36 + 2.5 * np.log10(0.5),
        "sky_mag_arcsec2": 21.2 - 2.5 * np.log10(2.0),
        "psf_fwhm_arcsec": 1.1 * 0.83,
    }
    assert effective_time_ratio(summary, **nominal) == pytest.approx(0.25 / 1.21, rel=1e-12)
    same = {"zero_point_mag": 28.36, "sky_mag_arcsec2": 21.2, "psf_fwhm_arcsec": 0.83}
    assert effective_time_ratio(same, **nominal) == pytest.approx(1.0, rel=1e-12)


def test_surface_brightness_of_a_counted_sky() -> None:
    """SMTN-002's r sky, 21.2 mag/arcsec^2 at a zero point of 28.36, is 731.1 e-/s/arcsec^2 or 29.25 a pixel of 0.2"."""
    assert surface_brightness(29.25, 28.36, 0.2) == pytest.approx(21.2, abs=5e-4)
    assert np.isnan(surface_brightness(-1.0, 28.36, 0.2))


def test_colour_term_is_taken_out() -> None:
    """Stars of the right mean colour or not: without the term the zero point is wrong and scatters."""
    flux, error, mag = stars(n=200, variables=0.0)
    colour = np.random.default_rng(4).uniform(0.2, 2.0, len(mag))
    catalogue = mag - 0.1 * colour
    without = fit_zero_point(flux, 30.0, catalogue, error)
    within = fit_zero_point(flux, 30.0, in_our_band(catalogue, colour, 0.1), error)
    assert without.zero_point_mag == pytest.approx(28.2 - 0.11, abs=0.02)
    assert within.zero_point_mag == pytest.approx(28.2, abs=3 * within.error_mag)
    assert within.scatter_mag < 0.5 * without.scatter_mag


def test_stars_without_colour_do_without() -> None:
    mag, colour = np.array([18.0, 19.0, 20.0]), np.array([1.0, np.nan, 2.0])
    assert in_our_band(mag, colour, 0.1) == pytest.approx([18.1, 19.15, 20.2])
    assert in_our_band(mag, None, 0.1) is mag
    assert in_our_band(mag, np.full(3, np.nan), 0.1) is mag
    assert in_our_band(mag, colour, 0.0) is mag


def test_error_of_the_zero_point_is_its_scatter() -> None:
    found = [fit_zero_point(flux, 30.0, mag, error) for flux, error, mag in (stars(seed=s) for s in range(40))]
    pulls = [(z.zero_point_mag - 28.2) / z.error_mag for z in found]
    # The floor of 5 mmag for the references' own errors, of which these have none, is in it.
    assert 0.25 < np.std(pulls) < 1.5
