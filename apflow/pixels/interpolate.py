"""Interpolation over masked pixels, so that a convolution spreads no rings from them."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]

#: How far a good pixel is looked for in each direction, px.
_REACH = 64
#: Pixels that are looked at together.
_PIECE = 1024


def typical(image: F4, mask: I4, planes: int) -> float:
    """Median of a sparse sample of the unmasked pixels: the sky, near enough for a fill value; 0 if there are none."""
    step = max(1, int(np.sqrt(image.size / 16384)))
    sample = image[::step, ::step][mask[::step, ::step] & planes == 0]
    return float(np.median(sample)) if sample.size else 0.0


def interpolate(image: F4, mask: I4, planes: int) -> F4:
    """A copy of an image with the pixels of some mask planes interpolated.

    Each takes the mean of the nearest good pixels to its left, right, below
    and above, weighted by 1 / distance; the sky where there is none near.

    Parameters
    ----------
    image : `numpy.ndarray`, (ny, nx), float32
    mask : `numpy.ndarray`, (ny, nx), int32
    planes : `int`
        Bits of the planes to interpolate over.
    """
    out = image.copy()
    where = masked_pixels(mask, planes)
    if len(where):
        fill(out, mask, planes, where, np.float32(typical(image, mask, planes)))
    return out


@njit(cache=True, nogil=True)
def masked_pixels(mask: I4, planes: int) -> I8:
    """Flat indices of the pixels with any of the planes set."""
    flat = mask.ravel()
    out, n = np.empty(_PIECE, np.int64), 0
    for begin in range(0, flat.size, _PIECE):
        piece = flat[begin : begin + _PIECE]
        # Most pieces have none, which is seen without a branch a pixel.
        bits = np.int32(0)
        for i in range(piece.size):
            bits |= piece[i]
        if bits & planes:
            if n + piece.size > out.size:
                more = np.empty(2 * out.size + piece.size, np.int64)
                more[:n] = out[:n]
                out = more
            for i in range(piece.size):
                if piece[i] & planes:
                    out[n] = begin + i
                    n += 1
    return out[:n].copy()


@njit(cache=True, nogil=True)
def fill(image: F4, mask: I4, planes: int, where: I8, fallback: np.float32) -> None:
    """Interpolate the pixels ``where`` (flat indices) of an image, in place."""
    nx = image.shape[1]
    values = nearby(image, mask, planes, where, fallback)
    for n in range(where.size):
        image[where[n] // nx, where[n] % nx] = values[n]


@njit(cache=True, nogil=True)
def nearby(image: F4, mask: I4, planes: int, where: I8, fallback: np.float32) -> F4:
    """What `interpolate` would put at the pixels ``where`` (flat indices)."""
    ny, nx = image.shape
    values = np.empty(where.size, np.float32)
    for n in range(where.size):
        y, x = where[n] // nx, where[n] % nx
        total, weight = np.float32(0), np.float32(0)
        for dy, dx in ((0, -1), (0, 1), (-1, 0), (1, 0)):
            for step in range(1, _REACH + 1):
                yy, xx = y + step * dy, x + step * dx
                if yy < 0 or yy >= ny or xx < 0 or xx >= nx:
                    break
                if not mask[yy, xx] & planes:
                    total += image[yy, xx] / np.float32(step)
                    weight += np.float32(1) / np.float32(step)
                    break
        values[n] = total / weight if weight > 0 else fallback
    return values


@njit(cache=True, nogil=True)
def grow(mask: I4, plane: int, where: I8, radius: int) -> None:
    """Set a plane on all pixels within ``radius`` (a square) of the pixels ``where``, in place."""
    ny, nx = mask.shape
    for n in range(where.size):
        y, x = where[n] // nx, where[n] % nx
        for yy in range(max(0, y - radius), min(ny, y + radius + 1)):
            for xx in range(max(0, x - radius), min(nx, x + radius + 1)):
                mask[yy, xx] |= plane
