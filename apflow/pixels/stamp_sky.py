"""What lies about a DiaSource in the difference image and its mask."""

from __future__ import annotations

import numpy as np
from numba import njit

from apflow.pixels.planes import EDGE, HARD, NO_DATA, SAT, bad_bits

#: Directions in which lines are looked for.
_DIRECTIONS = 16


@njit(cache=True, nogil=True)
def masked_around(mask, fwhm, ix, iy, row, at):  # type: ignore[no-untyped-def]
    """Parts of the pixels within 4 FWHM that are unusable or off the image, saturated, and on the edge."""
    ny, nx = mask.shape
    r = int(4 * fwhm)
    hard = full = edge = 0
    for y in range(iy - r, iy + r + 1):
        for x in range(ix - r, ix + r + 1):
            if not (0 <= y < ny and 0 <= x < nx):
                edge += 1
                continue
            bits = mask[y, x]
            hard += (bits & HARD) != 0
            full += (bits & SAT) != 0
            edge += (bits & (EDGE | NO_DATA)) != 0
    whole = (2 * r + 1) ** 2
    row[at], row[at + 1], row[at + 2] = hard / whole, full / whole, edge / whole


@njit(cache=True, nogil=True)
def rings(variance, mask, psf, left, fwhm, ix, iy, row, at):  # type: ignore[no-untyped-def]
    """Least and most S/N of the residual in two rings about the source, matched with the PSF's core."""
    k = psf.shape[0]
    r = k // 2
    core = max(1, min(int(0.75 * fwhm), r))
    for ring in range(2):
        radius = fwhm * (1.1 if ring == 0 else 1.9)
        low, high = np.inf, -np.inf
        for direction in range(12):
            angle = 2 * np.pi * direction / 12
            ox, oy = round(radius * np.cos(angle)), round(radius * np.sin(angle))
            flux = noise = 0.0
            for j in range(-core, core + 1):
                for i in range(-core, core + 1):
                    v, u = oy + j + r, ox + i + r
                    if 0 <= v < k and 0 <= u < k and np.isfinite(left[v, u]):
                        p = psf[j + r, i + r]
                        flux += p * left[v, u]
                        noise += p * p * variance[iy + oy + j, ix + ox + i]
            if noise > 0:
                low, high = min(low, flux / np.sqrt(noise)), max(high, flux / np.sqrt(noise))
        if high >= low:
            row[at + 2 * ring], row[at + 2 * ring + 1] = low, high


@njit(cache=True, nogil=True)
def sky(image, variance, mask, sign, fwhm, reach, ix, iy, row, at):  # type: ignore[no-untyped-def]
    """Mean, power and tail of S/N of the pixels from 2.5 FWHM on."""
    ny, nx = image.shape
    total = power = tail = 0.0
    n = 0
    inner = (2.5 * fwhm) ** 2
    for y in range(max(iy - reach, 0), min(iy + reach + 1, ny)):
        for x in range(max(ix - reach, 0), min(ix + reach + 1, nx)):
            if (x - ix) ** 2 + (y - iy) ** 2 < inner or bad_bits(mask[y, x]) or not variance[y, x] > 0:
                continue
            z = sign * image[y, x] / np.sqrt(variance[y, x])
            # A bright neighbour is one, not many.
            z = min(max(z, -6.0), 6.0)
            total += z
            power += z * z
            tail += abs(z) > 3.0
            n += 1
    if n > 0:
        row[at], row[at + 1], row[at + 2] = total / np.sqrt(n), power / n, tail / n


@njit(cache=True, nogil=True)
def lines(image, variance, mask, sign, fwhm, reach, ix, iy, row, at):  # type: ignore[no-untyped-def]
    """Means along the column, the row and the best of all directions, beyond 1.5 FWHM."""
    best = -np.inf
    for direction in range(_DIRECTIONS):
        angle = np.pi * direction / _DIRECTIONS
        a = _ray(image, variance, mask, sign, fwhm, reach, ix, iy, np.cos(angle), np.sin(angle))
        b = _ray(image, variance, mask, sign, fwhm, reach, ix, iy, -np.cos(angle), -np.sin(angle))
        best = max(best, min(a, b))
        if direction == 0:
            row[at + 1] = max(abs(a), abs(b))
        elif 2 * direction == _DIRECTIONS:
            row[at] = max(abs(a), abs(b))
    row[at + 2] = best


@njit(cache=True, nogil=True)
def _ray(image, variance, mask, sign, fwhm, reach, ix, iy, c, s):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    total = 0.0
    n = 0
    for step in range(int(1.5 * fwhm) + 1, reach + 1):
        x, y = ix + round(step * c), iy + round(step * s)
        if 0 <= y < ny and 0 <= x < nx and not bad_bits(mask[y, x]) and variance[y, x] > 0:
            total += min(max(sign * image[y, x] / np.sqrt(variance[y, x]), -4.0), 4.0)
            n += 1
    return total / np.sqrt(n) if n > 0 else 0.0
