"""What the two images that were subtracted say about a DiaSource.

Residuals of constant stars follow the light that was taken away: its
gradient where the images were not well aligned, its Laplacian where their
PSFs differ, itself where their flux scales do.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from apflow.pixels.planes import bad_bits


@njit(cache=True, nogil=True)
def light(science, template, variance, mask, psf, flux, noise, sign, ix, iy, row, at):  # type: ignore[no-untyped-def]
    """Fluxes of both images at the source's place."""
    ny, nx = science.shape
    r = psf.shape[0] // 2
    s = t = bottom = 0.0
    for j in range(psf.shape[0]):
        for i in range(psf.shape[1]):
            y, x = iy + j - r, ix + i - r
            if 0 <= y < ny and 0 <= x < nx and not bad_bits(mask[y, x]) and variance[y, x] > 0:
                s += psf[j, i] * science[y, x]
                t += psf[j, i] * template[y, x]
                bottom += psf[j, i] ** 2
    s, t, size = s / bottom, t / bottom, max(flux, 1e-30)
    more, less = (s, t) if sign > 0 else (t, s)
    row[at], row[at + 1], row[at + 2] = more / size, less / size, (more - less) / size
    row[at + 3] = np.log10(max(more / noise, 0.1))


@njit(cache=True, nogil=True)
def template_light(image, template, variance, mask, sign, fwhm, reach, ix, iy, dx, dy, row, at):  # type: ignore[no-untyped-def]
    """The template's brightest pixel near the source, and the glare of all."""
    ny, nx = image.shape
    sigma = np.sqrt(variance[iy, ix]) if variance[iy, ix] > 0 else np.inf
    highest, offset2, peak, glare = -np.inf, 0.0, 0.0, 0.0
    for y in range(max(iy - reach, 0), min(iy + reach + 1, ny)):
        for x in range(max(ix - reach, 0), min(ix + reach + 1, nx)):
            q2 = ((x - ix - dx) ** 2 + (y - iy - dy) ** 2) / (fwhm * fwhm)
            t = template[y, x]
            if not np.isfinite(t):
                continue
            if q2 < 2.25:
                if t > highest:
                    highest, offset2 = t, q2
                if q2 < 1.0 and not bad_bits(mask[y, x]):
                    peak = max(peak, sign * image[y, x])
            elif t > 0:
                glare = max(glare, t / (q2 * np.sqrt(q2)))
    row[at] = np.log10(max(highest / sigma, 0.1))
    row[at + 1] = np.sqrt(offset2)
    row[at + 2] = np.log10(max(peak, 1e-3 * sigma) / max(highest, 0.3 * sigma)) if sigma < np.inf else np.nan
    row[at + 3] = np.log10(max(glare / sigma, 0.01))


@njit(cache=True, nogil=True)
def likeness(image, template, variance, mask, psf, fwhm, ix, iy, row, at):  # type: ignore[no-untyped-def]
    """Parts of the difference's power within 1.5 FWHM that each cause of residuals explains, least squares."""
    ny, nx = image.shape
    r = psf.shape[0] // 2
    power = pp = pd = tt = td = ll = ld = xx = xy = yy = xd = yd = 0.0
    reach2 = 2.25 * fwhm * fwhm
    for j in range(psf.shape[0]):
        for i in range(psf.shape[1]):
            y, x = iy + j - r, ix + i - r
            if (i - r) ** 2 + (j - r) ** 2 > reach2 or not (1 <= y < ny - 1 and 1 <= x < nx - 1):
                continue
            if bad_bits(mask[y, x]) or not variance[y, x] > 0:
                continue
            w, d, p, t = 1.0 / variance[y, x], image[y, x], psf[j, i], template[y, x]
            east, north = template[y, x + 1] - template[y, x - 1], template[y + 1, x] - template[y - 1, x]
            lap = template[y, x + 1] + template[y, x - 1] + template[y + 1, x] + template[y - 1, x] - 4 * t
            power += w * d * d
            pp, pd = pp + w * p * p, pd + w * p * d
            tt, td = tt + w * t * t, td + w * t * d
            ll, ld = ll + w * lap * lap, ld + w * lap * d
            xx, xy, yy = xx + w * east * east, xy + w * east * north, yy + w * north * north
            xd, yd = xd + w * east * d, yd + w * north * d
    if not power > 0:
        return
    det = xx * yy - xy * xy
    if det > 1e-9 * xx * yy:
        a, b = (xd * yy - yd * xy) / det, (yd * xx - xd * xy) / det
        row[at] = (a * xd + b * yd) / power
        row[at + 1] = 2 * np.hypot(a, b) / fwhm
    row[at + 2] = pd * pd / (pp * power) if pp > 0 else np.nan
    row[at + 3] = td * td / (tt * power) if tt > 0 else np.nan
    row[at + 4] = ld * ld / (ll * power) if ll > 0 else np.nan
