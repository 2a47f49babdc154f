"""Images of known stars for the tests of calibration: Moffat stars, galaxies, cosmic rays, raws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.camera import Camera, Detector, load_camera
from apflow.model.exposure import Exposure, ImageInfo, Raw
from apflow.model.products import Calibs
from apflow.model.wcs import Wcs
from apflow.simulate.raws import respond

F8 = NDArray[np.float64]

ZERO_POINT = 28.36
TIME_S = 30.0
RA, DEC, ROTATION = 150.1, -30.4, 33.0


@dataclass(frozen=True)
class Night:
    """An image in electrons before noise, its noise, and the truth."""

    exposure: Exposure
    wcs: Wcs  # the true one
    guess: Wcs
    reference: pd.DataFrame
    x: F8
    y: F8
    flux: F8
    hits: NDArray[np.bool_]


def info(detector: int = 94, time_s: float = TIME_S, **changes: object) -> ImageInfo:
    """A header."""
    values: dict[str, object] = {
        "instrument": "LSSTCam", "detector": detector, "exposure": 2025042000123, "group": "g", "snap": 0,
        "physical_filter": "r_57", "band": "r", "ra_deg": RA, "dec_deg": DEC, "rotation_deg": ROTATION,
        "exposure_time_s": time_s, "mjd_begin_tai": 60785.0, "mjd_end_tai": 60785.0 + time_s / 86400,
    }  # fmt: skip
    return ImageInfo(**(values | changes))  # type: ignore[arg-type]


def moffat(fwhm: float, half: int, dx: float, dy: float, beta: float = 3.5, e1: float = 0.0) -> F8:
    """A Moffat star (2 half + 1 square) of unit total flux, wings beyond the stamp included in the norm."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    axis = np.arange(-half, half + 1)
    r2 = (axis[None, :] - dx) ** 2 * (1 + e1) + (axis[:, None] - dy) ** 2 / (1 + e1)
    return np.asarray((beta - 1) / (np.pi * alpha**2) * (1 + r2 / alpha**2) ** -beta)


def add(image: F8, stamp: F8, x: int, y: int) -> None:
    """Add a stamp centred on a pixel, cut by the borders."""
    half = stamp.shape[0] // 2
    ny, nx = image.shape
    y0, y1, x0, x1 = max(0, y - half), min(ny, y + half + 1), max(0, x - half), min(nx, x + half + 1)
    if y0 < y1 and x0 < x1:
        image[y0:y1, x0:x1] += stamp[y0 - y + half : y1 - y + half, x0 - x + half : x1 - x + half]


def cosmic_rays(rng: np.random.Generator, shape: tuple[int, int], n: int) -> F8:
    """Straight tracks of charge, slightly diffused."""
    from scipy.ndimage import gaussian_filter

    image = np.zeros(shape)
    for _ in range(n):
        x, y, angle = rng.uniform(0, shape[1]), rng.uniform(0, shape[0]), rng.uniform(0, 2 * np.pi)
        length, charge = rng.exponential(12.0) + 1.0, 10 ** rng.uniform(2.5, 4.0)
        for step in np.arange(0, length, 0.1):
            i, j = round(x + step * np.cos(angle)), round(y + step * np.sin(angle))
            if 0 <= i < shape[1] and 0 <= j < shape[0]:
                image[j, i] += charge * 0.1
    return np.asarray(gaussian_filter(image, 0.35))


def make_night(
    seed: int = 1,
    shape: tuple[int, int] = (512, 512),
    n_stars: int = 110,
    n_galaxies: int = 60,
    n_hits: int = 8,
    fwhm: float = 4.1,
    beta: float = 3.5,
    sky: float = 1200.0,
    shift_arcsec: tuple[float, float] = (1.3, -1.2),
    turn_arcsec: float = 25.0,
    slope: float = 0.03,
    camera: Camera | None = None,
) -> Night:
    """A calibratable image; the PSF's FWHM grows by ``slope`` from the left to the right border."""
    rng = np.random.default_rng(seed)
    camera = camera or load_camera("lsstcam", 512)
    detector = camera.detector(94)
    true = camera.wcs(detector, RA + shift_arcsec[0] / 3600 / np.cos(np.radians(DEC)), DEC + shift_arcsec[1] / 3600,
                      ROTATION + turn_arcsec / 3600)  # fmt: skip
    guess = camera.wcs(detector, RA, DEC, ROTATION)
    ny, nx = shape
    image = np.full(shape, sky)
    x, y = rng.uniform(-20, nx + 20, n_stars), rng.uniform(-20, ny + 20, n_stars)
    mag = 17.0 + 5.5 * rng.beta(2.0, 1.2, n_stars)
    flux = 10 ** (-0.4 * (mag - ZERO_POINT)) * TIME_S
    for a, b, f in zip(x, y, flux, strict=True):
        i, j = round(a), round(b)
        half = 40 if f < 3e5 else 90
        add(image, f * moffat(fwhm * (1 + slope * (a / nx - 0.5)), half, a - i, b - j, beta), i, j)
    for _ in range(n_galaxies):
        a, b = int(rng.uniform(0, nx)), int(rng.uniform(0, ny))
        f = 10 ** (-0.4 * (19.0 + 4 * rng.random() - ZERO_POINT)) * TIME_S
        add(image, f * moffat(fwhm * rng.uniform(1.15, 2.5), 60, 0, 0, 2.5, rng.uniform(-0.5, 0.5)), a, b)
    rays = cosmic_rays(rng, shape, n_hits)
    noisy = rng.poisson(image).astype(float) + rng.normal(0, 5.4, shape) + rays
    variance = np.maximum(noisy, 0) + 5.4**2
    exposure = Exposure(
        noisy.astype(np.float32), variance.astype(np.float32), np.zeros(shape, np.int32), "electron", info=info()
    )
    ra, dec = true.pixel_to_sky(x, y)
    known = rng.random(n_stars) < 0.95
    reference = pd.DataFrame({"ra": ra[known], "dec": dec[known], "mag": mag[known]})
    return Night(exposure, true, guess, reference, x, y, flux, rays > 3 * np.sqrt(sky))


def make_raw(detector: Detector, electrons: F8, calibs: Calibs, time_s: float = TIME_S, seed: int = 1) -> Raw:
    """The raw whose signature was put on an image of electrons (before flat and dark), noise of the sky excluded."""
    rng = np.random.default_rng(seed)
    segments = {}
    lit = electrons * calibs.flat + calibs.dark * time_s
    signals = []
    for amp in detector.amplifiers:
        own = np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]
        signal = lit[own] / amp.gain + calibs.bias[own]
        signals.append(signal[:: -1 if amp.flip_y else 1, :: -1 if amp.flip_x else 1])
    signals = respond(np.array(signals), detector)
    for number, (amp, signal) in enumerate(zip(detector.amplifiers, signals, strict=True)):
        adu = rng.normal(0, amp.read_noise / amp.gain, amp.raw_shape)
        adu += 1000.0 + 20 * number + np.linspace(0, 5, amp.raw_shape[0])[:, None]
        adu[: amp.ny, amp.prescan : amp.prescan + amp.nx] += signal
        segments[amp.segment] = np.clip(np.round(adu), 0, 65535).astype(np.uint16)
    return Raw(segments, info(detector.id, time_s))


def make_calibs(detector: Detector, seed: int = 2, structure: bool = True) -> Calibs:
    """Master calibrations with or without structure."""
    rng = np.random.default_rng(seed)
    shape = detector.shape
    bias, dark, flat = np.zeros(shape), np.zeros(shape), np.ones(shape)
    defects = np.zeros(shape, np.bool_)
    if structure:
        bias += rng.normal(0, 3.0, shape[1])
        dark += rng.exponential(0.05, shape)
        flat *= 1 + 0.02 * rng.normal(size=shape) + 0.05 * np.sin(np.arange(shape[1]) / 100)
        defects |= rng.random(shape) < 2e-4
        defects[100:, 77] = True
    return Calibs(bias.astype(np.float32), dark.astype(np.float32), flat.astype(np.float32), defects, pd.DataFrame())
