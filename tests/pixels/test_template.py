"""Templates are assembled from cells without seams, with coverage and PSF."""

from __future__ import annotations

import numpy as np
import pytest

from apflow.model.exposure import Exposure, Mask
from apflow.model.region import Region
from apflow.model.skymap import Cell, SkyMap
from apflow.model.wcs import Wcs
from apflow.pixels.template import assemble, crop
from tests.pixels.scenes import gaussian_psf, stars_image

SKYMAP = SkyMap(cell_px=120, border_px=40)
SHAPE = (200, 180)


def science_wcs() -> Wcs:
    t, s = np.radians(35.0), 0.2 / 3600
    turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    return Wcs((151.3, 2.2), (90.0, 100.0), s * turn @ np.diag([-1.0, 1.0]))


def cells() -> tuple[list[tuple[Cell, Exposure]], np.ndarray, np.ndarray]:
    """All cells of the image, each drawn from the same stars."""
    wcs, (ny, nx) = science_wcs(), SHAPE
    corners = wcs.pixel_to_sky(np.array([0, nx, nx, 0]) - 0.5, np.array([0, 0, ny, ny]) - 0.5)
    rng = np.random.default_rng(1)
    x, y = rng.uniform(10, nx - 10, 12), rng.uniform(10, ny - 10, 12)
    ra, dec = wcs.pixel_to_sky(x, y)
    out = []
    for cell in SKYMAP.cells(Region(np.stack(corners, -1))):
        px, py = cell.wcs.sky_to_pixel(ra, dec)
        image = stars_image(cell.shape, px, py, np.full(12, 1e4), 3.5).astype(np.float32)
        plane = np.full(cell.shape, 4.0, np.float32)
        psf = gaussian_psf(3.5, cell.shape[0])
        out.append((cell, Exposure(image, plane, np.zeros(cell.shape, np.int32), "nJy", cell.wcs, psf)))
    return out, x, y


def test_full_coverage_without_seams() -> None:
    parts, x, y = cells()
    assert len(parts) >= 4
    template = assemble(parts, science_wcs(), SHAPE)
    assert template.summary["template_coverage"] == 1.0
    expected = stars_image(SHAPE, x, y, np.full(12, 1e4), 3.5)
    np.testing.assert_allclose(template.image, expected, atol=0.01 * expected.max())
    np.testing.assert_allclose(template.variance, 4.0, rtol=1e-3)
    assert template.unit == "nJy" and template.wcs is not None


def test_order_of_the_cells_does_not_matter() -> None:
    parts, _, _ = cells()
    one, other = assemble(parts, science_wcs(), SHAPE), assemble(parts[::-1], science_wcs(), SHAPE)
    np.testing.assert_array_equal(one.image, other.image)


def test_cells_cut_to_the_detector_give_the_same_template() -> None:
    parts, _, _ = cells()
    (ny, nx), wcs = SHAPE, science_wcs()
    part_of_ccd = np.array([30, nx - 30, nx - 30, 30]), np.array([30, 30, ny - 30, ny - 30])
    region = Region(np.stack(wcs.pixel_to_sky(*part_of_ccd), -1))
    cut = [part for cell, exposure in parts if (part := crop(cell, exposure, region, 45)) is not None]
    assert sum(e.image.size for _, e in cut) < 0.8 * sum(e.image.size for _, e in parts)
    assert all(cell.shape == e.shape == e.psf.shape for cell, e in cut if e.psf is not None)
    inside = np.s_[30 : ny - 30, 30 : nx - 30]
    one, other = assemble(cut, wcs, SHAPE), assemble(parts, wcs, SHAPE)
    np.testing.assert_allclose(one.image[inside], other.image[inside], atol=1e-3 * other.image.max())
    np.testing.assert_allclose(one.variance[inside], other.variance[inside], rtol=1e-5)
    np.testing.assert_array_equal(one.mask[inside], other.mask[inside])


def test_a_cell_away_from_the_detector_is_left_out_and_one_inside_is_as_it_was() -> None:
    parts, _, _ = cells()
    cell, exposure = parts[0]
    far = Region(np.stack(cell.wcs.pixel_to_sky(np.array([900, 999, 999, 900]), np.array([0, 0, 99, 99])), -1))
    assert crop(cell, exposure, far, 10) is None
    assert crop(cell, exposure, cell.region, 10) == (cell, exposure)


def test_missing_cells_lower_the_coverage() -> None:
    parts, _, _ = cells()
    template = assemble(parts[:1], science_wcs(), SHAPE)
    coverage = template.summary["template_coverage"]
    assert 0 < coverage < 1
    empty = (template.mask & Mask.NO_DATA) != 0
    assert coverage == pytest.approx(1 - empty.mean())
    assert (template.image[empty] == 0).all()


def test_no_cells_is_no_coverage() -> None:
    template = assemble([], science_wcs(), SHAPE)
    assert template.summary["template_coverage"] == 0.0
    assert template.psf is None


def test_psf_is_the_stars_shape_on_the_new_grid() -> None:
    """An elongated PSF turns with the grid."""
    parts, _, _ = cells()
    v, u = np.mgrid[-12:13, -12:13]
    long = np.exp(-0.5 * ((u / 2.2) ** 2 + (v / 1.4) ** 2))
    turned = []
    for cell, e in parts:
        psf = gaussian_psf(3.5, cell.shape[0])
        terms = np.zeros_like(psf.terms)
        terms[0] = long / long.sum()
        turned.append((cell, Exposure(e.image, e.variance, e.mask, "nJy", e.wcs, type(psf)(terms, psf.shape))))
    psf = assemble(turned, science_wcs(), SHAPE).psf
    assert psf is not None
    image = psf.centre()
    h = psf.size // 2
    v, u = np.mgrid[-h : h + 1, -h : h + 1]
    moments = np.array([[(image * u * u).sum(), (image * u * v).sum()], [(image * u * v).sum(), (image * v * v).sum()]])
    values, vectors = np.linalg.eigh(moments)
    np.testing.assert_allclose(np.sqrt(values), [1.4, 2.2], rtol=0.02)
    # The cell's +x axis points West; so must the long axis on the science grid.
    west = np.linalg.inv(science_wcs().cd) @ np.array([-1.0, 0.0])
    assert abs(vectors[:, 1] @ west / np.hypot(*west)) == pytest.approx(1.0, abs=0.01)
