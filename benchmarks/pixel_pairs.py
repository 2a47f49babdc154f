"""Simulated pairs of images of which every change is known.

A pair is what the pipeline has before it subtracts: sky-subtracted images in nJy on one grid, the template resampled
by the pipeline's own warp, PSFs and zero points measured on the images. Nothing that reaches a subtraction knows the
truth. Sky, noise and PSFs are those of LSST's r band in 30 s; what differs from kind to kind is `KINDS`.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pixel_sky import (
    DEEPER,
    DEPTH,
    ELECTRONS,
    KINDS,
    READ_NOISE,
    SCALE_ARCSEC,
    SKY,
    Kind,
    make_galaxies,
    make_stars,
    njy,
    on_sky,
    with_changes,
)
from scipy.spatial import cKDTree

from apflow.model.exposure import Exposure, ImageInfo, Mask
from apflow.model.psf import Psf
from apflow.model.wcs import Wcs
from apflow.pixels.background import subtract_background
from apflow.pixels.convolve import grow
from apflow.pixels.point_sources import fit_point_sources
from apflow.pixels.psf import fit_psf
from apflow.pixels.stars import find_stars, stellar_locus
from apflow.pixels.template import assembled_psf
from apflow.pixels.warp import warp
from apflow.simulate.draw import bleed
from apflow.simulate.scene import PsfField, draw_galaxies, draw_points

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Electrons at which a pixel is full.
FULL_WELL = 1.2e5
FWHM_PX = 4.2
#: FWHM of the visits of which the template consists, over its mean.
VISITS = (0.9, 1.0, 1.1)
#: Errors of registration, pixels: of low order over the image, and on the scale of the atmosphere's turns.
SMOOTH_PX, TURBULENT_PX = 0.035, 0.035
#: A constant star has no change this near.
APART_PX = 16.0
INFO = ImageInfo("LSSTCam", 94, 2025042000123, "g", 0, "r_57", "r", 150.0, 2.0, 0.0, 30.0, 60785.1, 60785.1003)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images of one sky on one grid, and what is different.

    Attributes
    ----------
    name : `str`
    science, template : `Exposure`
        In nJy, with masks and measured PSFs.
    truth : `pandas.DataFrame`
        x, y (px), flux (nJy, of the change), snr (that an ideal matched filter has), kind ("transient", "hosted",
        "variable") and asked, the S/N that it was made for: 0 for variables, and for what is near a masked pixel or
        the border and does not count for completeness.
    constant : `pandas.DataFrame`
        x, y, snr (of the science image) of the unsaturated stars that did not change, nor anything near them.
    """

    name: str
    science: Exposure
    template: Exposure
    truth: pd.DataFrame
    constant: pd.DataFrame


def simulated_pair(kind: str, seed: int, size: int = 1024) -> Pair:
    """A pair of a kind of `KINDS`."""
    settings = KINDS[kind]
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    grid = _wcs(size)
    native = _wcs(size + 2 * round(0.08 * size) + 80, 7.0, (0.31, -0.22))
    stars, galaxies = make_stars(settings, size, rng), make_galaxies(settings, size, rng)
    fields = _psf_field(FWHM_PX, size, rng), _psf_field(FWHM_PX * settings.template_fwhm, size, rng)
    points, galaxies = with_changes(stars, galaxies, fields, grid, size, rng)
    science = _science(points, galaxies, grid, fields[0], settings, size, rng)
    template = _template(points, galaxies, grid, native, fields[1], size, rng)
    science = _calibrated(science, points, "flux")
    return _pair(f"{kind}-{seed}", science, template, points)


def _wcs(size: int, rotation_deg: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> Wcs:
    t = np.radians(rotation_deg)
    turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    middle = (size - 1) / 2 + shift[0], (size - 1) / 2 + shift[1]
    return Wcs((150.0, 2.0), middle, SCALE_ARCSEC / 3600 * turn @ np.diag([-1.0, 1.0]))


def _psf_field(fwhm_px: float, size: int, rng: np.random.Generator) -> PsfField:
    """FWHM and ellipticity that vary over the image by a few per cent, up to second order."""
    wide = 0.02 * rng.uniform(-1, 1, 5)
    shapes = 0.015 * rng.uniform(-1, 1, (2, 3))

    def at(x: ArrayLike, y: ArrayLike) -> tuple[F8, F8, F8]:
        u, v = 2 * np.asarray(x, float) / size - 1, 2 * np.asarray(y, float) / size - 1
        fwhm = fwhm_px * (1 + wide[0] * u + wide[1] * v + wide[2] * u * u + wide[3] * u * v + wide[4] * v * v)
        e1, e2 = (s[0] + s[1] * u + s[2] * v for s in shapes)
        return fwhm, e1, e2

    return PsfField(at)


def _science(
    points: pd.DataFrame,
    galaxies: pd.DataFrame,
    wcs: Wcs,
    field: PsfField,
    settings: Kind,
    size: int,
    rng: np.random.Generator,
) -> Exposure:
    """The visit: sky, photon and read noise, saturation and bleeding; the sky is then subtracted."""
    expected = np.zeros((size, size), np.float32)
    x, y, flux = (points[c].to_numpy() for c in ("x", "y", "flux"))
    draw_points(expected, field, x, y, flux, 0.02)
    draw_galaxies(expected, field, wcs, on_sky(galaxies, wcs), 1.0, 0.02)
    expected *= np.float32(ELECTRONS)
    v, u = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    expected += np.float32(SKY) * (1 + np.float32(settings.sky_gradient) * (0.8 * u + 0.4 * v + 0.3 * u * v))
    electrons = rng.poisson(expected).astype(np.float32)
    bleed(electrons, FULL_WELL, 0, size)
    full = electrons >= 0.999 * FULL_WELL
    electrons += rng.normal(0, READ_NOISE, electrons.shape).astype(np.float32)
    mask = np.where(grow(full, 1), np.int32(Mask.SAT), np.int32(0))
    image, variance = electrons / ELECTRONS, (np.maximum(electrons, 0) + READ_NOISE**2) / ELECTRONS**2
    exposure = Exposure(image.astype(np.float32), variance.astype(np.float32), mask, "nJy", wcs, None, INFO)
    return subtract_background(exposure)[0]


def _template(
    points: pd.DataFrame,
    galaxies: pd.DataFrame,
    grid: Wcs,
    native: Wcs,
    field: PsfField,
    size: int,
    rng: np.random.Generator,
) -> Exposure:
    """The coadd of some visits on its own grid, calibrated there and warped with errors of registration."""
    side = round(2 * native.crpix[0] + 1)
    turned = PsfField(lambda x, y: field.at(*grid.sky_to_pixel(*native.pixel_to_sky(x, y))))
    shift = _registration_error(size, rng)
    points, galaxies = (_moved(on_sky(t, grid), native, shift) for t in (points, galaxies))
    light = np.zeros((side, side), np.float32)
    x, y, flux = (points[c].to_numpy() for c in ("x", "y", "template_flux"))
    for ratio in VISITS:
        visit = _widened(turned, ratio)
        draw_points(light, visit, x, y, flux, 0.01)
        draw_galaxies(light, visit, native, galaxies, 1.0, 0.01)
    light /= np.float32(len(VISITS))
    full = light >= (FULL_WELL - SKY) / ELECTRONS
    variance = ((light + SKY / ELECTRONS + READ_NOISE**2 / ELECTRONS) / (ELECTRONS * DEEPER)).astype(np.float32)
    image = light + np.sqrt(variance) * rng.standard_normal(light.shape, np.float32)
    np.minimum(image, np.float32((FULL_WELL - SKY) / ELECTRONS), out=image)
    mask = np.where(grow(full, 1), np.int32(Mask.SAT), np.int32(0))
    exposure = subtract_background(Exposure(image, variance, mask, "nJy", native, None))[0]
    exposure = _calibrated(exposure, points, "template_flux")
    warped = warp(exposure, grid, (size, size))
    return dataclasses.replace(warped, psf=assembled_psf([exposure], grid, (size, size)))


def _widened(field: PsfField, ratio: float) -> PsfField:
    def at(x: ArrayLike, y: ArrayLike) -> tuple[F8, F8, F8]:
        fwhm, e1, e2 = field.at(x, y)
        return ratio * fwhm, e1, e2

    return PsfField(at)


def _moved(objects: pd.DataFrame, wcs: Wcs, shift: F8) -> pd.DataFrame:
    """Objects at their places on another grid, off by the error of registration there."""
    x, y = wcs.sky_to_pixel(objects["ra"].to_numpy(), objects["dec"].to_numpy())
    phase = shift[:, 0, None] * x + shift[:, 1, None] * y + shift[:, 2, None]
    x, y = (c + (shift[:, k, None] * np.sin(phase)).sum(0) for k, c in ((3, x), (4, y)))
    ra, dec = wcs.pixel_to_sky(x, y)
    return objects.assign(x=x, y=y, ra=ra, dec=dec)


def _registration_error(size: int, rng: np.random.Generator) -> F8:
    """Waves (n, 5): wave numbers along x and y, phase, amplitudes in x and y, pixels."""
    waves = []
    for n, low, high, rms in ((6, 3.0 * size, 6.0 * size, SMOOTH_PX), (40, 200.0, 800.0, TURBULENT_PX)):
        length, angle = np.exp(rng.uniform(np.log(low), np.log(high), n)), rng.uniform(0, 2 * np.pi, n)
        amplitude = rms / np.sqrt(n) * rng.normal(size=(2, n))
        k = 2 * np.pi / length
        waves.append(np.stack([k * np.cos(angle), k * np.sin(angle), rng.uniform(0, 2 * np.pi, n), *amplitude], -1))
    return np.concatenate(waves)


def _calibrated(exposure: Exposure, points: pd.DataFrame, column: str) -> Exposure:
    """With its PSF, and the zero point at which the PSF fluxes of its stars are what a catalogue says."""
    found = find_stars(exposure)
    psf: Psf = fit_psf(exposure, found[stellar_locus(found)][:300])
    ny, nx = exposure.shape
    stars = points[(points["kind"] == "star") & (points[column] > 8 * njy(np.array(DEPTH)))]
    stars = stars[stars["x"].between(30, nx - 31) & stars["y"].between(30, ny - 31) & _alone(stars, points, column)]
    x, y = stars["x"].to_numpy(), stars["y"].to_numpy()
    full = grow((exposure.mask & Mask.SAT) != 0, 20)[np.rint(y).astype(int), np.rint(x).astype(int)]
    measured = fit_point_sources(exposure, psf, x[~full], y[~full])
    ratio = np.float32(np.nanmedian(measured["flux"].to_numpy() / stars[column].to_numpy()[~full]))
    return dataclasses.replace(exposure, image=exposure.image / ratio, variance=exposure.variance / ratio**2, psf=psf)


def _alone(stars: pd.DataFrame, points: pd.DataFrame, column: str) -> Bool:
    """Whether all the light within 12 px is the star's own, but for a per cent."""
    near = cKDTree(points[["x", "y"]].to_numpy()).query_ball_point(stars[["x", "y"]].to_numpy(), 12.0)
    flux = points[column].to_numpy()
    return np.array([flux[found].sum() for found in near]) < 1.01 * stars[column].to_numpy()


def _pair(name: str, science: Exposure, template: Exposure, points: pd.DataFrame) -> Pair:
    ny, nx = science.shape
    unit = float(njy(np.array(DEPTH))) / 5
    bad = grow((science.mask | template.mask) != 0, 3)
    x, y = points["x"].to_numpy(), points["y"].to_numpy()
    inside = (x > 30) & (x < nx - 31) & (y > 30) & (y < ny - 31)
    ix, iy = (np.clip(np.rint(c), 0, n - 1).astype(int) for c, n in ((x, nx), (y, ny)))
    clean = inside & ~bad[iy, ix]
    constant = points[clean & (points["kind"] == "star")]
    constant = constant[["x", "y"]].assign(snr=constant["flux"] / unit)
    changed = points[points["kind"] != "star"]
    apart = cKDTree(changed[["x", "y"]].to_numpy()).query(constant[["x", "y"]].to_numpy())[0] > APART_PX
    change = changed["flux"] - changed["template_flux"]
    asked = np.where(clean[changed.index], changed["asked"], 0.0)
    truth = changed[["x", "y", "kind"]].assign(flux=change, asked=asked)
    truth["snr"] = np.where(changed["asked"] > 0, changed["asked"], np.abs(change) / unit)
    return Pair(name, science, template, truth.reset_index(drop=True), constant[apart].reset_index(drop=True))
