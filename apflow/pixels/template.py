"""Assembly of a template on the grid of a science image."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from apflow.model.exposure import Exposure
from apflow.model.psf import Psf, polynomial_terms
from apflow.model.region import Region
from apflow.model.skymap import Cell
from apflow.model.wcs import Wcs
from apflow.pixels.planes import NO_DATA
from apflow.pixels.warp import source_grid, warp_into

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

#: Positions a side at which the PSFs of the cells are brought to the science grid.
_PSF_GRID = 4


def crop(cell: Cell, exposure: Exposure, region: Region, margin_px: int) -> tuple[Cell, Exposure] | None:
    """The part of a template cell that a region needs, so that the rest takes no memory.

    Parameters
    ----------
    cell : `Cell`
    exposure : `Exposure`
        On the cell's grid.
    region : `Region`
        Of the detector.
    margin_px : `int`
        Pixels about the region that are kept, for pointing errors and the cell's border.

    Returns
    -------
    (`Cell`, `Exposure`), optional
        Copies; those given, where all of it is needed; None, where nothing is.
    """
    x, y = cell.wcs.sky_to_pixel(*region.vertices.T)
    ny, nx = cell.shape
    x0, y0 = max(int(np.floor(x.min())) - margin_px, 0), max(int(np.floor(y.min())) - margin_px, 0)
    x1, y1 = min(int(np.ceil(x.max())) + margin_px + 1, nx), min(int(np.ceil(y.max())) + margin_px + 1, ny)
    if x0 >= x1 or y0 >= y1:
        return None
    if (x0, y0, x1, y1) == (0, 0, nx, ny):
        return cell, exposure
    box, shape = np.s_[y0:y1, x0:x1], (y1 - y0, x1 - x0)
    wcs = cell.wcs.shifted(x0, y0)
    part = dataclasses.replace(
        exposure,
        image=exposure.image[box].copy(),
        variance=exposure.variance[box].copy(),
        mask=exposure.mask[box].copy(),
        wcs=wcs,
        psf=exposure.psf.cropped(x0, y0, shape) if exposure.psf is not None else None,
    )
    return dataclasses.replace(cell, shape=shape, wcs=wcs), part


def assemble(cells: Sequence[tuple[Cell, Exposure]], wcs: Wcs, shape: tuple[int, int]) -> Exposure:
    """Warp template cells onto a science image's grid.

    Where cells overlap, a pixel comes from the cell in which it lies deepest:
    nothing is averaged, so the noise stays what the variance says. The order
    of the cells does not matter.

    Parameters
    ----------
    cells : sequence of (`Cell`, `Exposure`)
        In nJy, on the cells' own grids, with PSFs.
    wcs : `Wcs`
        Mapping of the science image.
    shape : `tuple` [`int`, `int`]
        Shape (ny, nx) of the science image.

    Returns
    -------
    `Exposure`
        NO_DATA where no cell reaches; ``summary["template_coverage"]`` is the
        fraction of pixels with data. The PSF is None when no cell with a PSF
        touches the grid.
    """
    image, variance = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    mask, depth = np.full(shape, NO_DATA, np.int32), np.full(shape, -1.0, np.float32)
    placed = [
        _Placed(Exposure(e.image, e.variance, e.mask, "nJy", cell.wcs, e.psf), cell.border_px, box, wcs)
        for cell, e in sorted(cells, key=lambda pair: (pair[0].tract, pair[0].patch))
        if (box := _box(cell, wcs, shape)) is not None
    ]
    # A pixel lies in the inner part of one cell only; borders serve where that cell has no data.
    for part in placed:
        part.warp_into(image, variance, mask, depth, part.border_px - 1)
    for part in placed:
        if (depth[part.box] < 0).any():
            part.warp_into(image, variance, mask, depth, 0)
    touching = [part.exposure for part in placed]
    coverage = float(np.count_nonzero(depth > 0) / depth.size)
    summary = {"template_coverage": coverage}
    return Exposure(image, variance, mask, "nJy", wcs, assembled_psf(touching, wcs, shape), None, summary)


@dataclass(frozen=True)
class _Placed:
    """A cell and the part of the science grid that it touches."""

    exposure: Exposure
    border_px: int
    box: tuple[slice, slice]
    wcs: Wcs

    @functools.cached_property
    def grid(self) -> tuple[F8, F8]:
        ys, xs = self.box
        shape = (ys.stop - ys.start, xs.stop - xs.start)
        return source_grid(self.exposure, self.wcs.shifted(xs.start, ys.start), shape)

    def warp_into(self, image: F4, variance: F4, mask: I4, depth: F4, least_depth: float) -> None:
        b = self.box
        warp_into(self.exposure, *self.grid, image[b], variance[b], mask[b], depth[b], least_depth)


def _box(cell: Cell, wcs: Wcs, shape: tuple[int, int]) -> tuple[slice, slice] | None:
    """Part (rows, columns) of the science grid that a cell touches."""
    ny, nx = cell.shape
    # The border's middle points too: a cell's side is a curve on the other grid.
    x = np.array([0, 0.5, 1, 1, 1, 0.5, 0, 0]) * (nx - 1)
    y = np.array([0, 0, 0, 0.5, 1, 1, 1, 0.5]) * (ny - 1)
    px, py = wcs.sky_to_pixel(*cell.wcs.pixel_to_sky(x, y))
    if not (np.isfinite(px).all() and np.isfinite(py).all()):
        return None
    x0, x1 = max(int(px.min()) - 1, 0), min(int(px.max()) + 2, shape[1])
    y0, y1 = max(int(py.min()) - 1, 0), min(int(py.max()) + 2, shape[0])
    return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None


def assembled_psf(sources: Sequence[Exposure], wcs: Wcs, shape: tuple[int, int]) -> Psf | None:
    """PSF of warped images on the new grid: linear in the position, or constant when few points see one.

    Parameters
    ----------
    sources : sequence of `Exposure`
        Each with a WCS; those without a PSF are passed over.
    wcs, shape
        Of the new grid.
    """
    sources = [s for s in sources if s.psf is not None and s.wcs is not None]
    if not sources:
        return None
    nodes_y, nodes_x = (np.linspace(0, n - 1, 2 * _PSF_GRID + 1)[1::2] for n in shape)
    x, y = (c.reshape(-1, 1) for c in np.meshgrid(nodes_x, nodes_y))
    # Each point with its neighbours, for the local scale and rotation.
    sky = wcs.pixel_to_sky(x + np.array([0, 1, -1, 0, 0]), y + np.array([0, 0, 0, 1, -1]))
    pixels = np.stack([np.stack(s.wcs.sky_to_pixel(*sky)) for s in sources if s.wcs is not None])
    ends = np.array([[s.shape[1] - 1, s.shape[0] - 1] for s in sources])[:, :, None]
    depth = np.minimum(pixels[..., 0], ends - pixels[..., 0]).min(1)
    deepest = np.argmax(np.nan_to_num(depth, nan=-np.inf), 0)
    seen = [k for k in range(len(x)) if depth[deepest[k], k] > 0]
    points = np.array([(x[k, 0], y[k, 0]) for k in seen])
    images = [_warped_psf(sources[deepest[k]], pixels[deepest[k], :, k]) for k in seen]
    if not images:
        return None
    size = max(len(i) for i in images)
    stack = np.stack([np.pad(i, (size - len(i)) // 2) for i in images])
    order = 1 if len(images) > _PSF_GRID**2 // 2 else 0
    design = polynomial_terms(points[:, 0], points[:, 1], shape, order)
    terms = np.linalg.lstsq(design, stack.reshape(len(stack), -1), rcond=None)[0]
    return Psf(terms.reshape(-1, size, size), shape)


def _warped_psf(source: Exposure, around: F8) -> F8:
    """PSF of a source on the new grid, sum 1.

    ``around`` (2, 5) holds the source's pixels (x, y) of a new pixel and of
    its neighbours to the right, left, above and below.
    """
    assert source.psf is not None
    px, py = around
    jacobian = np.array([[px[1] - px[2], px[3] - px[4]], [py[1] - py[2], py[3] - py[4]]]) / 2
    psf = source.psf.at(float(px[0]), float(py[0]))
    half = len(psf) // 2
    new_half = int(np.ceil(half / np.sqrt(abs(np.linalg.det(jacobian)))))
    v, u = np.mgrid[-new_half : new_half + 1, -new_half : new_half + 1]
    at_x, at_y = jacobian @ np.stack([u.ravel(), v.ravel()])
    out = map_coordinates(psf, [at_y + half, at_x + half], order=3, mode="constant", cval=0.0).reshape(u.shape)
    return np.asarray(out / out.sum())
