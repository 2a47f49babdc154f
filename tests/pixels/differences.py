"""Bare difference images of known content: unit noise, a Gaussian PSF, and the two images behind them."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from apflow.model.exposure import Exposure
from apflow.model.kernel import Kernel
from apflow.model.products import Difference
from apflow.model.wcs import Wcs
from tests.pixels.scenes import exposure, gaussian_psf, stars_image, wcs

F8 = NDArray[np.float64]
FWHM = 4.0
#: Error of a PSF flux in noise of sigma 1.
SIGMA = float(np.sqrt(4 * np.pi) * FWHM / 2.3548)


def points(n: int, x: list[float], y: list[float], snr: list[float]) -> F8:
    """Light of points of given S/N."""
    return stars_image((n, n), np.array(x), np.array(y), SIGMA * np.array(snr), FWHM)


def line(n: int, x: float, y: float, length: float, angle: float, flux: float) -> F8:
    """Light of a trail of uniform brightness; `angle` in radians from +x towards +y."""
    t = (np.arange(300) + 0.5) / 300 - 0.5
    xs, ys = x + t * length * np.cos(angle), y + t * length * np.sin(angle)
    return stars_image((n, n), xs, ys, np.full(300, flux / 300), FWHM)


def difference(
    science: F8, template: F8 | float = 0.0, seed: int | None = 0, grid: Wcs | None = None
) -> tuple[Difference, Exposure]:
    """Difference and science image of two signals; noise of equal parts in both, none with `seed` None."""
    n = len(science)
    rng = np.random.default_rng(seed)
    half = np.sqrt(0.5)
    empty = exposure(np.zeros((n, n)), 1.0, gaussian_psf(FWHM, n), rng)
    planes = []
    for signal in (science, template):
        noise = 0.0 if seed is None else half * rng.normal(size=(n, n))
        image = (signal + np.zeros((n, n)) + noise).astype(np.float32)
        planes.append(dataclasses.replace(empty, image=image, variance=np.full((n, n), 0.5, np.float32)))
    s, t = (dataclasses.replace(p, wcs=wcs(n) if grid is None else grid) for p in planes)
    d = dataclasses.replace(s, image=s.image - t.image, variance=np.ones((n, n), np.float32), mask=s.mask.copy())
    return Difference(d, t, Kernel(np.ones((1, 1, 1)), 0, (n, n))), s


def pulls_are_noise(pulls: F8, n: int) -> None:
    """Pulls (n, m) of measurements have means of 0 and scatters of 1, within what n of them can tell."""
    assert len(pulls) > 0.9 * n
    np.testing.assert_allclose(pulls.mean(0), 0.0, atol=4.5 / np.sqrt(n))
    np.testing.assert_allclose(pulls.std(0), 1.0, atol=4.0 / np.sqrt(2 * n))
