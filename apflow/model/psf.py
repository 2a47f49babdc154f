"""A point-spread function that varies over the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def polynomial_exponents(order: int) -> list[tuple[int, int]]:
    """Exponents (p, q) of x^p y^q with p + q <= order, constant first."""
    return [(t - q, q) for t in range(order + 1) for q in range(t + 1)]


def polynomial_terms(
    x: NDArray[np.float64] | float, y: NDArray[np.float64] | float, shape: tuple[int, int], order: int
) -> NDArray[np.float64]:
    """Terms u^p v^q (..., nterms) with u, v the pixel position scaled to [-1, 1]."""
    ny, nx = shape
    u, v = 2.0 * np.asarray(x, float) / max(nx - 1, 1) - 1.0, 2.0 * np.asarray(y, float) / max(ny - 1, 1) - 1.0
    return np.stack([u**p * v**q for p, q in polynomial_exponents(order)], -1)


def effective_area_px(image: NDArray[np.float64]) -> float:
    """1 / sum(psf^2) of a PSF image (k, k) of sum 1."""
    return float(1.0 / (image**2).sum())


def fwhm_px(image: NDArray[np.float64]) -> float:
    """FWHM of the Gaussian with the effective area of a PSF image (LSE-30: 0.664 sqrt(n_eff))."""
    return float(0.664 * np.sqrt(effective_area_px(image)))


@dataclass(frozen=True, eq=False)
class Psf:
    """Each pixel of the PSF is a polynomial in the position on the image.

    Attributes
    ----------
    terms : `numpy.ndarray`, (nterms, k, k), float64
        Coefficient images in the order of `polynomial_exponents`; k is odd
        and the PSF is centred on the middle pixel.
    shape : `tuple` [`int`, `int`]
        Shape (ny, nx) of the image that it describes.
    """

    terms: NDArray[np.float64]
    shape: tuple[int, int]

    @property
    def order(self) -> int:
        """Order of the spatial polynomial."""
        order = 0
        while len(polynomial_exponents(order)) < len(self.terms):
            order += 1
        return order

    @property
    def size(self) -> int:
        """Side of the PSF image, pixels."""
        return int(self.terms.shape[-1])

    def at(self, x: float, y: float) -> NDArray[np.float64]:
        """PSF image (k, k) at a position, sum 1."""
        image = np.tensordot(polynomial_terms(x, y, self.shape, self.order), self.terms, 1)
        return np.asarray(image / image.sum())

    def cropped(self, x0: int, y0: int, shape: tuple[int, int]) -> Psf:
        """The same PSF for the part (ny, nx) of the image whose pixel (0, 0) is pixel (x0, y0) here."""
        x, y = (g.ravel() for g in np.meshgrid(np.linspace(0, shape[1] - 1, 5), np.linspace(0, shape[0] - 1, 5)))
        here = polynomial_terms(x + x0, y + y0, self.shape, self.order)
        there = polynomial_terms(x, y, shape, self.order)
        # A polynomial of a shifted and scaled position is one of the same order.
        turned = np.linalg.lstsq(there, here, rcond=None)[0]
        return Psf(np.tensordot(turned, self.terms, 1), shape)

    def centre(self) -> NDArray[np.float64]:
        """PSF image at the middle of the image."""
        return self.at((self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2)

    def effective_area_px(self) -> float:
        """1 / sum(psf^2) at the centre: the pixels of background in a PSF flux."""
        return effective_area_px(self.centre())

    def fwhm_px(self) -> float:
        """FWHM of the Gaussian with the same effective area, at the centre."""
        return fwhm_px(self.centre())
