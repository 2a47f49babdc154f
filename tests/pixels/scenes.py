"""Builders of small image pairs with known truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apflow.model.exposure import Exposure, ImageInfo, Mask
from apflow.model.psf import Psf
from apflow.model.wcs import Wcs

F8 = NDArray[np.float64]
PIXEL_DEG = 0.2 / 3600
INFO = ImageInfo("LSSTCam", 94, 2025042000123, "g", 0, "r_57", "r", 150.0, 2.0, 0.0, 30.0, 60785.1, 60785.2)


def wcs(n: int, rotation_deg: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Wcs:
    """TAN grid about (150, 2), rotated about the image's middle."""
    t = np.radians(rotation_deg)
    turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    middle = ((n - 1) / 2 + shift[0], (n - 1) / 2 + shift[1])
    return Wcs((150.0, 2.0), middle, scale * PIXEL_DEG * turn @ np.diag([-1.0, 1.0]))


def gaussian_psf(fwhm: float, n: int, side: int = 25, growth: float = 0.0) -> Psf:
    """Gaussian whose width grows by ``growth`` (a fraction) from the middle to the right border."""
    v, u = np.mgrid[-(side // 2) : side // 2 + 1, -(side // 2) : side // 2 + 1]
    images = []
    for f in (fwhm, fwhm * (1 + growth)):
        image = np.exp(-(u**2 + v**2) / 2 / (f / 2.3548) ** 2)
        images.append(image / image.sum())
    return Psf(np.stack([images[0], images[1] - images[0], 0 * images[0]]), (n, n))


def stars_image(shape: tuple[int, int], x: F8, y: F8, flux: F8, fwhm: float, growth: float = 0.0) -> F8:
    """Gaussian stars of given fluxes."""
    ny, nx = shape
    out = np.zeros(shape)
    for xs, ys, f in zip(x, y, flux, strict=True):
        s = fwhm * (1 + growth * (2 * xs / (nx - 1) - 1)) / 2.3548
        x0, x1 = max(int(xs) - 20, 0), min(int(xs) + 22, nx)
        y0, y1 = max(int(ys) - 20, 0), min(int(ys) + 22, ny)
        if x0 < x1 and y0 < y1:
            gx, gy = (
                np.exp(-0.5 * ((np.arange(x0, x1) - xs) / s) ** 2),
                np.exp(-0.5 * ((np.arange(y0, y1) - ys) / s) ** 2),
            )
            out[y0:y1, x0:x1] += f / (2 * np.pi * s * s) * np.outer(gy, gx)
    return out


class Pair(NamedTuple):
    """A science image and a template on one grid, and the true changes."""

    science: Exposure
    template: Exposure
    x: F8
    y: F8
    flux: F8
    light: F8  # of the science image, without noise


def pair(
    n: int = 256,
    seed: int = 0,
    *,
    science_fwhm: float = 4.0,
    template_fwhm: float = 3.4,
    stars: int = 120,
    snr: tuple[float, ...] = (8.0, 12.0, 20.0, 40.0, -8.0, -20.0),
    sky: tuple[float, float] = (1000.0, 250.0),
    gain: float = 1.0,
    background: float = 0.0,
    growth: float = 0.03,
    jitter: float = 0.0,
) -> Pair:
    """Two noisy images of a star field; the changes of given S/N lie on a loose grid."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, n, (2, stars))
    flux = np.minimum(4000 * (rng.random(stars) + 1e-3) ** -1.2, 3e6)
    side = int(np.ceil(np.sqrt(len(snr))))
    order = np.arange(len(snr))
    tx = 25 + (order % side + 0.5) * (n - 50) / side + rng.uniform(-3, 3, len(snr))
    ty = 25 + (order // side + 0.5) * (n - 50) / side + rng.uniform(-3, 3, len(snr))
    area = 4 * np.pi * (science_fwhm / 2.3548) ** 2
    change = np.array(snr) * np.sqrt(area * sum(sky))
    shape = (n, n)
    s = stars_image(shape, x, y, flux, science_fwhm, growth)
    s += stars_image(shape, tx, ty, np.maximum(change, 0), science_fwhm, growth)
    t = stars_image(shape, x + rng.normal(0, jitter, stars) if jitter else x, y, flux, template_fwhm, -growth)
    t += stars_image(shape, tx, ty, np.maximum(-change, 0), template_fwhm, -growth)
    science = exposure(s, sky[0], gaussian_psf(science_fwhm, n, growth=growth), rng, background=background)
    template = exposure(t, sky[1], gaussian_psf(template_fwhm, n, growth=-growth), rng, scale=1 / gain)
    return Pair(science, template, tx, ty, change, s)


def exposure(
    signal: F8, sky: float, psf: Psf, rng: np.random.Generator, scale: float = 1.0, background: float = 0.0
) -> Exposure:
    """Add noise of sky and signal; `scale` multiplies image and errors."""
    variance = signal + sky
    image = signal + rng.normal(size=signal.shape) * np.sqrt(variance)
    if background:
        image += background * np.linspace(-1, 1, signal.shape[1])
    mask = np.zeros(signal.shape, np.int32)
    mask[signal > 8e4] |= Mask.SAT
    return Exposure(
        (image * scale).astype(np.float32),
        (variance * scale**2).astype(np.float32),
        mask,
        "nJy",
        wcs(signal.shape[0]),
        psf,
        INFO,
    )
