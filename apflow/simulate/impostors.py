"""Pairs of images full of real changes and of all that looks like one: what reliability is learned from.

Scenes are made in pixels and sigma: FWHM from undersampled to broad, sky from dark to bright, templates better and
worse than the science image, so that nothing of one camera is learned. PSFs are measured on the images, as always.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.exposure import Exposure, ImageInfo, Mask
from apflow.model.wcs import Wcs
from apflow.pixels.convolve import grow
from apflow.pixels.interpolate import interpolate
from apflow.pixels.psf import fit_psf
from apflow.pixels.stars import find_stars, stellar_locus
from apflow.simulate.artefacts import deface_science, deface_template
from apflow.simulate.draw import bleed, draw
from apflow.simulate.optics import NEFF, moffat, shear
from apflow.simulate.scene import PsfField, draw_points, trail_points

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]

_FULL_WELL = 1e5
_INFO = ImageInfo("LSSTCam", 94, 2025042000123, "g", 0, "r_57", "r", 150.0, 2.0, 0.0, 30.0, 60785.1, 60785.1003)
#: Kinds of changes, and how many of each there are.
KINDS = {"transient": 0.3, "faded": 0.1, "variable": 0.25, "hosted": 0.25, "mover": 0.1}


@dataclass(frozen=True)
class Conditions:
    """How a pair was taken.

    Attributes
    ----------
    size : `int`
        Side of the images, pixels.
    fwhm_px, template_fwhm : `float`
        FWHM of the science image, and of the template over that.
    sky : `float`
        Electrons a pixel in the science image.
    depth : `float`
        Noise power of the science image over the template's.
    misplaced, jitter : `float`
        RMS error of registration, FWHM: in waves over the image, and from star to star.
    psf_error : `float`
        By how much the PSF that the pipeline takes for true is too broad.
    dirt : `float`
        Amount of artefacts; 1 is as many as there are changes.
    """

    size: int
    fwhm_px: float
    template_fwhm: float
    sky: float
    depth: float
    misplaced: float
    jitter: float
    psf_error: float
    dirt: float


@dataclass(frozen=True, eq=False)
class Scene:
    """A pair of images on one grid; `truth` has x, y (px), length (px) and angle (rad) of trails, and the S/N."""

    conditions: Conditions
    science: Exposure
    template: Exposure
    truth: pd.DataFrame


def draw_conditions(rng: np.random.Generator, size: int) -> Conditions:
    """Conditions as varied as those of all telescopes together."""
    good = rng.random() < 0.5
    return Conditions(
        size=size,
        fwhm_px=float(np.exp(rng.uniform(np.log(1.9), np.log(6.0)))),
        template_fwhm=float(rng.uniform(0.7, 1.25)),
        sky=float(10 ** rng.uniform(1.7, 3.7)),
        depth=float(10 ** rng.uniform(0.0, 1.2)),
        misplaced=float(rng.uniform(0.003, 0.012) if good else np.exp(rng.uniform(np.log(0.012), np.log(0.07)))),
        jitter=float(rng.uniform(0.0, 0.01) if good else rng.uniform(0.0, 0.04)),
        psf_error=float(rng.choice([0.0, 0.0, 1.0]) * rng.normal(0.0, 0.04)),
        dirt=float(rng.uniform(0.2, 1.5)),
    )


def make_scene(conditions: Conditions, rng: np.random.Generator) -> Scene:
    """A pair of images with changes and artefacts."""
    c, size = conditions, conditions.size
    fields = _field(c.fwhm_px, size, rng), _field(max(1.7, c.fwhm_px * c.template_fwhm), size, rng)
    unit = np.sqrt(NEFF * c.fwhm_px**2 * c.sky * (1 + 1 / c.depth))
    stars, galaxies = _stars(size, unit, rng), _galaxies(size, unit, c.fwhm_px, rng)
    changes = _changes(stars, galaxies, c, unit, rng)
    light = [np.zeros((size, size), np.float32) for _ in fields]
    moved = _registration_error(c, rng)
    for image, field, column, shift in zip(light, fields, ("flux", "template_flux"), (None, moved), strict=True):
        points = pd.concat([stars, changes[changes["length"] == 0]], ignore_index=True)
        x, y = shift(points) if shift else (points["x"].to_numpy(), points["y"].to_numpy())
        draw_points(image, field, x, y, points[column].to_numpy(), 0.003 * np.sqrt(c.sky))
        if shift is None:
            _draw_trails(image, field, changes[changes["length"] > 0], 0.003 * np.sqrt(c.sky))
        _draw_galaxies(image, field, galaxies, 0.003 * np.sqrt(c.sky))
    science = _exposure(light[0], c.sky, 1.0, rng, lambda image, mask: deface_science(image, mask, c, rng))
    template = _exposure(light[1], c.sky, c.depth, rng, lambda image, mask: deface_template(image, mask, c, rng))
    science, template = _with_psf(science), _with_psf(template)
    assert science.psf is not None
    if c.psf_error:
        science = dataclasses.replace(science, psf=_broadened(science, c.psf_error))
    truth = changes[["x", "y", "length", "angle", "snr", "kind"]].reset_index(drop=True)
    return Scene(c, science, template, truth)


def _field(fwhm_px: float, size: int, rng: np.random.Generator) -> PsfField:
    """A PSF that varies by a few per cent over the image."""
    wide, shape, slope = 0.02 * rng.uniform(-1, 1, 3), 0.04 * rng.normal(size=2), 0.015 * rng.uniform(-1, 1, (2, 2))

    def at(x: NDArray[np.float64] | float, y: NDArray[np.float64] | float) -> tuple[F8, F8, F8]:
        u, v = 2 * np.asarray(x, float) / size - 1, 2 * np.asarray(y, float) / size - 1
        fwhm = fwhm_px * (1 + wide[0] * u + wide[1] * v + wide[2] * u * v)
        e1, e2 = (s + k[0] * u + k[1] * v for s, k in zip(shape, slope, strict=True))
        return fwhm, e1, e2

    return PsfField(at)  # type: ignore[arg-type]


def _stars(size: int, unit: float, rng: np.random.Generator) -> pd.DataFrame:
    """Stars of S/N 3 to 1e5 and a number of them that can serve for the PSF."""
    n, useful = rng.integers(60, 500), rng.integers(25, 60)
    snr = np.append(np.minimum(3 * rng.random(n) ** (-1 / rng.uniform(0.5, 0.9)), 1e5), rng.uniform(60, 400, useful))
    x, y = rng.uniform(-15, size + 15, (2, len(snr)))
    flux = snr * unit
    return pd.DataFrame({"x": x, "y": y, "flux": flux, "template_flux": flux})


def _galaxies(size: int, unit: float, fwhm_px: float, rng: np.random.Generator) -> pd.DataFrame:
    """Galaxies of S/N 5 to 1000, each a bulge in a disk."""
    n = rng.integers(20, 150)
    snr = np.minimum(5 * rng.random(n) ** -0.8, 1000)
    radius = fwhm_px * rng.lognormal(-0.4, 0.5, n) * (snr / 30) ** 0.25
    return pd.DataFrame(
        {
            "x": rng.uniform(0, size, n),
            "y": rng.uniform(0, size, n),
            "flux": snr * unit * np.maximum(1.0, radius / fwhm_px),
            "radius": radius,
            "bulge": rng.uniform(0, 0.6, n),
            "e1": np.clip(0.25 * rng.normal(size=n), -0.6, 0.6),
            "e2": np.clip(0.25 * rng.normal(size=n), -0.6, 0.6),
        }
    )


def _changes(
    stars: pd.DataFrame, galaxies: pd.DataFrame, c: Conditions, unit: float, rng: np.random.Generator
) -> pd.DataFrame:
    """One change in each of many boxes: nothing else that is real is near."""
    box = max(9 * c.fwhm_px, 24.0)
    side = int((c.size - 16) // box)
    chosen = np.sort(rng.permutation(side * side)[:90])
    n = len(chosen)
    place = 8 + box * (np.stack([chosen % side, chosen // side]) + rng.uniform(0.15, 0.85, (2, n)))
    kind = rng.choice(list(KINDS), n, p=list(KINDS.values()))
    snr = np.exp(rng.uniform(np.log(4.5), np.log(9.0), n) + rng.exponential(0.7, n) * (rng.random(n) < 0.6))
    host = rng.integers(0, len(galaxies), n)
    spread = 0.5 * galaxies["radius"].to_numpy()[host] * rng.normal(size=(2, n))
    # The host comes to its transient, which stays in its box.
    hosted = kind == "hosted"
    galaxies.loc[host[hosted], ["x", "y"]] = (place + spread)[:, hosted].T
    near = np.hypot(place[0] - galaxies["x"].to_numpy()[host], place[1] - galaxies["y"].to_numpy()[host])
    radius = galaxies["radius"].to_numpy()[host]
    glow = galaxies["flux"].to_numpy()[host] * np.exp(-0.5 * (near / radius) ** 2) / (2 * np.pi * radius**2)
    change = snr * unit * np.sqrt(1 + np.where(hosted, glow / c.sky, 0.0))
    rest = np.exp(rng.uniform(np.log(0.5), np.log(20.0), n)) * change
    change = np.where(kind == "variable", snr * np.sqrt(unit**2 + rest), change)
    base = np.select([kind == "variable", kind == "faded"], [rest, 0.0], 0.0)
    down = (kind == "faded") | ((kind == "variable") & (rng.random(n) < 0.5))
    moving = (kind == "mover") & (rng.random(n) < 0.6)
    return pd.DataFrame(
        {
            "x": place[0],
            "y": place[1],
            "flux": base + np.where(down, 0.0, change),
            "template_flux": base + np.where(down, change, 0.0),
            "length": np.where(moving, c.fwhm_px * rng.uniform(0.1, 1.5, n), 0.0),
            "angle": rng.uniform(0, np.pi, n),
            "snr": snr,
            "kind": kind,
        }
    )


def _registration_error(c: Conditions, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    """A function that gives the places of points in the template."""
    waves = 30
    length = np.exp(rng.uniform(np.log(12 * c.fwhm_px), np.log(80 * c.fwhm_px), waves))
    angle, phase = rng.uniform(0, 2 * np.pi, (2, waves))
    amplitude = c.misplaced * c.fwhm_px * np.sqrt(2 / waves) * rng.normal(size=(2, waves))

    def moved(points: pd.DataFrame) -> tuple[F8, F8]:
        x, y = points["x"].to_numpy(), points["y"].to_numpy()
        wave = np.sin(2 * np.pi / length * (np.cos(angle) * x[:, None] + np.sin(angle) * y[:, None]) + phase)
        own = c.jitter * c.fwhm_px * rng.normal(size=(2, len(x)))
        return x + wave @ amplitude[0] + own[0], y + wave @ amplitude[1] + own[1]

    return moved


def _draw_trails(image: F4, field: PsfField, trails: pd.DataFrame, floor: float) -> None:
    if not len(trails):
        return
    half = np.stack([np.cos(trails["angle"]), np.sin(trails["angle"])]) * trails["length"].to_numpy() / 2
    x, y = trails["x"].to_numpy(), trails["y"].to_numpy()
    ends = x - half[0], y - half[1], x + half[0], y + half[1]
    draw_points(image, field, *trail_points(*ends, trails["flux"].to_numpy()), floor / 4)


def _draw_galaxies(image: F4, field: PsfField, galaxies: pd.DataFrame, floor: float) -> None:
    """Two Gaussians each, convolved with the PSF."""
    x, y = galaxies["x"].to_numpy(), galaxies["y"].to_numpy()
    weights, psf = moffat()[0], field.covariances(x, y)
    shape = shear(galaxies["e1"], galaxies["e2"])[:, None] * (galaxies["radius"].to_numpy() ** 2)[:, None, None, None]
    parts, covariances = [], []
    for share, size in ((galaxies["bulge"], 0.3), (1 - galaxies["bulge"], 1.0)):
        parts.append((share * galaxies["flux"]).to_numpy()[:, None] * weights)
        covariances.append(psf + size**2 * shape)
    total = np.concatenate(covariances, 1)
    packed = np.stack([total[..., 0, 0], total[..., 0, 1], total[..., 1, 1]], -1)
    draw(image, x, y, np.concatenate(parts, 1), packed, floor)


def _exposure(light: F4, sky: float, depth: float, rng: np.random.Generator, deface) -> Exposure:  # type: ignore[no-untyped-def]
    """Photon noise, saturation, artefacts; `depth` is that of a stack over one image's."""
    expected = light + np.float32(sky)
    noise = np.sqrt(expected / depth, dtype=np.float32)
    electrons = expected + noise * rng.standard_normal(light.shape, np.float32)
    well = _FULL_WELL + sky
    bleed(electrons, well, 0, light.shape[0])
    full = electrons >= 0.999 * well
    mask = np.where(grow(full, int(rng.integers(0, 3))), np.int32(Mask.SAT), np.int32(0))
    image = electrons - np.float32(sky)
    image, mask = deface(image, mask)
    scatter = np.float32(rng.uniform(0.85, 1.2))
    variance = scatter * np.maximum(image + np.float32(sky), np.float32(0.5 * sky)) / np.float32(depth)
    size = light.shape[0]
    wcs = Wcs((150.0, 2.0), ((size - 1) / 2, (size - 1) / 2), 0.2 / 3600 * np.diag([-1.0, 1.0]))
    found = int(Mask.CR | Mask.BAD)
    filled = interpolate(image, mask, found)
    mask = np.where(mask & found, mask | np.int32(Mask.INTRP), mask)
    return Exposure(filled, variance.astype(np.float32), mask, "nJy", wcs, None, _INFO)


def _with_psf(exposure: Exposure) -> Exposure:
    found = find_stars(exposure)
    return dataclasses.replace(exposure, psf=fit_psf(exposure, found[stellar_locus(found)][:200]))


def _broadened(exposure: Exposure, error: float):  # type: ignore[no-untyped-def]
    """The PSF of an exposure, stretched about its centre."""
    from scipy.ndimage import affine_transform

    psf = exposure.psf
    assert psf is not None
    half, scale = psf.size // 2, 1 / (1 + error)
    terms = [affine_transform(t, [scale, scale], half * (1 - scale), order=3, mode="nearest") for t in psf.terms]
    return dataclasses.replace(psf, terms=np.stack(terms))
