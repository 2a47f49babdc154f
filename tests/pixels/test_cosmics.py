"""Cosmic rays are found, stars are spared."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import maximum_filter
from scipy.signal import fftconvolve

from apflow.model.exposure import Mask
from apflow.pixels.background import subtract_background
from apflow.pixels.cosmics import find_cosmic_rays
from apflow.pixels.interpolate import interpolate
from tests.pixels.night import add, cosmic_rays, make_night, moffat

PLANES = int(Mask.CR)


@pytest.mark.parametrize("fwhm", [3.5, 4.1, 5.0])
def test_no_star_is_harmed(fwhm):
    for seed in (1, 2):
        exposure, _, _ = subtract_background(make_night(seed, n_hits=0, fwhm=fwhm).exposure)
        assert find_cosmic_rays(exposure, fwhm).sum() <= 3
        assert find_cosmic_rays(exposure, 1.1 * fwhm).sum() <= 3


def test_an_elongated_bright_star_is_spared():
    rng = np.random.default_rng(4)
    image = np.full((128, 128), 500.0)
    add(image, 3e6 * moffat(4.0, 40, 0.3, -0.4, e1=0.15), 64, 64)
    noisy = rng.poisson(image).astype(np.float32)
    exposure = make_night(1, n_stars=0, n_galaxies=0, n_hits=0).exposure
    exposure = dataclasses.replace(exposure, image=noisy, variance=noisy + 30, mask=np.zeros((128, 128), np.int32))
    assert not find_cosmic_rays(exposure, 4.0).any()


def _peaks(snr):
    return ((maximum_filter(snr, 9) == snr) & (snr > 5)).sum()


def test_tracks_are_found_and_leave_nothing_to_detect():
    psf = moffat(4.1, 12, 0, 0)
    left = before = 0
    for seed in (1, 2, 3):
        night = make_night(seed, n_hits=0, n_stars=0, n_galaxies=0)
        rays = cosmic_rays(np.random.default_rng(seed), night.exposure.shape, 25)
        image = (night.exposure.image + rays).astype(np.float32)
        exposure, _, _ = subtract_background(dataclasses.replace(night.exposure, image=image, variance=image + 29))
        hits = find_cosmic_rays(exposure, 4.1)
        sure = rays > 5 * np.sqrt(exposure.variance)
        assert (hits & sure).sum() / sure.sum() > 0.9
        cleaned = interpolate(exposure.image, np.where(hits, PLANES, 0).astype(np.int32), PLANES)
        quiet, _, _ = subtract_background(night.exposure)
        norm = np.sqrt((psf**2).sum() * 1229)
        before += _peaks(fftconvolve(rays, psf, "same") / norm)
        left += _peaks(np.where(hits, 0, fftconvolve(cleaned - quiet.image, psf, "same") / norm))
    assert before > 60
    assert left <= 0.03 * before


def test_saturated_edges_are_no_hits():
    exposure = make_night(1, n_stars=0, n_galaxies=0, n_hits=0).exposure
    image, mask = exposure.image.copy(), exposure.mask.copy()
    image[100:140, 200:204] = 90000.0
    mask[98:142, 198:206] |= Mask.SAT
    exposure = dataclasses.replace(exposure, image=image, variance=image + 29, mask=mask)
    assert not find_cosmic_rays(exposure, 4.1).any()


def test_a_source_as_wide_as_the_psf_at_any_phase_is_no_hit():
    rng = np.random.default_rng(3)
    image = np.full((512, 512), 800.0)
    for number in range(200):
        dx, dy = rng.uniform(-0.5, 0.5, 2)
        add(
            image,
            10 ** rng.uniform(3.2, 5.5) * moffat(3.5, 12, dx, dy),
            20 + 32 * (number % 15),
            20 + 32 * (number // 15),
        )
    noisy = rng.poisson(image).astype(np.float32)
    base = make_night(1, n_stars=0, n_galaxies=0, n_hits=0).exposure
    assert find_cosmic_rays(dataclasses.replace(base, image=noisy, variance=noisy + 30), 3.5).sum() <= 1
