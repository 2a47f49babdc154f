"""The sky of simulated pairs: stars, galaxies, and what changes between the two images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.wcs import Wcs
from apflow.simulate.optics import psf_image
from apflow.simulate.scene import PsfField, draw_galaxies, draw_points

F8 = NDArray[np.float64]

SCALE_ARCSEC = 0.2
#: Electrons in 30 s for 1 nJy in r, of the sky a pixel, and of the read noise.
ELECTRONS, SKY, READ_NOISE = 1.82, 877.0, 6.0
#: Magnitude of 1 nJy and of S/N 5.
NJY_MAG, DEPTH = 31.4, 24.5
#: Noise power of the science image over the template's.
DEEPER = 3.0
#: Transients lie one each in boxes of this side, pixels, this far from the box's rim.
BOX_PX, RIM_PX = 56, 12
#: S/N of the transients, in turn.
SNRS = (5.0, 7.0, 10.0) * 4 + (40.0,)
#: Stars of this S/N and more keep transients off: nobody finds a faint one on them.
BRIGHT_SNR = 100.0


@dataclass(frozen=True)
class Kind:
    """What makes a kind of pair: template FWHM over science FWHM, objects a square arcminute, sky gradient."""

    template_fwhm: float = 0.8
    stars: float = 10.0
    galaxies: float = 24.0
    galaxies_from: float = DEPTH - 6.0  # brightest, mag
    bright: int = 0  # saturated stars put in
    steepness: float = 1.0  # density of stars at the right edge over that at the left
    sky_gradient: float = 0.02
    least_stars: int = 0  # so many stars, no more, all of them bright


KINDS = {
    "sharper": Kind(),
    "equal": Kind(template_fwhm=1.0),
    "worse": Kind(template_fwhm=1.25),
    "few": Kind(galaxies_from=DEPTH - 1.5, least_stars=12),
    "crowded": Kind(stars=100.0),
    "galactic": Kind(stars=60.0, steepness=6.0, sky_gradient=0.08),
    "saturated": Kind(bright=12),
}


def _area(size: int) -> float:
    return float(((size + 80) * SCALE_ARCSEC / 60) ** 2)


def njy(mag: F8) -> F8:
    """Fluxes of AB magnitudes."""
    return np.asarray(10 ** (0.4 * (NJY_MAG - mag)))


def _places(n: int, size: int, rng: np.random.Generator) -> F8:
    return rng.uniform(-40, size + 40, (2, n))


def make_stars(settings: Kind, size: int, rng: np.random.Generator) -> pd.DataFrame:
    """log N rises by 0.4 a magnitude down to 5 mag above the depth, then by 0.12."""
    n = rng.poisson(settings.stars * _area(size))
    grid = np.linspace(DEPTH - 12.0, DEPTH + 0.3, 400)
    cumulative = np.cumsum(10 ** (np.where(grid < DEPTH - 5, 0.4, 0.12) * (grid - DEPTH + 5)))
    mag = np.interp(rng.uniform(0, 1, n), cumulative / cumulative[-1], grid)
    if settings.least_stars:
        mag = rng.uniform(DEPTH - 6.5, DEPTH - 3.5, settings.least_stars)
    mag = np.append(mag, rng.uniform(DEPTH - 11.5, DEPTH - 9.0, settings.bright))
    x, y = _places(len(mag), size, rng)
    if settings.least_stars:
        x, y = np.clip(x, 45, size - 45), np.clip(y, 45, size - 45)
    if settings.steepness > 1:
        u, slope = rng.uniform(0, 1, len(x)), np.log(settings.steepness)
        x = np.log1p(u * np.expm1(slope)) / slope * (size + 80) - 40
    return pd.DataFrame({"x": x, "y": y, "flux": njy(mag), "kind": "star", "asked": 0.0})


def make_galaxies(settings: Kind, size: int, rng: np.random.Generator) -> pd.DataFrame:
    """log N rises by 0.35 a magnitude; sizes shrink with magnitude; a third are de Vaucouleurs."""
    n = rng.poisson(settings.galaxies * _area(size))
    low, high = (10 ** (0.35 * (m - DEPTH)) for m in (settings.galaxies_from, DEPTH + 0.3))
    mag = DEPTH + np.log10(rng.uniform(low, high, n)) / 0.35
    radius = np.clip(0.4 * 10 ** (-0.13 * (mag - DEPTH)) * rng.lognormal(0.0, 0.25, n), 0.15, 4.0)
    ellipticity, angle = np.minimum(0.7, rng.rayleigh(0.25, n)), rng.uniform(0, 2 * np.pi, n)
    x, y = _places(n, size, rng)
    profile = np.where(rng.uniform(size=n) < 0.33, "devaucouleurs", "exponential")
    e1, e2 = ellipticity * np.cos(angle), ellipticity * np.sin(angle)
    return pd.DataFrame({"x": x, "y": y, "flux": njy(mag), "kind": profile, "radius": radius, "e1": e1, "e2": e2})


def with_changes(
    stars: pd.DataFrame,
    galaxies: pd.DataFrame,
    fields: tuple[PsfField, PsfField],
    wcs: Wcs,
    size: int,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points with their flux in both images (flux, template_flux), and galaxies, some of them moved to be hosts."""
    points = stars.assign(template_flux=stars["flux"])
    x, y = _boxes(stars, size, rng)
    asked = rng.permutation(np.resize(SNRS, len(x)))
    hosted = rng.permutation(len(x))[: min(len(x) // 2, len(galaxies))]
    galaxies = galaxies.copy()
    offset = 0.5 * galaxies["radius"].to_numpy()[: len(hosted)] / SCALE_ARCSEC * rng.normal(size=(2, len(hosted)))
    for name, place, off in (("x", x, offset[0]), ("y", y, offset[1])):
        galaxies[name] = np.concatenate([place[hosted] + off, galaxies[name].to_numpy()[len(hosted) :]])
    light = np.zeros((size, size), np.float32)
    draw_galaxies(light, fields[0], wcs, on_sky(galaxies, wcs), 1.0, 0.01)
    draw_points(light, fields[0], stars["x"].to_numpy(), stars["y"].to_numpy(), stars["flux"].to_numpy(), 0.01)
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    flux = np.array([_flux_of(*row, fields) for row in zip(x, y, asked, light[iy, ix], strict=True)])
    kind = np.full(len(x), "transient", object)
    kind[hosted] = "hosted"
    new = pd.DataFrame({"x": x, "y": y, "flux": flux, "kind": kind, "asked": asked, "template_flux": 0.0})
    return pd.concat([_variables(points, new, rng), new], ignore_index=True), galaxies


def _boxes(stars: pd.DataFrame, size: int, rng: np.random.Generator) -> tuple[F8, F8]:
    """Places of transients, each in a box of its own and off bright stars."""
    side = size // BOX_PX
    corner = (size - side * BOX_PX) / 2 + BOX_PX * np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)
    places = corner.reshape(-1, 2) + rng.uniform(RIM_PX, BOX_PX - RIM_PX, (side * side, 2))
    bright = stars[stars["flux"] > BRIGHT_SNR / 5 * njy(np.array(DEPTH))]
    for _ in range(20):
        reach = 10 * np.maximum(1, bright["flux"].to_numpy() / njy(np.array(DEPTH - 7.0))) ** 0.33
        gap = np.hypot(*(places[:, k, None] - bright[c].to_numpy() for k, c in enumerate("xy"))) - reach
        near = (gap < 0).any(1)
        places[near] = corner.reshape(-1, 2)[near] + rng.uniform(RIM_PX, BOX_PX - RIM_PX, (int(near.sum()), 2))
    return places[:, 0], places[:, 1]


def _variables(points: pd.DataFrame, new: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """One star in ten of S/N 20 to 1000 has another flux now, by S/N 8 to 60, unless a transient is near."""
    points = points.copy()
    unit = float(njy(np.array(DEPTH))) / 5
    snr = points["flux"].to_numpy() / unit
    gap = np.hypot(*(points[c].to_numpy()[:, None] - new[c].to_numpy() for c in "xy")).min(1)
    chosen = (snr > 20) & (snr < 1000) & (gap > 20) & (rng.uniform(size=len(points)) < 0.1)
    change = unit * np.exp(rng.uniform(np.log(8), np.log(60), len(points))) * rng.choice([-1.0, 1.0], len(points))
    change = np.maximum(change, -0.8 * points["flux"])
    points.loc[chosen, "flux"] += change[chosen]
    points.loc[chosen, "kind"] = "variable"
    return points


def _flux_of(x: float, y: float, snr: float, light: float, fields: tuple[PsfField, PsfField]) -> float:
    """Flux (nJy) of a point that an ideal difference shows at a S/N."""
    noise = (SKY + READ_NOISE**2) / ELECTRONS**2 + light / ELECTRONS
    shapes = [[float(v) for v in field.at(x, y)] for field in fields]
    science, template = (psf_image(fwhm, e1, e2, 51) for fwhm, e1, e2 in shapes)
    flux = snr / ideal_snr(science, template, noise, noise / DEEPER)
    # Its own photons add to the noise under it.
    own = float((science**3).sum() / (science**2).sum()) / ELECTRONS
    return float(flux * np.sqrt(1 + own * flux / (noise * (1 + 1 / DEEPER))))


def ideal_snr(science_psf: F8, template_psf: F8, science_noise: float, template_noise: float) -> float:
    """S/N of a point of unit flux in the best difference that two images allow (Zackay, Ofek & Gal-Yam 2016).

    Parameters
    ----------
    science_psf, template_psf : `numpy.ndarray`, (k, k)
    science_noise, template_noise : `float`
        Variances a pixel, white noise.
    """
    n = 2 ** int(np.ceil(np.log2(max(len(science_psf), len(template_psf)))))
    a, b = (np.abs(np.fft.fft2(p, (n, n))) ** 2 for p in (science_psf, template_psf))
    return float(np.sqrt((a * b / (science_noise * b + template_noise * a + 1e-12 * science_noise)).mean()))


def on_sky(objects: pd.DataFrame, wcs: Wcs) -> pd.DataFrame:
    """With the columns ra and dec of their places on a grid."""
    ra, dec = wcs.pixel_to_sky(objects["x"].to_numpy(), objects["y"].to_numpy())
    return objects.assign(ra=ra, dec=dec)
