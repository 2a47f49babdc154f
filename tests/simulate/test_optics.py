"""PSF and galaxy mixtures against the profiles that they stand for."""

import numpy as np
import pytest

from apflow.simulate.draw import draw
from apflow.simulate.optics import NEFF, galaxy_profile, mixture_neff, moffat, psf_image, psf_radius_px, shear


def test_effective_fwhm_is_one():
    weights, variances = moffat()
    assert weights.sum() == pytest.approx(1.0)
    assert mixture_neff(weights, variances) == pytest.approx(NEFF)
    psf = psf_image(4.0, 0.02, -0.03, 41)
    assert 1 / (psf**2).sum() == pytest.approx(NEFF * 16, rel=0.01)


def test_wings_follow_a_moffat_profile():
    radius = np.linspace(0, 5, 50)
    weights, variances = moffat()
    profile = (weights / variances * np.exp(-0.5 * radius[:, None] ** 2 / variances)).sum(1)
    half = np.interp(-0.5, -profile / profile[0], radius)
    expected = (1 + (radius / half) ** 2 * (2 ** (1 / 3.5) - 1)) ** -3.5
    assert profile / profile[0] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("kind", ["exponential", "devaucouleurs"])
def test_half_of_a_galaxy_lies_within_its_half_light_radius(kind):
    weights, variances = galaxy_profile(kind)
    inside = (weights * (1 - np.exp(-0.5 / variances))).sum()
    assert inside == pytest.approx(0.5, abs=0.04)


def test_drawing_agrees_with_sampling_and_keeps_the_flux():
    image = np.zeros((61, 61), np.float32)
    weights, variances = moffat()
    covariance = variances[:, None, None] * 16 * shear(0.1, -0.05)
    packed = np.stack([covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]], -1)[None]
    draw(image, np.array([30.3]), np.array([29.8]), 1000 * weights[None], packed, 1e-4)
    expected = 1000 * psf_image(4.0, 0.1, -0.05, 61, 0.3, -0.2)
    assert image.sum() == pytest.approx(1000, rel=2e-3)
    assert image == pytest.approx(expected, abs=3e-3 * expected.max())


def test_faint_and_bright_sources_keep_the_same_flux():
    weights, variances = moffat()
    packed = np.stack([variances * 16, 0 * variances, variances * 16], -1)[None]
    fluxes = []
    for floor in (1e-6, 10.0):
        image = np.zeros((201, 201), np.float32)
        draw(image, np.array([100.2]), np.array([100.4]), 1000 * weights[None], packed, floor)
        fluxes.append(image.sum())
    assert fluxes[1] == pytest.approx(fluxes[0], rel=1e-3)


def test_radius_of_a_surface_brightness():
    psf = psf_image(4.0, 0.0, 0.0, 61)
    assert psf_radius_px(np.array([psf[30, 36]]), 4.0)[0] == pytest.approx(6.0, abs=0.1)
    assert psf_radius_px(np.array([1.0]), 4.0)[0] == 0.0
