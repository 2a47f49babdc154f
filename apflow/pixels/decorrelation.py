"""Whitening of the noise of a difference after Reiss & Lupton (DMTN-021)."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from apflow.errors import DataError
from apflow.model.exposure import Exposure
from apflow.model.kernel import Kernel
from apflow.model.psf import Psf, polynomial_terms
from apflow.pixels.planes import unusable

F8 = NDArray[np.float64]

#: Side of the grid on which the kernel is made, and of the kernel itself at most, pixels.
_GRID, _SIZE = 128, 31
#: Part of the kernel's power that may be cut off: a thousandth of the noise stays as it was.
_TAIL = 1e-6
#: Positions along each axis at which a PSF convolved with a varying kernel is made.
_PLACES = 5


def sky_variances(science: Exposure, template: Exposure) -> tuple[float, float]:
    """Median sky variances of the two images."""
    part = np.s_[::5, ::5]
    ok = ~unusable(science.mask[part] | template.mask[part])
    if not ok.any():
        raise DataError("no pixel is good in both science image and template")
    return float(np.median(science.variance[part][ok])), float(np.median(template.variance[part][ok]))


def decorrelation(kernel: F8, science_variance: float, template_variance: float) -> F8:
    """Kernel that whitens the noise of a difference (DMTN-021, equation 2), sum 1.

    Parameters
    ----------
    kernel : `numpy.ndarray`, (k, k)
        The matching kernel.
    science_variance, template_variance : `float`
        Mean variances a pixel before matching.
    """
    n, k = _GRID, len(kernel)
    placed = np.zeros((n, n))
    placed[:k, :k] = kernel
    power = np.abs(scipy.fft.fft2(placed)) ** 2
    whole = science_variance + template_variance * kernel.sum() ** 2
    phi = np.sqrt(whole / np.maximum(science_variance + template_variance * power, 1e-6 * whole))
    image = scipy.fft.fftshift(scipy.fft.ifft2(phi).real)
    half = _SIZE // 2
    cut = image[n // 2 - half : n // 2 + half + 1, n // 2 - half : n // 2 + half + 1]
    return _trimmed(cut / cut.sum())


def _trimmed(kernel: F8) -> F8:
    """The least square about a kernel's middle that holds all but a millionth of its power, sum 1."""
    half = len(kernel) // 2
    power = (kernel**2).sum()
    for r in range(2, half):
        inner = kernel[half - r : half + r + 1, half - r : half + r + 1]
        if (inner**2).sum() > (1 - _TAIL) * power:
            return np.asarray(inner / inner.sum())
    return kernel


def matched_psf(psf: Psf, kernel: Kernel) -> Psf:
    """A PSF as it is after convolution with a kernel that varies over the image.

    It is fitted to a grid of positions, of the order of the higher of the two.
    """
    order = max(psf.order, kernel.order)
    ny, nx = kernel.shape
    x, y = (c.ravel() for c in np.meshgrid(np.linspace(0, nx - 1, _PLACES), np.linspace(0, ny - 1, _PLACES)))
    reach = kernel.terms.shape[-1] // 2
    images = []
    for at_x, at_y in zip(x, y, strict=True):
        spread = fftconvolve(psf.at(at_x, at_y), kernel.at(at_x, at_y))
        images.append(spread[reach:-reach, reach:-reach] / spread.sum() if reach else spread / spread.sum())
    design = polynomial_terms(x, y, kernel.shape, order)
    flat = np.array(images).reshape(len(x), -1)
    terms = np.linalg.lstsq(design, flat, rcond=None)[0]
    return Psf(terms.reshape(-1, psf.size, psf.size), psf.shape)


def convolved_psf(psf: Psf, kernel: F8) -> Psf:
    """A PSF convolved with a kernel (k, k), of its own size."""
    terms = np.stack([fftconvolve(term, kernel, mode="same") for term in psf.terms])
    return Psf(terms, psf.shape)
