"""The warp conserves flux, keeps positions, and says what it could not fill."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.pixels.warp import warp
from tests.pixels.scenes import gaussian_psf, stars_image, wcs


def field(n: int, x: np.ndarray, y: np.ndarray, flux: np.ndarray, fwhm: float = 4.0) -> Exposure:
    image = stars_image((n, n), x, y, flux, fwhm).astype(np.float32)
    return Exposure(
        image, np.ones((n, n), np.float32), np.zeros((n, n), np.int32), "nJy", wcs(n), gaussian_psf(fwhm, n)
    )


@pytest.mark.parametrize(("rotation", "scale"), [(0.0, 1.0), (30.0, 1.0), (-75.0, 0.8), (10.0, 1.25)])
def test_flux_and_position_survive(rotation: float, scale: float) -> None:
    n = 200
    x, y, flux = np.array([80.3, 120.7]), np.array([95.1, 110.2]), np.array([1e4, 3e4])
    grid = wcs(n, rotation, scale, (1.3, -0.4))
    out = warp(field(n, x, y, flux), grid, (n, n))
    px, py = grid.sky_to_pixel(*wcs(n).pixel_to_sky(x, y))
    v, u = np.mgrid[:n, :n]
    for i in range(2):
        assert out.image[np.hypot(u - px[i], v - py[i]) < 14].sum() == pytest.approx(flux[i], rel=2e-3)
    expected = stars_image((n, n), px, py, flux, 4.0 / scale)
    np.testing.assert_allclose(out.image, expected, atol=5e-3 * expected.max())
    slope = np.gradient(expected, axis=1)
    assert abs(((out.image - expected) * slope).sum() / (slope**2).sum()) < 4e-3, "shift in x, pixels"


def test_variance_predicts_the_scatter_of_psf_fluxes() -> None:
    n = 256
    rng = np.random.default_rng(3)
    variance = np.full((n, n), 9.0, np.float32)
    noise = rng.normal(0, 3.0, (n, n)).astype(np.float32)
    source = Exposure(noise, variance, np.zeros((n, n), np.int32), "nJy", wcs(n))
    out = warp(source, wcs(n, 20.0), (n, n))
    psf = gaussian_psf(4.0, n).centre()
    weights, h = psf / (psf**2).sum(), len(psf) // 2
    flux, error = [], []
    for y in range(60, 200, 7):
        for x in range(60, 200, 7):
            box = np.s_[y - h : y + h + 1, x - h : x + h + 1]
            flux.append((weights * out.image[box]).sum())
            error.append(np.sqrt((weights**2 * out.variance[box]).sum()))
    assert np.std(flux) / np.mean(error) == pytest.approx(1.0, abs=0.12)


def test_outside_is_no_data() -> None:
    n = 100
    out = warp(field(n, np.array([50.0]), np.array([50.0]), np.array([1e3])), wcs(n, 0.0, 1.0, (40.0, 0.0)), (n, n))
    empty = (out.mask & Mask.NO_DATA) != 0
    assert empty[:, :40].all()
    assert not empty[10:90, 50:95].any()
    assert (out.image[empty] == 0).all() and (out.variance[empty] == 0).all()


def test_masks_and_nans_are_carried_and_grown() -> None:
    n = 100
    source = field(n, np.array([50.0]), np.array([50.0]), np.array([1e3]))
    source.mask[30, 40] = Mask.CR
    source.mask[60, 60] = Mask.SUSPECT
    image = source.image.copy()
    image[70, 20] = np.nan
    out = warp(dataclasses.replace(source, image=image), wcs(n, 0.0, 1.0, (0.5, 0.5)), (n, n))
    assert (out.mask[29:32, 39:42] & Mask.CR).all()
    assert (out.mask & Mask.CR).astype(bool).sum() <= 16
    assert out.mask[60, 60] & Mask.SUSPECT
    assert out.mask[70, 20] & Mask.NO_DATA
    assert np.isfinite(out.image).all()
    assert np.isnan(image[70, 20]), "inputs are never changed"


def test_same_grid_gives_the_same_image() -> None:
    n = 100
    source = field(n, np.array([50.2]), np.array([49.0]), np.array([1e4]))
    out = warp(source, wcs(n), (n, n))
    inner = np.s_[5:-5, 5:-5]
    np.testing.assert_allclose(out.image[inner], source.image[inner], atol=1e-3 * source.image.max())


def test_no_wcs_is_an_error() -> None:
    source = dataclasses.replace(field(20, np.array([9.0]), np.array([9.0]), np.array([1.0])), wcs=None)
    with pytest.raises(DataError, match="no WCS"):
        warp(source, wcs(20), (20, 20))
