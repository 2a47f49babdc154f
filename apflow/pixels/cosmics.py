"""Cosmic rays in a single image, by their shape."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.exposure import Exposure, Mask
from apflow.pixels.interpolate import fill, typical

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]

#: A pixel is looked at when it stands so many sigma above the sky; growing along a hit goes deeper.
_SEED_SIGMA, _GROW_SIGMA = 5.0, 2.0
#: By how many sigma it must be sharper than the PSF.
_SEED_MARGIN, _GROW_MARGIN = 3.5, 1.0
#: Fraction of the PSF's ratio that still passes for a star: the PSF is neither round nor the same everywhere.
_TOLERANCE = 0.8
#: Charge of a hit so strong reaches the pixels beside it.
_HALO_SIGMA = 25.0
#: Rounds of growth into the neighbours of what was found.
_ROUNDS = 4

_SAT, _CR = int(Mask.SAT), int(Mask.CR)
_UNUSABLE = int(Mask.BAD | Mask.SAT | Mask.NO_DATA)


def find_cosmic_rays(exposure: Exposure, fwhm_px: float) -> NDArray[np.bool_]:
    """Pixels hit by cosmic rays: those sharper than the PSF in some direction.

    A pixel and the mean of two pixels opposite each other, 1, sqrt(2) or 2 px
    away, have at least the ratio that a star centred on the pixel gives,
    wherever light went through the PSF. A pixel for which the mean falls
    short of it beyond the noise is a hit (after Photo's and Rubin's finder,
    Lupton; compare the Laplacian of van Dokkum 2001); from there hits grow
    into neighbours by a relaxed test against what interpolation leaves, and
    strong ones by a pixel to each side.

    Parameters
    ----------
    exposure : `Exposure`
        Best with the sky subtracted; otherwise the sky's median is taken off.
    fwhm_px : `float`
        FWHM of the PSF, pixels.

    Returns
    -------
    hits : `numpy.ndarray`, (ny, nx), bool
    """
    s2 = (fwhm_px / 2.3548) ** 2
    ratios = _TOLERANCE * np.exp(-np.array([0.5, 1.0, 2.0]) / s2)
    sky = np.float32(typical(exposure.image, exposure.mask, _UNUSABLE))
    found = _seeds(exposure.image, exposure.variance, exposure.mask, sky, ratios)
    hits = np.zeros(exposure.shape, np.bool_)
    if len(found):
        _grow(exposure.image.copy(), exposure.variance, exposure.mask.copy(), sky, ratios, found, hits)
        _add_halo(exposure.image, exposure.variance, sky, hits)
    return hits


@njit(cache=True, nogil=True)
def _sharp(
    image: F4, variance: F4, sky: np.float32, ratios: NDArray[np.float64], y: int, x: int, margin: float
) -> bool:
    """Whether a pixel is sharper than the PSF in one of six directions and distances."""
    ny, nx = image.shape
    peak = image[y, x] - sky
    for n, dy, dx in ((0, 0, 1), (0, 1, 0), (1, 1, 1), (1, 1, -1), (2, 0, 2), (2, 2, 0)):
        y0, y1, x0, x1 = y - dy, y + dy, x - dx, x + dx
        if y0 < 0 or y1 >= ny or min(x0, x1) < 0 or max(x0, x1) >= nx:
            continue
        short = ratios[n] * peak - (0.5 * (image[y0, x0] + image[y1, x1]) - sky)
        noise2 = ratios[n] ** 2 * variance[y, x] + 0.25 * (variance[y0, x0] + variance[y1, x1])
        if short > 0 and short * short > margin * margin * noise2:
            return True
    return False


@njit(cache=True, nogil=True)
def _near_saturation(mask: I4, y: int, x: int) -> bool:
    """Saturated cores and bleeds have edges as sharp as a hit."""
    for yy in range(max(0, y - 2), min(mask.shape[0], y + 3)):
        for xx in range(max(0, x - 2), min(mask.shape[1], x + 3)):
            if mask[yy, xx] & _SAT:
                return True
    return False


@njit(cache=True, nogil=True)
def _seeds(image: F4, variance: F4, mask: I4, sky: np.float32, ratios: NDArray[np.float64]) -> I8:
    """Flat indices of pixels that are hits by themselves."""
    ny, nx = image.shape
    found = [np.int64(0) for _ in range(0)]
    seed2 = np.float32(_SEED_SIGMA**2)
    for y in range(ny):
        for x in range(nx):
            excess = image[y, x] - sky
            if excess <= 0 or excess * excess < seed2 * variance[y, x] or mask[y, x] & _UNUSABLE:
                continue
            if _sharp(image, variance, sky, ratios, y, x, _SEED_MARGIN) and not _near_saturation(mask, y, x):
                found.append(np.int64(y * nx + x))
    return np.array(found, np.int64)


@njit(cache=True, nogil=True)
def _grow(
    image: F4,
    variance: F4,
    mask: I4,
    sky: np.float32,
    ratios: NDArray[np.float64],
    found: I8,
    hits: NDArray[np.bool_],
) -> None:
    """Mark the hits and grow them; ``image`` and ``mask`` are scratch."""
    ny, nx = image.shape
    everything, last = found, found
    for _ in range(_ROUNDS):
        for n in range(last.size):
            hits[last[n] // nx, last[n] % nx] = True
            mask[last[n] // nx, last[n] % nx] |= _CR
        fill(image, mask, _CR | _UNUSABLE, everything, sky)
        new = [np.int64(0) for _ in range(0)]
        for n in range(last.size):
            y, x = last[n] // nx, last[n] % nx
            for yy in range(max(0, y - 1), min(ny, y + 2)):
                for xx in range(max(0, x - 1), min(nx, x + 2)):
                    excess = image[yy, xx] - sky
                    if mask[yy, xx] & (_CR | _UNUSABLE) or excess < _GROW_SIGMA * np.sqrt(variance[yy, xx]):
                        continue
                    if _sharp(image, variance, sky, ratios, yy, xx, _GROW_MARGIN):
                        mask[yy, xx] |= _CR
                        new.append(np.int64(yy * nx + xx))
        if len(new) == 0:
            return
        last = np.array(new, np.int64)
        everything = np.concatenate((everything, last))
    for n in range(last.size):
        hits[last[n] // nx, last[n] % nx] = True


@njit(cache=True, nogil=True)
def _add_halo(image: F4, variance: F4, sky: np.float32, hits: NDArray[np.bool_]) -> None:
    """Mark the pixels beside strong hits, in place."""
    ny, nx = image.shape
    strong = [(0, 0) for _ in range(0)]
    for y in range(ny):
        for x in range(nx):
            if hits[y, x] and image[y, x] - sky > _HALO_SIGMA * np.sqrt(variance[y, x]):
                strong.append((y, x))
    for y, x in strong:
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            if 0 <= y + dy < ny and 0 <= x + dx < nx:
                hits[y + dy, x + dx] = True
