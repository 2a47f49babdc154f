"""Resampling of an image onto another grid."""

from __future__ import annotations

import dataclasses

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
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
    least = max(least_depth, _LOBES)
    (ny, nx), part = source.shape, _needed(source.shape, x, y, least)
    if part is None:
        return
    planes = _rows(source.image[part]), _rows(source.variance[part])
    finite, bad = _spread(planes[0].view(np.int32), planes[1].view(np.int32), source.mask[part], HARD)
    if not finite:
        ok = np.isfinite(planes[0]) & np.isfinite(planes[1])
        planes = np.where(ok, planes[0], np.float32(0)), np.where(ok, planes[1], np.float32(0))
    start = part[1].start, part[0].start
    _warp(*planes, bad, nx, ny, *start, x, y, TABLE, least, image, variance, mask, depth)


def _rows(plane: F4) -> F4:
    """The plane with the pixels of a row next to each other, as the kernel reads them."""
    return plane if plane.strides[1] == plane.itemsize else np.ascontiguousarray(plane)


def _needed(shape: tuple[int, int], x: F8, y: F8, least: float) -> tuple[slice, slice] | None:
    """Part (rows, columns) of a source that a grid of positions reads; None where it reads nothing."""
    slices = []
    for n, at in zip(shape, (y, x), strict=True):
        known = at[np.isfinite(at)]
        if known.size == 0:
            return None
        # One pixel more than the kernel has, for the masks that grow by one; positions lie between the nodes.
        low, high = max(least, float(known.min()) - 1.0), min(n - least, float(known.max()) + 1.0)
        if low >= high:
            return None
        slices.append(slice(max(int(low) - _LOBES - 1, 0), min(int(high) + _LOBES + 2, n)))
    return slices[0], slices[1]


@njit(cache=True, nogil=True)
def _spread(image_bits, variance_bits, mask, planes):  # type: ignore[no-untyped-def]
    """Whether all pixels are finite; the mask with the others as NO_DATA and the given planes grown by one pixel.

    With the 2 x 2 pixels read, that is the main lobe and the first side lobe.
    The planes come as bits: comparing exponents takes all pixels of a vector at once.
    """
    ny, nx = mask.shape
    infinite = np.int32(0x7F800000)
    base = np.empty((ny, nx), np.int32)
    hard = np.zeros(ny, np.int32)
    any_lost = np.int32(0)
    for y in range(ny):
        seen = np.int32(0)
        for x in range(nx):
            lost = np.int32((image_bits[y, x] & infinite) == infinite) | np.int32(
                (variance_bits[y, x] & infinite) == infinite
            )
            any_lost |= lost
            bits = mask[y, x] | (lost * np.int32(NO_DATA))
            base[y, x] = bits
            seen |= bits
        hard[y] = seen & planes
    out = base.copy()
    for y in range(ny):
        if not hard[y]:
            continue
        for x in range(nx):
            bits = base[y, x] & planes
            if bits:
                for j in range(max(y - 1, 0), min(y + 2, ny)):
                    for i in range(max(x - 1, 0), min(x + 2, nx)):
                        out[j, i] |= bits
    return any_lost == 0, out


@intrinsic
def _dot8(typingctx, image, stride, weights_y, weights_x):  # type: ignore[no-untyped-def]
    """Sum over 8 x 8 float32 pixels at address ``image``, rows ``stride`` bytes apart, times their weights.

    Eight lanes at once, which LLVM does not find by itself.
    """
    signature = types.float32(types.uintp, types.intp, types.uintp, types.uintp)

    def generate(context, builder, _, arguments):  # type: ignore[no-untyped-def]
        number, eight, index = ir.FloatType(), ir.VectorType(ir.FloatType(), 8), ir.IntType(32)
        start, step, at_y, at_x = arguments
        column, total = builder.inttoptr(at_y, number.as_pointer()), None
        for row in range(8):
            address = builder.add(start, builder.mul(step, ir.Constant(step.type, row)))
            pixels = builder.load(builder.inttoptr(address, eight.as_pointer()), align=4)
            weight = builder.load(builder.gep(column, [ir.Constant(index, row)]), align=4)
            lanes = builder.insert_element(ir.Constant(eight, ir.Undefined), weight, ir.Constant(index, 0))
            lanes = builder.shuffle_vector(
                lanes, ir.Constant(eight, ir.Undefined), ir.Constant(ir.VectorType(index, 8), [0] * 8)
            )
            product = builder.fmul(pixels, lanes, flags=("fast",))
            total = product if total is None else builder.fadd(total, product, flags=("fast",))
        across = builder.load(builder.inttoptr(at_x, eight.as_pointer()), align=4)
        total = builder.fmul(total, across, flags=("fast",))
        reduce_type = ir.FunctionType(number, [number, eight])
        name = "llvm.vector.reduce.fadd.v8f32"
        reduce = cgutils.get_or_insert_function(builder.module, reduce_type, name)  # type: ignore[no-untyped-call]
        return builder.call(reduce, [ir.Constant(number, 0.0), total], fastmath=("fast",))

    return signature, generate


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def _warp(src, svar, smask, sx, sy, c0, r0, gx, gy, table, least, out, ovar, omask, depth):  # type: ignore[no-untyped-def]
    """Warp a part of a source of sx x sy pixels whose first pixel is (c0, r0)."""
    ny, nx = out.shape
    inv = np.float32(1.0 / STEP)
    scale = np.float32(_TABLE_SIZE)
    pixels, weights = src.ctypes.data, table.ctypes.data
    step_y, step_x, row_bytes = src.strides[0], src.strides[1], table.strides[0]
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
                jx, jy = int(px), int(py)
                ix, iy = jx - c0, jy - r0
                m = smask[iy, ix] | smask[iy, ix + 1] | smask[iy + 1, ix] | smask[iy + 1, ix + 1]
                if m & NO_DATA:
                    continue
                fx, fyy = np.float32(px - jx), np.float32(py - jy)
                wx, wy = int(fx * scale + np.float32(0.5)), int(fyy * scale + np.float32(0.5))
                corner = pixels + (iy - _LOBES + 1) * step_y + (ix - _LOBES + 1) * step_x
                value: np.float32 = _dot8(  # type: ignore[call-arg]
                    np.uintp(corner),
                    np.intp(step_y),
                    np.uintp(weights + wy * row_bytes),
                    np.uintp(weights + wx * row_bytes),
                )
                out[y, x] = value * area
                v0 = svar[iy, ix] + fx * (svar[iy, ix + 1] - svar[iy, ix])
                v1 = svar[iy + 1, ix] + fx * (svar[iy + 1, ix + 1] - svar[iy + 1, ix])
                ovar[y, x] = (v0 + fyy * (v1 - v0)) * area * area
                omask[y, x] = m
                depth[y, x] = near
