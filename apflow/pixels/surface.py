"""Smooth polynomial levels over an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apflow.model.psf import polynomial_exponents

#: Rows that are worked on together.
_STRIP = 32

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Surface:
    """A polynomial over an image.

    Attributes
    ----------
    coefficients : `numpy.ndarray`, (nterms,)
        Of the terms of `apflow.model.psf.polynomial_terms`.
    order : `int`
    shape : `tuple` [`int`, `int`]
        Shape (ny, nx) of the image.
    """

    coefficients: F8
    order: int
    shape: tuple[int, int]

    def image(self) -> F4:
        """Its values (ny, nx)."""
        along_y, along_x = self._factors()
        return np.asarray(along_y @ along_x)

    def taken_from(self, image: F4, other: F4 | None = None) -> F4:
        """An image (ny, nx), less another one where that is given, less the surface."""
        along_y, along_x = self._factors()
        out = np.empty_like(image)
        # Strips of rows: the surface's own values never leave the cache.
        for y in range(0, len(image), _STRIP):
            rows = np.s_[y : y + _STRIP]
            np.subtract(image[rows], along_y[rows] @ along_x, out=out[rows])
            if other is not None:
                out[rows] -= other[rows]
        return out

    def _factors(self) -> tuple[F4, F4]:
        """Factors (ny, nterms) and (nterms, nx) of its values."""
        ny, nx = self.shape
        u, v = np.linspace(-1.0, 1.0, nx), np.linspace(-1.0, 1.0, ny)
        exponents = polynomial_exponents(self.order)
        along_x = np.stack([u**p for p, _ in exponents])
        along_y = np.stack([c * v**q for c, (_, q) in zip(self.coefficients, exponents, strict=True)], 1)
        return along_y.astype(np.float32), along_x.astype(np.float32)
