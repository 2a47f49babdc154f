"""Compiled loops of the simulator: Gaussians, charge bleeding, tracks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]


def draw(image: F4, x: F8, y: F8, weights: F8, covariances: F8, floor: float) -> None:
    """Add Gaussians to an image in place.

    Parameters
    ----------
    image : `numpy.ndarray`, (ny, nx)
    x, y : `numpy.ndarray`, (n,)
        Centres of the sources, pixels.
    weights : `numpy.ndarray`, (n, m)
        Flux of each Gaussian of each source.
    covariances : `numpy.ndarray`, (n, m, 3)
        xx, xy, yy in pixels squared.
    floor : `float`
        A Gaussian is drawn out to where it falls below this, or further where more than 1e-4 of the source's
        flux would be missing; what is cut off is made up for inside.
    """
    _draw(image, x, y, weights, covariances, floor)


@njit(cache=True, fastmath=True, nogil=True)
def _draw(image: Any, x: Any, y: Any, weights: Any, covariances: Any, floor: float) -> None:
    ny, nx = image.shape
    for i in range(weights.shape[0]):
        total = weights[i].sum()
        for m in range(weights.shape[1]):
            flux = weights[i, m]
            if flux == 0.0:
                continue
            xx, xy, yy = covariances[i, m]
            det = xx * yy - xy * xy
            peak = flux / (2.0 * math.pi * math.sqrt(det))
            reach = 2.0 * math.log(max(abs(peak) / floor, flux / total / 1e-4, 2.0))
            peak /= 1.0 - math.exp(-reach / 2.0)
            height = math.sqrt(reach * yy)
            a, b = yy / det, -xy / det
            y0, y1 = max(0, math.ceil(y[i] - height)), min(ny - 1, math.floor(y[i] + height))
            step = math.exp(-a)
            for row in range(y0, y1 + 1):
                dy = row - y[i]
                # Along a row the Gaussian is exp(-a (dx - middle)^2 / 2) times its value at the middle.
                middle = -b / a * dy
                width2 = (reach - dy * dy / yy) / a
                if width2 <= 0.0:
                    continue
                width = math.sqrt(width2)
                x0 = max(0, math.ceil(x[i] + middle - width))
                x1 = min(nx - 1, math.floor(x[i] + middle + width))
                if x1 < x0:
                    continue
                d = x0 - x[i] - middle
                value = peak * math.exp(-0.5 * (dy * dy / yy + a * d * d))
                ratio = math.exp(-a * (d + 0.5))
                for column in range(x0, x1 + 1):
                    image[row, column] += value
                    value *= ratio
                    ratio *= step


@njit(cache=True, nogil=True)
def bleed(image: Any, full: float, y0: int, y1: int) -> None:
    """Spill the charge above full well along the columns of rows [y0, y1), in place.

    Half of the excess runs up and half down; what reaches an end is lost.
    """
    for column in range(image.shape[1]):
        row = y0
        while row < y1:
            if image[row, column] <= full:
                row += 1
                continue
            start, excess = row, 0.0
            while row < y1 and image[row, column] > full:
                excess += image[row, column] - full
                image[row, column] = full
                row += 1
            for direction in (-1, 1):
                share = excess / 2.0
                at = start - 1 if direction < 0 else row
                while y0 <= at < y1 and share > 0.0:
                    room = full - image[at, column]
                    if room > 0.0:
                        moved = min(room, share)
                        image[at, column] += moved
                        share -= moved
                    at += direction


def cosmic_rays(shape: tuple[int, int], exposure_s: float, pixel_cm: float, rng: np.random.Generator) -> F4:
    """Charge tracks, electrons: (n, 3) rows of x, y, electrons to be added.

    5 particles a minute and cm^2 (sea level's 1 grown by altitude and by the
    dewar's own radioactivity), 80 electrons a micron, straight tracks through
    100 um of silicon with a cosine-squared distribution of angles.
    """
    ny, nx = shape
    count = rng.poisson(5.0 / 60.0 * exposure_s * nx * ny * pixel_cm**2)
    points: list[NDArray[np.float64]] = []
    for _ in range(count):
        cosine = rng.uniform(0.05, 1.0) ** (1 / 3)
        pitch_um = pixel_cm * 1e4
        length_px = 100.0 / pitch_um * math.sqrt(1 - cosine**2) / cosine
        angle = rng.uniform(0, 2 * math.pi)
        electrons = 80.0 * 100.0 / cosine * rng.gamma(8.0, 1 / 8.0)
        n = max(2, round(4 * length_px))
        along = np.linspace(0, length_px, n)
        # Charge diffuses by about a third of a pixel on its way to the gates.
        x = rng.uniform(0, nx) + along * math.cos(angle) + rng.normal(0, 0.3, n)
        y = rng.uniform(0, ny) + along * math.sin(angle) + rng.normal(0, 0.3, n)
        points.append(np.stack([x, y, np.full(n, electrons / n)], -1))
    return np.concatenate(points).astype(np.float32) if points else np.empty((0, 3), np.float32)
