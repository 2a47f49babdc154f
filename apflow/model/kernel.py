"""The PSF-matching kernel of a subtraction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apflow.model.psf import polynomial_terms


@dataclass(frozen=True, eq=False)
class KernelStamps:
    """The objects that a kernel was fitted to, one value each.

    Attributes
    ----------
    x, y : `numpy.ndarray`, int64
        Middle pixels.
    used : `numpy.ndarray`, bool
        False where the object did not fit, and was left out.
    chi2 : `numpy.ndarray`, float64
        Of the object's own pixels, per pixel.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    used: NDArray[np.bool_]
    chi2: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Kernel:
    """A convolution kernel whose pixels are polynomials in the position.

    Attributes
    ----------
    terms : `numpy.ndarray`, (nterms, k, k), float64
        Coefficient images in the order of `polynomial_exponents`.
    order : `int`
        Order of the spatial polynomial.
    shape : `tuple` [`int`, `int`]
        Shape (ny, nx) of the image.
    stamps : `KernelStamps`, optional
        What it was fitted to, where it was fitted.
    """

    terms: NDArray[np.float64]
    order: int
    shape: tuple[int, int]
    stamps: KernelStamps | None = None

    def at(self, x: float, y: float) -> NDArray[np.float64]:
        """Kernel image (k, k) at a position; its sum is the flux ratio."""
        return np.asarray(np.tensordot(polynomial_terms(x, y, self.shape, self.order), self.terms, 1))

    def centre(self) -> NDArray[np.float64]:
        """Kernel image at the middle of the image."""
        return self.at((self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2)
