"""Convolution tile by tile is what it is over the whole image, borders and bad pixels included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import fftconvolve

from apflow.model.kernel import Kernel
from apflow.pixels.surface import Surface
from apflow.pixels.tiles import convolve_tiles, whiten_and_filter
from tests.pixels.scenes import gaussian_psf


def reflected(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolution by definition, the image reflected at its borders."""
    half = len(kernel) // 2
    return np.asarray(fftconvolve(np.pad(image, half, "symmetric"), kernel, mode="valid"))


@settings(max_examples=15, deadline=None)
@given(st.integers(60, 600), st.integers(60, 600), st.integers(0, 14), st.integers(0, 100))
def test_tiles_of_any_image_join_without_a_seam(ny: int, nx: int, half: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(ny, nx)).astype(np.float32)
    kernel = rng.normal(size=(2 * half + 1, 2 * half + 1))
    out = convolve_tiles(image, Kernel(kernel[None], 0, (ny, nx)))
    np.testing.assert_allclose(out, reflected(image, kernel), atol=1e-5 * np.abs(kernel).sum())


def test_kernel_of_a_tile_is_that_of_its_middle() -> None:
    """A kernel whose sum falls from 2 at the left to 0 at the right, on a flat image: each tile has its own value."""
    n = 1000
    terms = np.zeros((3, 5, 5))
    terms[0, 2, 2], terms[1, 2, 2] = 1.0, -1.0
    out = convolve_tiles(np.ones((n, n), np.float32), Kernel(terms, 1, (n, n)))
    wanted = 1 - np.linspace(-1, 1, n)
    assert np.abs(out[:800] - wanted).max() < 1.1 * 252 / n
    assert (np.diff(out[500]) <= 1e-6).all()


def test_whitened_and_filtered_come_from_one_transform() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(410, 530)).astype(np.float32)
    bad = rng.random(image.shape) < 0.01
    image[bad] = np.nan
    phi, psf = rng.normal(size=(15, 15)), gaussian_psf(4.0, 530).centre()
    psf[3, 20] += 0.2  # that it is turned round shows
    whitened, filtered = whiten_and_filter(image, bad, phi, psf)
    clean = np.where(bad, 0, image)
    inner = np.s_[30:-30, 30:-30]
    expected = reflected(clean, phi)
    np.testing.assert_allclose(whitened, expected, atol=1e-4)
    np.testing.assert_allclose(filtered[inner], reflected(expected, psf[::-1, ::-1])[inner], atol=1e-4)


def test_without_whitening_only_bad_pixels_change() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(300, 270)).astype(np.float32)
    bad = np.zeros(image.shape, bool)
    bad[100, 50:60] = True
    psf = gaussian_psf(3.0, 300).centre()
    whitened, filtered = whiten_and_filter(image, bad, None, psf)
    np.testing.assert_array_equal(whitened, np.where(bad, np.float32(0), image))
    half = len(psf) // 2
    direct = (psf * whitened[90 - half : 91 + half, 55 - half : 56 + half]).sum()
    assert filtered[90, 55] == pytest.approx(direct, abs=1e-5)


def test_same_input_same_bits() -> None:
    image = np.random.default_rng(0).normal(size=(600, 600)).astype(np.float32)
    shifted = np.empty(600 * 600 + 3, np.float32)[3:].reshape(600, 600)
    shifted[:] = image
    kernel = Kernel(np.random.default_rng(1).normal(size=(6, 21, 21)), 2, (600, 600))
    np.testing.assert_array_equal(convolve_tiles(image, kernel), convolve_tiles(shifted, kernel))


def test_a_surface_is_its_polynomial() -> None:
    surface = Surface(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 2, (101, 201))
    v, u = np.mgrid[-1:1:101j, -1:1:201j]
    wanted = 1 + 2 * u + 3 * v + 4 * u**2 + 5 * u * v + 6 * v**2
    np.testing.assert_allclose(surface.image(), wanted, atol=1e-5)
    image, other = np.full((101, 201), 7, np.float32), np.full((101, 201), 2, np.float32)
    np.testing.assert_allclose(surface.taken_from(image), 7 - wanted, atol=1e-5)
    np.testing.assert_allclose(surface.taken_from(image, other), 5 - wanted, atol=1e-5)
    assert (image == 7).all(), "inputs are never changed"
