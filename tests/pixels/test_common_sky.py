"""Sky and noise between two images of one field."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from apflow.pixels.common_sky import settled
from tests.pixels.scenes import exposure, gaussian_psf, pair, stars_image

N = 384


def test_right_variances_stay_as_they_are() -> None:
    p = pair(n=N, stars=80, snr=(), gain=2.0)
    science, template = settled(p.science, p.template, 4.0)
    assert science.summary["noise_factor"] == pytest.approx(1.0, abs=0.05)
    ratio = np.sqrt(science.variance / p.science.variance)
    assert ratio.std() < 0.06
    np.testing.assert_allclose(template.variance / p.template.variance, ratio**2, rtol=1e-4)
    np.testing.assert_array_equal(template.image, p.template.image)
    blank = p.light < 10
    noise = np.sqrt(p.science.variance[blank])
    assert np.abs((science.image - p.science.image)[blank] / noise).max() < 0.4


def test_noise_that_pixels_share_is_found_where_it_is() -> None:
    """White noise on the left; on the right noise smoothed to twice its strength at the scale of a PSF."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(2):
        white = rng.normal(0, 10, (N, N))
        shared = gaussian_filter(rng.normal(0, 1, (N, N)), 0.7)
        shared *= 20 / (shared.std() / np.sqrt((gaussian_filter(np.eye(1, 225, 112).reshape(15, 15), 0.7) ** 2).sum()))
        image = np.where(np.arange(N) < N // 2, white, shared).astype(np.float32)
        e = exposure(np.zeros((N, N)), 100.0, gaussian_psf(4.0, N), rng)
        images.append(dataclasses.replace(e, image=image, variance=np.full((N, N), 100, np.float32)))
    science, _ = settled(images[0], images[1], 4.0)
    factor = np.sqrt(science.variance / 100)
    assert np.median(factor[:, : N // 2 - 64]) == pytest.approx(1.0, abs=0.07)
    assert np.median(factor[:, N // 2 + 64 :]) == pytest.approx(2.0, rel=0.12)


def test_sky_that_one_image_has_goes() -> None:
    p = pair(n=N, stars=80, snr=(40.0,) * 4)
    wave = 60 * np.sin(np.linspace(0, np.pi, N))[:, None] * np.ones(N)
    science = dataclasses.replace(p.science, image=(p.science.image + wave).astype(np.float32))
    before = p.science.image.copy()
    result, _ = settled(science, p.template, 4.0)
    left = gaussian_filter(result.image - before, 8)
    assert np.abs(left)[40:-40, 40:-40].max() < 12
    # Of a change next to nothing goes with it.
    for x, y in zip(p.x.astype(int), p.y.astype(int), strict=True):
        assert abs(left[y, x]) < 0.02 * p.flux[0] / 18


def test_field_without_blank_sky_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 128, (2, 600))
    images = [
        exposure(stars_image((128, 128), x, y, np.full(600, 3e5), f), 100.0, gaussian_psf(f, 128), rng)
        for f in (5.0, 4.5)
    ]
    science, template = settled(images[0], images[1], 5.0)
    assert science is images[0] and template is images[1]
