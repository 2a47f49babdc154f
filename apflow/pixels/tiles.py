"""Overlap-save convolution by FFT in tiles that stay in the cache.

A tile is read with a halo as wide as its kernels reach, transformed,
multiplied, transformed back, and written without the halo, which the wrap
round of the transform has spoilt. Beyond its borders an image is reflected.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray

from apflow.model.kernel import Kernel
from apflow.model.psf import polynomial_terms

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
C8 = NDArray[np.complex64]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]

#: Side of a tile, pixels: large beside a kernel; the fastest size of the transform for each pixel.
TILE = 256
#: Tiles that are transformed together: few enough for them to stay in the cache.
_TOGETHER = 2


def convolve_tiles(image: F4, kernel: Kernel) -> F4:
    """Convolve an image (ny, nx), finite everywhere, with the kernel at the middle of each tile."""
    half = kernel.terms.shape[-1] // 2
    terms = kernel_transform(kernel.terms, (TILE, TILE)).view(np.float32).reshape(len(kernel.terms), -1)
    out = np.empty_like(image)
    nothing = np.zeros((1, 1), np.bool_)
    block = np.empty((_TOGETHER, TILE, TILE), np.float32)
    for y, x in _corners(image.shape[0], image.shape[1], half):
        _load(image, nothing, y, x, half, block)
        middle = (TILE - 1) / 2 - half
        at_y, at_x = np.minimum(y + middle, image.shape[0] - 1), np.minimum(x + middle, image.shape[1] - 1)
        weights = polynomial_terms(at_x, at_y, kernel.shape, kernel.order).astype(np.float32)
        transform = scipy.fft.rfft2(block[: len(y)], axes=(1, 2))
        transform *= (weights @ terms).view(np.complex64).reshape(transform.shape)
        _store(scipy.fft.irfft2(transform, (TILE, TILE), axes=(1, 2), overwrite_x=True), y, x, half, out)
    return out


def whiten_and_filter(image: F4, bad: Bool, whitening: F8 | None, psf: F8) -> tuple[F4, F4]:
    """Convolve with a whitening kernel, and correlate the result with a PSF, from one transform.

    Parameters
    ----------
    image : `numpy.ndarray`, (ny, nx), float32
        Finite where it is not bad.
    bad : `numpy.ndarray`, (ny, nx), bool
        Pixels taken as 0.
    whitening : `numpy.ndarray`, (k, k), optional
        Without one the image stays as it is, but for its bad pixels.
    psf : `numpy.ndarray`, (m, m)

    Returns
    -------
    whitened, filtered : `numpy.ndarray`, (ny, nx), float32
        `filtered` at a pixel is the sum of psf times whitened image about it.
    """
    shape = (TILE, TILE)
    halo = len(psf) // 2 + (0 if whitening is None else len(whitening) // 2)
    phi = None if whitening is None else kernel_transform(whitening[None], shape)[0]
    both = kernel_transform(psf[None, ::-1, ::-1], shape)[0]
    both = both if phi is None else both * phi
    whitened, filtered = np.empty_like(image), np.empty_like(image)
    if phi is None:
        _without_bad(image, bad, whitened)
    block = np.empty((_TOGETHER, *shape), np.float32)
    for y, x in _corners(image.shape[0], image.shape[1], halo):
        _load(image, bad, y, x, halo, block)
        transform = scipy.fft.rfft2(block[: len(y)], axes=(1, 2))
        product = transform * both
        _store(scipy.fft.irfft2(product, shape, axes=(1, 2), overwrite_x=True), y, x, halo, filtered)
        if phi is not None:
            transform *= phi
            _store(scipy.fft.irfft2(transform, shape, axes=(1, 2), overwrite_x=True), y, x, halo, whitened)
    return whitened, filtered


def kernel_transform(terms: F8, shape: tuple[int, int]) -> C8:
    """Transforms (n, ny, nx // 2 + 1) of kernels (n, k, k) centred on the origin of a periodic image."""
    k = terms.shape[-1]
    out = np.zeros((len(terms), *shape), np.float32)
    out[:, :k, :k] = terms
    return np.asarray(scipy.fft.rfft2(np.roll(out, (-(k // 2), -(k // 2)), (1, 2)), axes=(1, 2)))


def _corners(ny: int, nx: int, halo: int) -> Iterator[tuple[I8, I8]]:
    """First pixels (y, x), halo left out, of the tiles that are transformed together."""
    valid = TILE - 2 * halo
    y, x = (c.ravel() for c in np.mgrid[0:ny:valid, 0:nx:valid])
    for first in range(0, len(y), _TOGETHER):
        yield y[first : first + _TOGETHER], x[first : first + _TOGETHER]


@njit(cache=True, nogil=True)
def _inside(i, n):  # type: ignore[no-untyped-def]
    """Pixel that stands for pixel i of a row of n: reflected, and the last one where that is not enough."""
    if i < 0:
        i = -1 - i
    if i >= n:
        i = 2 * n - 1 - i
    return min(max(i, 0), n - 1)


@njit(cache=True, nogil=True)
def _load(image, bad, ys, xs, halo, block):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    side = block.shape[1]
    masked = bad.shape == image.shape
    for t in range(ys.size):
        x0 = xs[t] - halo
        # Columns of the tile that the image has; the others are copied from within the row.
        left, right = max(0, -x0), min(side, nx - x0)
        for j in range(side):
            y = _inside(ys[t] - halo + j, ny)
            row, source = block[t, j], image[y]
            if masked:
                left_out = bad[y, x0 + left : x0 + right]
                values, target = source[x0 + left : x0 + right], row[left:right]
                for i in range(target.size):
                    target[i] = np.float32(0) if left_out[i] else values[i]
            else:
                row[left:right] = source[x0 + left : x0 + right]
            for i in range(left):
                row[i] = row[_inside(x0 + i, nx) - x0]
            for i in range(right, side):
                at = _inside(x0 + i, nx) - x0
                row[i] = row[at] if at >= 0 else np.float32(0)


@njit(cache=True, nogil=True)
def _store(block, ys, xs, halo, out):  # type: ignore[no-untyped-def]
    ny, nx = out.shape
    valid = block.shape[1] - 2 * halo
    for t in range(ys.size):
        width = min(valid, nx - xs[t])
        for j in range(min(valid, ny - ys[t])):
            out[ys[t] + j, xs[t] : xs[t] + width] = block[t, halo + j, halo : halo + width]


@njit(cache=True, nogil=True)
def _without_bad(image, bad, out):  # type: ignore[no-untyped-def]
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            out[y, x] = np.float32(0) if bad[y, x] else image[y, x]
