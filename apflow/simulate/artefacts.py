"""What looks like a change and is none: tracks, defects, ghosts, streaks, ripples and borders."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from apflow.model.exposure import Mask
from apflow.simulate.optics import NEFF

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]


class Taken(Protocol):
    """What of a pair's conditions decides about its artefacts."""

    @property
    def fwhm_px(self) -> float: ...
    @property
    def template_fwhm(self) -> float: ...
    @property
    def sky(self) -> float: ...
    @property
    def depth(self) -> float: ...
    @property
    def dirt(self) -> float: ...


def deface_science(image: F4, mask: I4, taken: Taken, rng: np.random.Generator) -> tuple[F4, I4]:
    """Artefacts of a single visit."""
    sigma = float(np.sqrt(taken.sky))
    image, mask = image.copy(), mask.copy()
    _ghosts(image, sigma, taken, rng)
    if rng.random() < 0.35 * taken.dirt:
        _streak(image, sigma, taken, rng)
    if rng.random() < 0.4 * taken.dirt:
        _ripples(image, sigma, taken, rng)
    if rng.random() < 0.3:
        _step(image, sigma, taken, rng)
    _hot_pixels(image, mask, sigma, rng.poisson(12 * taken.dirt), rng)
    _columns(image, mask, sigma, rng.poisson(1.5 * taken.dirt), rng)
    _tracks(image, mask, sigma, rng.poisson(22 * taken.dirt), 0.3, rng)
    return image, mask


def deface_template(image: F4, mask: I4, taken: Taken, rng: np.random.Generator) -> tuple[F4, I4]:
    """Artefacts that a stack of visits still has, and the border of what it covers."""
    sigma = float(np.sqrt(taken.sky / taken.depth))
    image, mask = image.copy(), mask.copy()
    _tracks(image, mask, sigma, rng.poisson(8 * taken.dirt), 0.2, rng)
    _hot_pixels(image, mask, sigma, rng.poisson(4 * taken.dirt), rng)
    _columns(image, mask, sigma, rng.poisson(0.5 * taken.dirt), rng)
    if rng.random() < 0.4:
        _border(image, mask, sigma, rng)
    return image, mask


def _tracks(image: F4, mask: I4, sigma: float, n: int, found: float, rng: np.random.Generator) -> None:
    """Cosmic rays; of those that were `found` the brightest pixels are masked."""
    ny, nx = image.shape
    for _ in range(n):
        x, y, angle = rng.uniform(0, nx), rng.uniform(0, ny), rng.uniform(0, 2 * np.pi)
        length = rng.exponential(4.0) if rng.random() < 0.5 else 0.0
        points = max(1, round(4 * length))
        along = np.linspace(0, length, points)
        charge = sigma * 10 ** rng.uniform(0.7, 2.2) * max(1.0, length) / points
        px = x + along * np.cos(angle) + rng.normal(0, 0.3, points)
        py = y + along * np.sin(angle) + rng.normal(0, 0.3, points)
        ix, iy = np.rint(px).astype(int), np.rint(py).astype(int)
        ok = (ix >= 0) & (ix < nx) & (iy >= 0) & (iy < ny)
        spread = rng.uniform(0.15, 0.45)
        _deposit(image, px[ok], py[ok], charge, spread)
        if rng.random() < found:
            bright = ok.copy()
            bright[ok] = image[iy[ok], ix[ok]] > 10 * sigma
            mask[iy[bright], ix[bright]] |= int(Mask.CR)


def _deposit(image: F4, px: F8, py: F8, charge: float, spread: float) -> None:
    """Charge that diffuses by `spread` pixels."""
    ny, nx = image.shape
    for x, y in zip(px, py, strict=True):
        i, j = round(x), round(y)
        y0, y1, x0, x1 = max(j - 1, 0), min(j + 2, ny), max(i - 1, 0), min(i + 2, nx)
        v, u = np.mgrid[y0:y1, x0:x1]
        blob = np.exp(-0.5 * ((u - x) ** 2 + (v - y) ** 2) / spread**2) + 1e-9
        image[y0:y1, x0:x1] += (charge * blob / blob.sum()).astype(np.float32)


def _hot_pixels(image: F4, mask: I4, sigma: float, n: int, rng: np.random.Generator) -> None:
    """Single pixels, some negative, some known."""
    ny, nx = image.shape
    x, y = rng.integers(0, nx, n), rng.integers(0, ny, n)
    image[y, x] += (sigma * 10 ** rng.uniform(0.8, 2.0, n) * rng.choice([1, 1, 1, -0.3], n)).astype(np.float32)
    known = rng.random(n) < 0.2
    mask[y[known], x[known]] |= int(Mask.BAD)


def _columns(image: F4, mask: I4, sigma: float, n: int, rng: np.random.Generator) -> None:
    """Pieces of columns, one or two wide, some of them masked but for their ends."""
    ny, nx = image.shape
    for _ in range(n):
        x, y, length = rng.integers(1, nx - 2), rng.integers(0, ny), rng.integers(15, ny // 2)
        piece = np.s_[y : y + length, x : x + rng.integers(1, 3)]
        level = sigma * 10 ** rng.uniform(0.2, 1.2) * rng.choice([-1.0, 1.0])
        image[piece] += np.float32(level)
        if rng.random() < 0.3:
            mask[y + 3 : y + length, x] |= int(Mask.BAD)


def _ghosts(image: F4, sigma: float, taken: Taken, rng: np.random.Generator) -> None:
    """Images of saturated stars in other amplifiers: flat disks, some of them holes, with a piece of a trail."""
    ny, nx = image.shape
    v, u = np.mgrid[0:ny, 0:nx]
    for _ in range(rng.poisson(3 * taken.dirt)):
        x, y = rng.uniform(0, nx), rng.uniform(0, ny)
        radius = max(1.0, taken.fwhm_px * rng.uniform(0.4, 2.5))
        # In units of what a matched filter sees.
        level = sigma * rng.uniform(4, 25) / np.sqrt(np.pi * radius**2) * rng.choice([-1.0, 1.0])
        shape = np.hypot(u - x, v - y) < radius
        if rng.random() < 0.5:
            shape |= (np.abs(u - x) < max(0.6, 0.2 * radius)) & (np.abs(v - y) < radius * rng.uniform(1, 6))
        image[shape] += np.float32(level)


def _streak(image: F4, sigma: float, taken: Taken, rng: np.random.Generator) -> None:
    """A satellite's trail from border to border, as broad as the PSF, perhaps flickering."""
    ny, nx = image.shape
    angle, x, y = rng.uniform(0, np.pi), rng.uniform(0, nx), rng.uniform(0, ny)
    v, u = np.mgrid[0:ny, 0:nx].astype(np.float32)
    across = (u - x) * np.sin(angle) - (v - y) * np.cos(angle)
    along = (u - x) * np.cos(angle) + (v - y) * np.sin(angle)
    width = np.hypot(taken.fwhm_px, rng.uniform(0, 3)) / 2.3548
    level = sigma * 10 ** rng.uniform(-0.2, 0.9)
    flicker = np.ones(())
    if rng.random() < 0.4:
        flicker = np.maximum(0, np.sin(2 * np.pi * along / (taken.fwhm_px * rng.uniform(4, 20)) + 1.0)) ** 4
    image += (level * np.exp(-0.5 * (across / width) ** 2) * flicker).astype(np.float32)


def _ripples(image: F4, sigma: float, taken: Taken, rng: np.random.Generator) -> None:
    """A patch of waves that matched peaks of some sigma stand out of."""
    ny, nx = image.shape
    v, u = np.mgrid[0:ny, 0:nx].astype(np.float32)
    length, angle = taken.fwhm_px * rng.uniform(2.5, 12), rng.uniform(0, np.pi)
    level = sigma * rng.uniform(2, 7) / np.sqrt(NEFF * taken.fwhm_px**2)
    bent = rng.uniform(-1, 1) * (u - nx / 2) ** 2 / nx
    wave = np.sin(2 * np.pi / length * (u * np.cos(angle) + v * np.sin(angle) + bent))
    middle, size = rng.uniform(0, nx, 2), rng.uniform(0.1, 0.4) * nx
    patch = np.exp(-0.5 * ((u - middle[0]) ** 2 + (v - middle[1]) ** 2) / size**2)
    image += (level * wave * patch).astype(np.float32)


def _step(image: F4, sigma: float, taken: Taken, rng: np.random.Generator) -> None:
    """A step between amplifiers that the background does not follow."""
    level = sigma * rng.uniform(2, 6) / np.sqrt(NEFF * taken.fwhm_px**2) * rng.choice([-1.0, 1.0])
    at = rng.integers(image.shape[1] // 4, 3 * image.shape[1] // 4)
    reach = rng.integers(8, 60)
    image[:, at : at + reach] += np.linspace(level, 0, reach, dtype=np.float32)[: image.shape[1] - at]


def _border(image: F4, mask: I4, sigma: float, rng: np.random.Generator) -> None:
    """Sky that the template does not cover, beyond a slanting border whose last pixels are wrong."""
    ny, nx = image.shape
    v, u = np.mgrid[0:ny, 0:nx]
    edge = rng.uniform(0.03, 0.2) * nx + rng.uniform(-0.1, 0.1) * v
    turned = rng.integers(0, 4)
    depth = np.rot90(u - edge, turned) if ny == nx else u - edge
    near = (depth >= 0) & (depth < 3)
    image[near] += (sigma * rng.uniform(-4, 4)) * rng.random(int(near.sum())).astype(np.float32)
    image[depth < 0] = 0
    mask[depth < 0] |= int(Mask.NO_DATA)
