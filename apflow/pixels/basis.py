"""Functions of which a PSF-matching kernel is made (Alard & Lupton 1998)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]

_DEGREES = (4, 2, 2)


@dataclass(frozen=True)
class Basis:
    """Gauss-Hermite functions on the kernel's pixels.

    The first image has sum 1, all others sum 0 and absolute sum 1, so that
    the first coefficient is the kernel's sum.
    """

    functions: F8  # (nf, k) one-dimensional
    pairs: tuple[tuple[int, int], ...]  # (fx, fy) of each image
    images: F8  # (nb, k, k)
    mixing: F8  # (nb, nb): images = mixing @ raw products
    match_sigma_px: float  # of the Gaussian that turns the one width into the other


def make_basis(science_fwhm_px: float, template_fwhm_px: float) -> Basis:
    """Basis for bringing a template of one width to another.

    Parameters
    ----------
    science_fwhm_px, template_fwhm_px : `float`
        The Gaussians start from sigmas of 0.7, 1.5, 3.0 px and degrees 4, 2,
        2, and widen with the difference of the widths.
    """
    match = max(np.sqrt(max(science_fwhm_px**2 - template_fwhm_px**2, 0.0)) / 2.3548, 0.1)
    sigmas = max(0.7, 0.5 * match), max(1.5, match), max(3.0, 2 * match)
    half = int(np.clip(np.ceil(3 * 2.3548 * max(match, 1.4)), 10, 17))
    t = np.arange(-half, half + 1)
    functions: list[F8] = []
    pairs: list[tuple[int, int]] = []
    for sigma, degree in zip(sigmas, _DEGREES, strict=True):
        base = len(functions)
        gauss = np.exp(-0.5 * (t / sigma) ** 2)
        for p in range(degree + 1):
            functions.append(gauss * np.polynomial.hermite_e.hermeval(t / sigma, np.eye(degree + 1)[p]))
        pairs += [(base + p, base + q) for p in range(degree + 1) for q in range(degree + 1 - p)]
    f = np.array(functions)
    raw = np.array([np.outer(f[q], f[p]) for p, q in pairs])
    sums = raw.sum((1, 2))
    mixing = np.eye(len(pairs))
    mixing[0, 0] = 1 / sums[0]
    mixing[1:, 0] -= sums[1:] / sums[0]
    images = np.tensordot(mixing, raw, 1)
    scale = np.abs(images[1:]).sum((1, 2))
    mixing[1:] /= scale[:, None]
    images[1:] /= scale[:, None, None]
    return Basis(f, tuple(pairs), images, mixing, float(match))


def convolved(basis: Basis, patches: F4) -> F4:
    """Template patches (ns, n + k - 1, n + k - 1) convolved with each basis image: (ns, nb, n, n)."""
    nf, k = basis.functions.shape
    m = patches.shape[-1]
    n = m - k + 1
    band = np.zeros((nf, m, n), np.float32)
    for c in range(n):
        band[:, c : c + k, c] = basis.functions[:, ::-1]
    along_x = [patches @ band[i] for i in range(nf)]
    raw = np.stack([band[fy].T @ along_x[fx] for fx, fy in basis.pairs], 1)
    mixed = basis.mixing.astype(np.float32) @ raw.reshape(len(patches), len(basis.pairs), n * n)
    return np.asarray(mixed.reshape(raw.shape))
