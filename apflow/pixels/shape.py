"""Adaptive moments of sources and of the PSF, and how extended a source is."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtr

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]

_ITERATIONS = 40
#: Moments have converged when none changes by more than this part of their trace.
_CONVERGED = 1e-4
#: Least and largest trace, in units of the PSF's and of the squared half-side of the stamp.
_NARROWEST, _BROADEST = 0.2, 1.0
#: The centre may move by this, in units of the half-side of the stamp.
_WANDER = 0.4
#: A source is extended when its trace is this many times the PSF's; PSF models are not known better.
_EXTENDED = 1.2


def adaptive_moments(stamps: F4, centres: F8, start: F8) -> tuple[F8, NDArray[np.bool_]]:
    """Second moments with the elliptical Gaussian weight that matches the source itself.

    The weight's moments are iterated until they are those of the source with
    the weight taken out (Bernstein & Jarvis 2002, section 3.1; as in SDSS and
    HSM): for a Gaussian source the result is its covariance.

    Parameters
    ----------
    stamps : `numpy.ndarray`, (n, k, k), float32
        k odd; sources are positive. NaN pixels are left out.
    centres : `numpy.ndarray`, (n, 2)
        Positions (x, y) relative to the middle pixel.
    start : `numpy.ndarray`, (n, 3)
        Moments (xx, yy, xy) to begin with, px^2: those of the PSF.

    Returns
    -------
    moments : `numpy.ndarray`, (n, 3)
        xx, yy, xy in px^2; NaN where none are found.
    bad : `numpy.ndarray`, (n,), bool
    """
    moments = _adaptive(stamps, centres, start)
    return moments, np.isnan(moments[:, 0])


def psf_moments(psfs: F4) -> F8:
    """`adaptive_moments` of PSF images (n, k, k) about their middle pixel; (n, 3), px^2."""
    peak = psfs.max((1, 2)).astype(float)
    # Width of the Gaussian of the same peak and sum.
    width = 1 / (2 * np.pi * np.maximum(peak, 1e-6))
    return adaptive_moments(psfs, np.zeros((len(psfs), 2)), np.stack([width, width, 0 * width], 1))[0]


def extendedness(moments: F8, psf: F8, snr: F8) -> F8:
    """Probability that a source is broader than a point, 0 to 1.

    The trace of the adaptive moments of a Gaussian source has the relative
    error 2 / (S/N) in white noise; what is compared is the trace with 1.2
    times the PSF's. NaN where there are no moments.

    Parameters
    ----------
    moments, psf : `numpy.ndarray`, (n, 3)
        Of `adaptive_moments` and `psf_moments`.
    snr : `numpy.ndarray`, (n,)
        Of the PSF flux.
    """
    trace, of_psf = moments[:, 0] + moments[:, 1], psf[:, 0] + psf[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(ndtr((trace - _EXTENDED * of_psf) * np.abs(snr) / (2 * trace)))


def elongation(moments: F8, psf: F8, snr: F8) -> tuple[F8, F8]:
    """How much longer than the PSF a source is, in sigma of the noise, and along which angle.

    Returns
    -------
    significance : `numpy.ndarray`, (n,)
        Of the variance along the major axis beyond the PSF's along it; 0
        where there are no moments.
    angle : `numpy.ndarray`, (n,)
        Of the major axis from +x towards +y, radians in (-pi/2, pi/2].
    """
    xx, yy, xy = moments.T
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)
    c, s = np.cos(angle), np.sin(angle)
    along = c * c * xx + 2 * c * s * xy + s * s * yy
    of_psf = c * c * psf[:, 0] + 2 * c * s * psf[:, 2] + s * s * psf[:, 1]
    # Along one axis the relative error is sqrt(2) that of the trace (section 3.1 again, white noise).
    with np.errstate(divide="ignore", invalid="ignore"):
        significance = (along - of_psf) / along * np.abs(snr) / (2 * np.sqrt(2))
    return np.nan_to_num(significance), np.nan_to_num(angle)


@njit(cache=True, nogil=True)
def _adaptive(stamps, centres, start):  # type: ignore[no-untyped-def]
    n, k = stamps.shape[0], stamps.shape[1]
    r = k // 2
    out = np.full((n, 3), np.nan)
    for s in range(n):
        xx, yy, xy = start[s, 0], start[s, 1], start[s, 2]
        cx, cy = centres[s, 0], centres[s, 1]
        least = _NARROWEST * (xx + yy)
        for _ in range(_ITERATIONS):
            det = xx * yy - xy * xy
            if not (det > 0 and xx > 0 and least < xx + yy < _BROADEST * r * r):
                break
            a, b, c = yy / det, xx / det, -xy / det
            s0 = sx = sy = sxx = syy = sxy = 0.0
            for j in range(k):
                v = j - r - cy
                for i in range(k):
                    u = i - r - cx
                    d = a * u * u + b * v * v + 2 * c * u * v
                    if d > 25.0 or np.isnan(stamps[s, j, i]):
                        continue
                    w = np.exp(-0.5 * d) * stamps[s, j, i]
                    s0 += w
                    sx += w * u
                    sy += w * v
                    sxx += w * u * u
                    syy += w * v * v
                    sxy += w * u * v
            if s0 <= 0:
                break
            mx, my = sx / s0, sy / s0
            pxx, pyy, pxy = sxx / s0 - mx * mx, syy / s0 - my * my, sxy / s0 - mx * my
            # Centroid and moments are those of source times weight: half the way, and the product's covariance.
            cx, cy = cx + 2 * mx, cy + 2 * my
            if abs(cx) > _WANDER * k or abs(cy) > _WANDER * k:
                break
            pdet = pxx * pyy - pxy * pxy
            if pdet <= 0:
                break
            # Product's inverse less the weight's inverse is the source's.
            ia, ib, ic = pyy / pdet - a, pxx / pdet - b, -pxy / pdet - c
            idet = ia * ib - ic * ic
            if idet <= 0 or ia <= 0:
                # Broader than the weight can tell: widen it.
                nxx, nyy, nxy = 2 * xx, 2 * yy, 2 * xy
            else:
                nxx, nyy, nxy = ib / idet, ia / idet, -ic / idet
            change = max(abs(nxx - xx), abs(nyy - yy), abs(nxy - xy))
            converged = change < _CONVERGED * (xx + yy)
            # No more than a factor of two at once: noise may ask for anything.
            limit = min(1.0, (xx + yy) / max(change, 1e-12))
            xx, yy, xy = xx + limit * (nxx - xx), yy + limit * (nyy - yy), xy + limit * (nxy - xy)
            if converged:
                out[s, 0], out[s, 1], out[s, 2] = xx, yy, xy
                break
    return out
