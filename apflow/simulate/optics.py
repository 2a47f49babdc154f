"""The simulator's PSF and galaxy profiles: mixtures of Gaussians.

Five Gaussians follow a Moffat profile within 4 % out to 6 FWHM. With stars and
galaxies made of Gaussians, every convolution is a sum of covariances: exact,
and the same for stars, galaxies, visits and templates.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls
from scipy.special import gammainc

F8 = NDArray[np.float64]

_BETA = 3.5
#: n_eff = 2.266 FWHM_eff^2 (LSE-30).
NEFF = 2.266


@functools.cache
def moffat() -> tuple[F8, F8]:
    """Weights (sum 1) and variances of the Gaussians of a Moffat PSF with an effective FWHM of 1."""
    radius = np.linspace(0.0, 6.0, 200)
    scale = 0.5 / np.sqrt(2 ** (1 / _BETA) - 1)
    profile = (1 + (radius / scale) ** 2) ** -_BETA
    variances = np.geomspace(0.26, 2.2, 5) ** 2
    # Weighted so that core and wings are followed about equally well.
    weights, _ = nnls(np.exp(-0.5 * radius[:, None] ** 2 / variances) * profile[:, None] ** -0.8, profile**0.2)
    weights = weights * variances / (weights @ variances)
    return weights, variances * NEFF / mixture_neff(weights, variances)


def mixture_neff(weights: F8, variances: F8, extra: float = 0.0) -> float:
    """1 / integral of the squared profile, after convolution with a Gaussian of variance `extra`."""
    pairs = weights[:, None] * weights / (2 * np.pi * (variances[:, None] + variances + 2 * extra))
    return float(1.0 / pairs.sum())


def shear(e1: ArrayLike, e2: ArrayLike) -> F8:
    """Covariance (..., 2, 2) of unit determinant with ellipticity (e1, e2)."""
    e1, e2 = np.broadcast_arrays(np.asarray(e1, float), np.asarray(e2, float))
    norm = 1.0 / np.sqrt(1.0 - e1**2 - e2**2)
    return np.stack([np.stack([(1 + e1) * norm, e2 * norm], -1), np.stack([e2 * norm, (1 - e1) * norm], -1)], -2)


def psf_image(fwhm_px: float, e1: float, e2: float, size: int, dx: float = 0.0, dy: float = 0.0) -> F8:
    """PSF (size, size) sampled at pixel centres, centred on the middle pixel plus (dx, dy), sum 1."""
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    inverse = np.linalg.inv(shear(e1, e2))
    r2 = inverse[0, 0] * (x - dx) ** 2 + 2 * inverse[0, 1] * (x - dx) * (y - dy) + inverse[1, 1] * (y - dy) ** 2
    image = np.zeros((size, size))
    for weight, variance in zip(*moffat(), strict=True):
        image += weight / variance * np.exp(-0.5 * r2 / (variance * fwhm_px**2))
    return np.asarray(image / image.sum())


def psf_radius_px(peak_ratio: ArrayLike, fwhm_px: float) -> F8:
    """Radius at which a round PSF of unit flux falls to a surface brightness (per pixel); 0 where it is fainter."""
    radius = np.linspace(0.0, 6.0, 241)
    weights, variances = moffat()
    profile = (weights / (2 * np.pi * variances) * np.exp(-0.5 * radius[:, None] ** 2 / variances)).sum(1) / fwhm_px**2
    return np.asarray(np.interp(-np.asarray(peak_ratio, float), -profile, radius, left=0.0) * fwhm_px)


@functools.cache
def galaxy_profile(kind: str) -> tuple[F8, F8]:
    """Weights (sum 1) and variances of the Gaussians of a galaxy with a half-light radius of 1.

    ``exponential`` (Sersic index 1) or ``devaucouleurs`` (4), fitted to the
    light within each radius out to 4 and 6 half-light radii.
    """
    index, b, edge = {"exponential": (1.0, 1.67835, 4.0), "devaucouleurs": (4.0, 7.66925, 6.0)}[kind]
    radius = np.geomspace(0.02, edge, 80)
    light = gammainc(2 * index, b * radius ** (1 / index))
    sigmas = np.geomspace(0.08, 0.6 * edge, 6)
    weights, _ = nnls(1 - np.exp(-0.5 * (radius[:, None] / sigmas) ** 2), light)
    keep = weights > 1e-3
    return weights[keep] / weights[keep].sum(), sigmas[keep] ** 2
