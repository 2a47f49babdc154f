"""Convolution by FFT, with kernels constant or varying over the image.

Images are padded by reflection, so that blank sky stays blank at the borders.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray

from apflow.model.kernel import Kernel
from apflow.model.psf import polynomial_exponents, polynomial_terms

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
C8 = NDArray[np.complex64]

#: Side of an overlap-save tile, pixels: small enough for the cache, large beside a kernel.
TILE = 256
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
    return _convolve_tiles(image, kernel)


def kernel_transform(terms: F8, shape: tuple[int, int]) -> C8:
    """Transforms (n, ny, nx // 2 + 1) of kernels (n, k, k) centred on the origin of a periodic image."""
    k = terms.shape[-1]
    out = np.zeros((len(terms), *shape), np.float32)
    out[:, :k, :k] = terms
    return np.asarray(scipy.fft.rfft2(np.roll(out, (-(k // 2), -(k // 2)), (1, 2)), axes=(1, 2)))


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


def _convolve_tiles(image: F4, kernel: Kernel) -> F4:
    ny, nx = image.shape
    half = kernel.terms.shape[-1] // 2
    valid = TILE - 2 * half
    rows, columns = -(-ny // valid), -(-nx // valid)
    pad_x = (half, columns * valid - nx + half)
    transforms = kernel_transform(kernel.terms, (TILE, TILE))
    out = np.empty((ny, nx), np.float32)
    x_middle = np.minimum((np.arange(columns) + 0.5) * valid, nx - 1)
    block = np.empty((columns, TILE, TILE), np.float32)
    for row in range(rows):
        y0, y1 = row * valid, min((row + 1) * valid, ny)
        # Reflected row numbers: only one strip of tiles is copied at a time.
        wanted = np.arange(y0 - half, y0 - half + TILE)
        wanted = np.where(wanted < 0, -1 - wanted, wanted)
        wanted = np.clip(np.where(wanted >= ny, 2 * ny - 1 - wanted, wanted), 0, ny - 1)
        strip = np.pad(image[wanted], ((0, 0), pad_x), "symmetric")
        for c in range(columns):
            block[c] = strip[:, c * valid : c * valid + TILE]
        transform = scipy.fft.rfft2(block, axes=(1, 2))
        weights = polynomial_terms(x_middle, np.full(columns, (y0 + y1 - 1) / 2), kernel.shape, kernel.order)
        _multiply(transform, transforms, weights.astype(np.float32))
        result = scipy.fft.irfft2(transform, (TILE, TILE), axes=(1, 2), overwrite_x=True)
        for c in range(columns):
            x0, x1 = c * valid, min((c + 1) * valid, nx)
            out[y0:y1, x0:x1] = result[c, half : half + y1 - y0, half : half + x1 - x0]
    return out


@njit(cache=True, fastmath=True, nogil=True)
def _multiply(transform, kernels, weights):  # type: ignore[no-untyped-def]
    for t in range(transform.shape[0]):
        for y in range(transform.shape[1]):
            for x in range(transform.shape[2]):
                k = np.complex64(0)
                for m in range(kernels.shape[0]):
                    k += weights[t, m] * kernels[m, y, x]
                transform[t, y, x] *= k


def polynomial_image(coefficients: F8, order: int, shape: tuple[int, int]) -> F4:
    """Polynomial over an image (ny, nx), terms as `apflow.model.psf.polynomial_terms`."""
    ny, nx = shape
    u, v = np.linspace(-1.0, 1.0, nx), np.linspace(-1.0, 1.0, ny)
    exponents = polynomial_exponents(order)
    along_x = np.stack([u**p for p, _ in exponents]).astype(np.float32)
    along_y = np.stack([c * v**q for c, (_, q) in zip(coefficients, exponents, strict=True)], 1).astype(np.float32)
    return np.asarray(along_y @ along_x)


def smooth(image: F4, sigma_px: float) -> F4:
    """Convolve with a normalised Gaussian, border pixels repeated; float32 (ny, nx)."""
    if sigma_px <= 0:
        return image.copy()
    half = max(1, int(np.ceil(3 * sigma_px)))
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma_px) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    return np.asarray(_separable(image, taps))


@njit(cache=True, fastmath=True, nogil=True)
def _separable(image, taps):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    half = taps.size // 2
    out = np.empty((ny, nx), np.float32)
    row = np.empty(nx + 2 * half, np.float32)
    for y in range(ny):
        row[:] = np.float32(0)
        for j in range(taps.size):
            source = image[min(max(y + j - half, 0), ny - 1)]
            w = taps[j]
            for x in range(nx):
                row[x + half] += w * source[x]
        for i in range(half):
            row[i] = row[half]
            row[nx + half + i] = row[nx + half - 1]
        target = out[y]
        target[:] = np.float32(0)
        for i in range(taps.size):
            w = taps[i]
            for x in range(nx):
                target[x] += w * row[x + i]
    return out


def grow(mask: NDArray[np.bool_], radius_px: int) -> NDArray[np.bool_]:
    """Grow the true pixels of a mask by a square of half-side ``radius_px``."""
    if radius_px <= 0 or not mask.any():
        return mask.copy()
    return np.asarray(_dilate(mask, radius_px))


@njit(cache=True, nogil=True)
def _dilate(mask, radius):  # type: ignore[no-untyped-def]
    ny, nx = mask.shape
    rows = np.zeros((ny, nx), np.bool_)
    for y in range(ny):
        last = -radius - 1
        for x in range(nx + radius):
            if x < nx and mask[y, x]:
                last = x
            if x >= radius and x - radius >= last - radius and x - last <= 2 * radius and last >= 0:
                rows[y, x - radius] = True
    out = np.zeros((ny, nx), np.bool_)
    for y in range(ny):
        for j in range(max(0, y - radius), min(ny, y + radius + 1)):
            for x in range(nx):
                out[y, x] |= rows[j, x]
    return out
