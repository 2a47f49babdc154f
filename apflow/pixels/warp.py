"""Resampling of an image onto another grid."""

from __future__ import annotations

import dataclasses

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure
from apflow.model.wcs import Wcs
from apflow.pixels.planes import HARD, NO_DATA

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

#: Step of the grid on which positions are exact, pixels; between its nodes they are bilinear.
STEP = 32
_LOBES = 4
_TABLE_SIZE = 1024


def _lanczos_table() -> F4:
    """Lanczos-4 weights of 8 taps by the fraction of a pixel, each row of sum 1."""
    t = np.arange(_TABLE_SIZE + 1)[:, None] / _TABLE_SIZE
    k = np.arange(1 - _LOBES, _LOBES + 1)[None] - t
    w = np.sinc(k) * np.sinc(k / _LOBES)
    return np.asarray((w / w.sum(1, keepdims=True)).astype(np.float32))


TABLE = _lanczos_table()


def warp(source: Exposure, wcs: Wcs, shape: tuple[int, int]) -> Exposure:
    """Resample an exposure onto another pixel grid by Lanczos-4 interpolation.

    Flux is conserved: images hold flux a pixel and are scaled by the ratio of
    the pixels' areas. The variance is interpolated (not the squared weights
    of its interpolation): interpolation leaves the noise power at the scale of
    a PSF as it was, so this is the variance that gives right errors of PSF
    fluxes. The PSF is left out, since it belongs to the other grid.

    Parameters
    ----------
    source : `Exposure`
        With a WCS; pixels that are not finite count as NO_DATA.
    wcs : `Wcs`
        The mapping of the new grid.
    shape : `tuple` [`int`, `int`]
        Shape (ny, nx) of the new grid.

    Returns
    -------
    `Exposure`
        Image and variance 0 and mask NO_DATA where the source gives nothing.

    Raises
    ------
    DataError
        The source has no WCS.
    """
    x, y = source_grid(source, wcs, shape)
    image, variance = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    mask, depth = np.full(shape, NO_DATA, np.int32), np.full(shape, -1.0, np.float32)
    warp_into(source, x, y, image, variance, mask, depth)
    return dataclasses.replace(source, image=image, variance=variance, mask=mask, wcs=wcs, psf=None)


def source_grid(source: Exposure, wcs: Wcs, shape: tuple[int, int]) -> tuple[F8, F8]:
    """Source pixels (x, y) of every `STEP` pixels of the new grid, one node past its end."""
    if source.wcs is None:
        raise DataError("the image to warp has no WCS; accepted: an exposure with a TAN or TAN-SIP WCS")
    ny, nx = shape
    nodes_x, nodes_y = np.arange(-(-nx // STEP) + 1) * STEP, np.arange(-(-ny // STEP) + 1) * STEP
    grid_x, grid_y = np.meshgrid(nodes_x.astype(float), nodes_y.astype(float))
    return source.wcs.sky_to_pixel(*wcs.pixel_to_sky(grid_x, grid_y))


def warp_into(
    source: Exposure, x: F8, y: F8, image: F4, variance: F4, mask: I4, depth: F4, least_depth: float = _LOBES
) -> None:
    """Resample into planes that exist already, where the source is deeper than what is there.

    Parameters
    ----------
    source : `Exposure`
    x, y : `numpy.ndarray`
        From `source_grid`.
    image, variance, mask : `numpy.ndarray`, (ny, nx)
        Changed in place.
    depth : `numpy.ndarray`, (ny, nx), float32
        Distance of a pixel from the border of the source it came from, in the
        source's pixels; below 0 where there is none yet. Changed in place.
    least_depth : `float`
        Pixels nearer to the source's border are left as they are.
    """
    planes = source.image, source.variance
    bad = source.mask
    if not all(np.isfinite(plane.sum(dtype=np.float64)) for plane in planes):
        ok = np.isfinite(planes[0]) & np.isfinite(planes[1])
        planes = np.where(ok, planes[0], np.float32(0)), np.where(ok, planes[1], np.float32(0))
        bad = np.where(ok, bad, bad | NO_DATA).astype(np.int32)
    _warp(planes[0], planes[1], _spread(bad, HARD), x, y, TABLE, max(least_depth, _LOBES), image, variance, mask, depth)


@njit(cache=True, nogil=True)
def _spread(mask, planes):  # type: ignore[no-untyped-def]
    """Grow the given planes by one pixel: with the 2 x 2 pixels read, the main lobe and the first side lobe."""
    out = mask.copy()
    ny, nx = mask.shape
    for y in range(ny):
        for x in range(nx):
            bits = mask[y, x] & planes
            if bits:
                for j in range(max(y - 1, 0), min(y + 2, ny)):
                    for i in range(max(x - 1, 0), min(x + 2, nx)):
                        out[j, i] |= bits
    return out


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def _warp(src, svar, smask, gx, gy, table, least, out, ovar, omask, depth):  # type: ignore[no-untyped-def]
    ny, nx = out.shape
    sy, sx = src.shape
    inv = np.float32(1.0 / STEP)
    for y in range(ny):
        row = y // STEP
        fy = (y - row * STEP) * inv
        for col in range((nx + STEP - 1) // STEP):
            x0, x1 = col * STEP, min(col * STEP + STEP, nx)
            ax = gx[row, col] + (gx[row + 1, col] - gx[row, col]) * fy
            bx = gx[row, col + 1] + (gx[row + 1, col + 1] - gx[row, col + 1]) * fy
            ay = gy[row, col] + (gy[row + 1, col] - gy[row, col]) * fy
            by = gy[row, col + 1] + (gy[row + 1, col + 1] - gy[row, col + 1]) * fy
            if max(ax, bx) < least or max(ay, by) < least or min(ax, bx) > sx - least or min(ay, by) > sy - least:
                continue
            dxx, dyx = (bx - ax) * inv, (by - ay) * inv
            dxy = (gx[row + 1, col] - gx[row, col] + gx[row + 1, col + 1] - gx[row, col + 1]) * 0.5 * inv
            dyy = (gy[row + 1, col] - gy[row, col] + gy[row + 1, col + 1] - gy[row, col + 1]) * 0.5 * inv
            area = np.float32(abs(dxx * dyy - dxy * dyx))
            for x in range(x0, x1):
                px, py = ax + dxx * (x - x0), ay + dyx * (x - x0)
                near = np.float32(min(min(px, py), min(sx - 1 - px, sy - 1 - py)))
                if near < least or near <= depth[y, x]:
                    continue
                ix, iy = int(px), int(py)
                m = smask[iy, ix] | smask[iy, ix + 1] | smask[iy + 1, ix] | smask[iy + 1, ix + 1]
                if m & NO_DATA:
                    continue
                fx, fyy = np.float32(px - ix), np.float32(py - iy)
                wx = table[int(fx * _TABLE_SIZE + np.float32(0.5))]
                wy = table[int(fyy * _TABLE_SIZE + np.float32(0.5))]
                c, r = ix - 3, iy - 3
                a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = np.float32(0)
                for j in range(8):
                    w, line = wy[j], src[r + j, c : c + 8]
                    a0 += w * line[0]
                    a1 += w * line[1]
                    a2 += w * line[2]
                    a3 += w * line[3]
                    a4 += w * line[4]
                    a5 += w * line[5]
                    a6 += w * line[6]
                    a7 += w * line[7]
                low = wx[0] * a0 + wx[1] * a1 + wx[2] * a2 + wx[3] * a3
                high = wx[4] * a4 + wx[5] * a5 + wx[6] * a6 + wx[7] * a7
                out[y, x] = (low + high) * area
                v0 = svar[iy, ix] + fx * (svar[iy, ix + 1] - svar[iy, ix])
                v1 = svar[iy + 1, ix] + fx * (svar[iy + 1, ix + 1] - svar[iy + 1, ix])
                ovar[y, x] = (v0 + fyy * (v1 - v0)) * area * area
                omask[y, x] = m
                depth[y, x] = near
