"""Templates of cells that are damaged, missing in part, or of two tracts."""

from __future__ import annotations

import dataclasses

import hpgeom
import numpy as np
import pytest

from apflow.model.exposure import Exposure, Mask
from apflow.model.region import Region
from apflow.model.skymap import Cell, SkyMap
from apflow.model.wcs import Wcs
from apflow.pixels.template import assemble
from tests.pixels.scenes import gaussian_psf, stars_image

SKYMAP = SkyMap(cell_px=120, border_px=40)
SHAPE = (160, 160)
FLUX, FWHM, VARIANCE = 1e4, 3.5, 4.0


def science_wcs(ra: float = 151.3, dec: float = 2.2) -> Wcs:
    t, s = np.radians(35.0), 0.2 / 3600
    turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    return Wcs((ra, dec), (80.0, 80.0), s * turn @ np.diag([-1.0, 1.0]))


def region_of(wcs: Wcs) -> Region:
    ny, nx = SHAPE
    corners = np.array([0, nx, nx, 0]) - 0.5, np.array([0, 0, ny, ny]) - 0.5
    return Region(np.stack(wcs.pixel_to_sky(*corners), -1))


def drawn(cell: Cell, ra: np.ndarray, dec: np.ndarray) -> Exposure:
    x, y = cell.wcs.sky_to_pixel(ra, dec)
    image = stars_image(cell.shape, x, y, np.full(len(x), FLUX), FWHM).astype(np.float32)
    plane = np.full(cell.shape, VARIANCE, np.float32)
    return Exposure(image, plane, np.zeros(cell.shape, np.int32), "nJy", cell.wcs, gaussian_psf(FWHM, cell.shape[0]))


def stars(wcs: Wcs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A dozen stars, and how they look on the grid."""
    rng = np.random.default_rng(4)
    x, y = rng.uniform(15, 145, (2, 12))
    expected = stars_image(SHAPE, x, y, np.full(12, FLUX), FWHM)
    return *wcs.pixel_to_sky(x, y), expected


@pytest.mark.parametrize("kind", ["NaN image", "NaN variance", "infinity", "NO_DATA"])
def test_a_hole_in_a_cell_is_filled_by_a_neighbours_border_and_else_has_no_data(kind):
    wcs = science_wcs()
    ra, dec, expected = stars(wcs)
    cells = SKYMAP.cells(region_of(wcs))
    first = min(cells, key=lambda cell: np.hypot(*np.subtract(cell.wcs.sky_to_pixel(*wcs.crval_deg), 99.5)))
    hole = np.zeros(first.shape, bool)
    hole[:, 60:180] = True  # reaches from the cell's middle beyond its inner part, into what a neighbour's border has
    parts = []
    for cell in cells:
        e = drawn(cell, ra, dec)
        if cell is first:
            image, variance, mask = e.image.copy(), e.variance.copy(), e.mask.copy()
            match kind:
                case "NaN image":
                    image[hole] = np.nan
                case "NaN variance":
                    variance[hole] = np.nan
                case "infinity":
                    image[hole] = np.inf
                case "NO_DATA":
                    mask[hole], image[hole] = Mask.NO_DATA, 0.0
            e = dataclasses.replace(e, image=image, variance=variance, mask=mask)
        parts.append((cell, e))
    template = assemble(parts, wcs, SHAPE)
    empty = (template.mask & Mask.NO_DATA) != 0
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    sky = wcs.pixel_to_sky(x, y)
    u, v = (np.rint(c).astype(int) for c in first.wcs.sky_to_pixel(*sky))
    within = (u >= 0) & (u < 200) & (v >= 0) & (v < 200)
    in_hole = within & (u > 64) & (u < 176)
    places = [cell.wcs.sky_to_pixel(*sky) for cell in cells if cell is not first]
    depth = np.max([np.min([a, 199 - a, b, 199 - b], axis=0) for a, b in places], axis=0)  # in another cell
    assert (in_hole & (depth > 6)).sum() > 1000 and (in_hole & (depth < 0)).sum() > 1000
    assert not empty[in_hole & (depth > 6)].any()
    assert empty[in_hole & (depth < 0)].all()
    assert np.isfinite(template.image).all() and np.isfinite(template.variance).all()
    assert (template.image[empty] == 0).all()
    assert template.summary["template_coverage"] == pytest.approx(1 - empty.mean())
    np.testing.assert_allclose(template.image[~empty], expected[~empty], atol=0.01 * expected.max())


def test_two_tracts_join_without_a_seam():
    """Cells of either side of a tract's border are turned against each other; stars on the seam keep their light."""
    # The eastern corner of a HEALPix pixel is shared with other tracts.
    ra0, dec0 = (float(c[0]) for c in hpgeom.boundaries(16, 1200))
    wcs = science_wcs(ra0, dec0)
    ra, dec, expected = stars(wcs)
    region, parts, tracts = region_of(wcs), [], []
    for i, tract in enumerate(np.unique(hpgeom.query_circle(16, ra0, dec0, 0.05, inclusive=True))):
        scale, middle = 0.2 / 3600, SKYMAP.cells_per_side * SKYMAP.cell_px / 2
        x, y = Wcs(SKYMAP.tract_centre(tract), (middle, middle), scale * np.diag([-1.0, 1.0])).sky_to_pixel(ra0, dec0)
        ix, iy = int(x) // SKYMAP.cell_px, int(y) // SKYMAP.cell_px
        near = [
            SKYMAP.cell(int(tract), (iy + dy) * SKYMAP.cells_per_side + ix + dx)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        # Each tract has the cells on its own side only: every other one.
        chosen = [cell for k, cell in enumerate(near) if cell.inner_region.overlaps(region) and (k + i) % 2]
        parts += [(cell, drawn(cell, ra, dec)) for cell in chosen]
        tracts += [tract] if chosen else []
    assert len(tracts) >= 2
    angle = [np.degrees(np.arctan2(*np.subtract(*_north(cell, ra0, dec0)))) for cell, _ in parts]
    assert np.ptp(angle) > 0.05  # really turned
    template = assemble(parts, wcs, SHAPE)
    covered = (template.mask & Mask.NO_DATA) == 0
    assert covered.mean() > 0.5
    np.testing.assert_allclose(template.image[covered], expected[covered], atol=0.01 * expected.max())
    # Pixels of a tangent plane cover less sky away from its centre.
    np.testing.assert_allclose(template.variance[covered], VARIANCE, rtol=1e-2)
    assert template.psf is not None and template.psf.fwhm_px() == pytest.approx(FWHM, rel=0.02)


def _north(cell: Cell, ra: float, dec: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Pixels of a place and of one 10" North of it."""
    return tuple(tuple(float(c) for c in cell.wcs.sky_to_pixel(ra, d)) for d in (dec + 10 / 3600, dec))  # type: ignore[return-value]
