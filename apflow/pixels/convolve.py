"""Convolution by FFT, with kernels constant or varying over the image.

Images are padded by reflection, so that blank sky stays blank at the borders.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray

from apflow.model.kernel import Kernel
from apflow.model.psf import polynomial_exponents
from apflow.pixels.planes import INTRP, LOST
from apflow.pixels.tiles import TILE, convolve_tiles
from apflow.pixels.tiles import kernel_transform as kernel_transform

#: Pixels that are looked at together for whether any of them has a bit.
_STRETCH = 256

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

#: Images up to this side are transformed whole, larger ones in tiles.
WHOLE = 1100


def convolve(image: F4, kernel: F8 | F4) -> F4:
    """``out[y, x] = sum kernel[j, i] image[y - j, x - i]``, (j, i) counted from the kernel's middle.

    Parameters
    ----------
    image : `numpy.ndarray`, (ny, nx), float32
        Finite everywhere.
    kernel : `numpy.ndarray`, (k, k)
        k odd.
    """
    terms = np.asarray(kernel, np.float64)[None]
    return convolve_varying(image, Kernel(terms, 0, (image.shape[0], image.shape[1])))


def convolve_varying(image: F4, kernel: Kernel) -> F4:
    """Convolve with a kernel that varies over the image.

    Small images are exact: one transform for each spatial term. Large ones
    use the kernel at the middle of each tile, 1/20 of the image or less away.

    Parameters
    ----------
    image : `numpy.ndarray`, (ny, nx), float32
        Finite everywhere.
    """
    if max(image.shape) <= WHOLE or min(image.shape) < TILE:
        return _convolve_whole(image, kernel)
    return convolve_tiles(image, kernel)


def _convolve_whole(image: F4, kernel: Kernel) -> F4:
    ny, nx = image.shape
    half = kernel.terms.shape[-1] // 2
    size = (scipy.fft.next_fast_len(ny + 2 * half, True), scipy.fft.next_fast_len(nx + 2 * half, True))
    padded = np.pad(image, ((half, size[0] - ny - half), (half, size[1] - nx - half)), "symmetric")
    transform = scipy.fft.rfft2(padded)
    u, v = np.linspace(-1.0, 1.0, nx, dtype=np.float32), np.linspace(-1.0, 1.0, ny, dtype=np.float32)
    out = np.zeros((ny, nx), np.float32)
    for term, (p, q) in zip(kernel.terms, polynomial_exponents(kernel.order), strict=True):
        product = transform * kernel_transform(term[None], size)[0]
        part = scipy.fft.irfft2(product, size, overwrite_x=True)[half : half + ny, half : half + nx]
        _add_weighted(out, part, u**p, v**q)
    return out


@njit(cache=True, fastmath=True, nogil=True)
def _add_weighted(out, part, wx, wy):  # type: ignore[no-untyped-def]
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[y, x] += wy[y] * wx[x] * part[y, x]


def smooth(image: F4, sigma_px: float) -> F4:
    """Convolve with a normalised Gaussian, border pixels repeated; float32 (ny, nx)."""
    if sigma_px <= 0:
        return image.copy()
    half = max(1, int(np.ceil(3 * sigma_px)))
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma_px) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    # An array of NumPy's has large pages, which are there sooner than many small ones.
    out = np.empty(image.shape, np.float32)
    _separable(image, taps, out)
    return out


@njit(cache=True, fastmath=True, nogil=True)
def _separable(image, taps, out):  # type: ignore[no-untyped-def]
    """Symmetric taps along both axes: pixels at the same distance are added first."""
    ny, nx = image.shape
    half = taps.size // 2
    row = np.empty(nx + 2 * half, np.float32)
    inner = row[half : half + nx]
    for y in range(ny):
        w, middle = taps[half], image[y]
        for x in range(nx):
            inner[x] = w * middle[x]
        for j in range(1, half + 1):
            w, above, below = taps[half + j], image[max(y - j, 0)], image[min(y + j, ny - 1)]
            for x in range(nx):
                inner[x] += w * (above[x] + below[x])
        row[:half], row[half + nx :] = row[half], row[half + nx - 1]
        w, target = taps[half], out[y]
        for x in range(nx):
            target[x] = w * inner[x]
        for i in range(1, half + 1):
            w, left, right = taps[half + i], row[half - i : half - i + nx], row[half + i : half + i + nx]
            for x in range(nx):
                target[x] += w * (left[x] + right[x])


def grow(mask: NDArray[np.bool_], radius_px: int) -> NDArray[np.bool_]:
    """Grow the true pixels of a mask by a square of half-side ``radius_px``."""
    out = mask.copy()
    if radius_px > 0:
        _spread(np.ascontiguousarray(mask).view(np.uint8), 1, radius_px, out.view(np.uint8))
    return out


def grow_planes(mask: I4, planes: int, radius_px: int, out: I4) -> None:
    """Set mask planes in `out` (ny, nx) within a square of half-side ``radius_px`` of the pixels of `mask` with them.

    Pixels that may be used since they were interpolated do not count.
    """
    _spread(mask, planes, radius_px, out)


@njit(cache=True, nogil=True)
def _spread(mask, planes, radius, out):  # type: ignore[no-untyped-def]
    ny, nx = mask.shape
    for y in range(ny):
        row = mask[y]
        for start in range(0, nx, _STRETCH):
            # Most stretches of a row have none, which takes no branch to see.
            some = 0
            for value in row[start : start + _STRETCH]:
                some |= value
            if some & planes == 0:
                continue
            x, stop = start, min(start + _STRETCH, nx)
            while x < stop:
                value, first = row[x], x
                while x < stop and row[x] == value:
                    x += 1
                bits = value & planes & (LOST if value & INTRP else -1)
                if bits != 0:
                    for j in range(max(0, y - radius), min(ny, y + radius + 1)):
                        for i in range(max(0, first - radius), min(nx, x + radius)):
                            out[j, i] |= bits
