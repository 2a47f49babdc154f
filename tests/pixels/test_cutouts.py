"""Cutouts: the right pixels, padded at the edge, with their own WCS and PSF."""

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.model.psf import Psf
from apflow.model.wcs import Wcs
from apflow.pixels.cutouts import cut, cutout_size

SHAPE = (120, 150)


def exposure() -> Exposure:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    psf = np.zeros((3, 11, 11))
    psf[0, 5, 5], psf[0, 5, 6], psf[1, 5, 6] = 0.8, 0.2, 0.1
    return Exposure(
        (1000.0 * y + x).astype(np.float32),
        np.full(SHAPE, 4.0, np.float32),
        np.where(x == 70, int(Mask.SAT), 0).astype(np.int32),
        "nJy",
        Wcs((150.0, -30.0), (75.0, 60.0), np.array([[-5.6e-5, 1e-6], [1e-6, 5.6e-5]])),
        Psf(psf, SHAPE),
    )


def test_source_falls_into_the_middle_pixel():
    for size in (30, 31, 102):
        piece = cut(exposure(), 70.4, 60.6, size)
        assert piece.image.shape == (size, size)
        assert piece.image[size // 2, size // 2] == 1000 * 61 + 70
        assert piece.mask[size // 2, size // 2] == Mask.SAT


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (149.0, 119.0), (3.2, 60.0), (75.0, 118.9), (-40.0, 300.0)])
def test_edge_is_padded_with_nan_and_no_data(x, y):
    source = exposure()
    piece = cut(source, x, y, 30)
    x0, y0 = int(np.floor(x + 0.5)) - 15, int(np.floor(y + 0.5)) - 15
    yy, xx = np.mgrid[y0 : y0 + 30, x0 : x0 + 30]
    inside = (xx >= 0) & (yy >= 0) & (xx < SHAPE[1]) & (yy < SHAPE[0])
    assert np.array_equal(np.isfinite(piece.image), inside)
    assert np.array_equal(np.isfinite(piece.variance), inside)
    assert np.array_equal(piece.mask == Mask.NO_DATA, ~inside)
    assert np.array_equal(piece.image[inside], (1000 * yy + xx)[inside])


def test_wcs_and_psf_are_those_of_the_position():
    source = exposure()
    piece = cut(source, 20.0, 100.0, 30)
    np.testing.assert_allclose(piece.wcs.pixel_to_sky(15.0, 15.0), source.wcs.pixel_to_sky(20.0, 100.0), atol=1e-12)
    assert piece.psf.dtype == np.float32
    np.testing.assert_allclose(piece.psf, source.psf.at(20.0, 100.0), atol=1e-7)
    assert not np.allclose(piece.psf, cut(source, 120.0, 100.0, 30).psf)


def test_a_cutout_is_a_copy():
    source = exposure()
    cut(source, 70.0, 60.0, 30).image[:] = 0
    assert source.image[60, 70] == 60070


def test_size_follows_the_footprint_within_limits():
    assert [cutout_size(b) for b in (0, 12, 30, 55, 500, float("nan"))] == [30, 30, 30, 55, 102, 30]


def test_a_position_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="nan"):
        cut(exposure(), float("nan"), 3.0)
