"""Fakes in a science image: point sources whose truth is known.

As Rubin's source_injection has it: the light of the local PSF with its photon
noise goes into the image, that of its photons into the variance, and the mask
tells which pixels were touched. All follows from the generator that is given.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.pixels.forced import forced_flux, shift_psf
from apflow.pixels.planes import unusable
from apflow.pixels.stars import find_stars, stellar_locus
from apflow.pixels.warp import TABLE

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: nJy of AB magnitude 0, as a magnitude (Oke & Gunn 1983).
_NJY_MAG = 31.4
#: Fakes keep this far from the border, and their cores from unusable pixels, px.
_BORDER_PX, _CORE_PX = 8, 2
#: Fakes keep this many FWHM from one another: each is measured by itself.
_APART_FWHM = 4.0
#: Part of the fakes that is put on galaxies, as transients are; the others lie anywhere.
_HOSTED = 0.4
#: A host: so bright, and by so much wider than the stars.
_HOST_SNR, _HOST_WIDTH = 10.0, 1.15
#: Places that are tried for each fake before it is given up.
_TRIES = 50
_COLUMNS = ("injectionId", "kind", "ra", "dec", "x", "y", "mag", "flux_njy", "science_snr", "good")


def place_fakes(exposure: Exposure, n: int, mag_min: float, mag_max: float, rng: np.random.Generator) -> pd.DataFrame:
    """Choose where fakes go, and how bright they are.

    A part (0.4) goes on galaxies that the image shows, spread like their
    light; the others anywhere. None comes near unusable pixels or another fake.

    Parameters
    ----------
    exposure : `Exposure`
        Calibrated, with PSF and WCS.
    n : `int`
        How many are wanted; where there is no room there are fewer.
    mag_min, mag_max : `float`
        AB magnitudes, spread evenly between the two.
    rng : `numpy.random.Generator`

    Returns
    -------
    fakes : `pandas.DataFrame`
        kind (``injected`` or ``injected_hosted``), x, y (px), ra, dec (degrees), mag.
    """
    assert exposure.psf is not None and exposure.wcs is not None
    usable, apart = _roomy(exposure.mask), _APART_FWHM * exposure.psf.fwhm_px()
    hosts = _hosts(exposure)
    places = np.empty((0, 2))
    hosted: list[bool] = []
    for i in range(n):
        on_host = len(hosts) > 0 and i < _HOSTED * n
        for _ in range(_TRIES):
            place = _try_host(hosts, rng) if on_host else rng.uniform(-0.5, np.array(exposure.shape[::-1]) - 0.5)
            if _free(usable, place) and not (np.hypot(*(places - place).T) < apart).any():
                places, hosted = np.vstack([places, place]), [*hosted, on_host]
                break
    x, y = places.T
    ra, dec = exposure.wcs.pixel_to_sky(x, y)
    kind = np.where(np.array(hosted, bool), "injected_hosted", "injected")
    mag = rng.uniform(mag_min, mag_max, len(x))
    return pd.DataFrame({"kind": kind, "x": x, "y": y, "ra": ra, "dec": dec, "mag": mag})


def catalog_fakes(exposure: Exposure, catalog: pd.DataFrame) -> pd.DataFrame:
    """Those of a catalogue's fakes that lie on an image.

    Parameters
    ----------
    catalog : `pandas.DataFrame`
        ra, dec (degrees ICRS), mag (AB in the band of the image).

    Raises
    ------
    DataError
        A column is missing or holds what is no number.
    """
    assert exposure.wcs is not None
    for name in ("ra", "dec", "mag"):
        if name not in catalog.columns:
            raise DataError(f"catalogue of fakes has no column {name!r}; accepted: ra, dec (degrees), mag (AB)")
        if not np.isfinite(pd.to_numeric(catalog[name], errors="coerce").to_numpy(float)).all():
            raise DataError(f"catalogue of fakes: {name} is not a number in every row; accepted: finite numbers")
    ra, dec, mag = (catalog[c].to_numpy(float) for c in ("ra", "dec", "mag"))
    x, y = exposure.wcs.sky_to_pixel(ra, dec)
    ny, nx = exposure.shape
    with np.errstate(invalid="ignore"):
        on = np.flatnonzero((x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5))
    table = {"kind": "injected", "x": x[on], "y": y[on], "ra": ra[on], "dec": dec[on], "mag": mag[on]}
    return pd.DataFrame({**table, "injectionId": on})


def inject(exposure: Exposure, fakes: pd.DataFrame, electrons_per_njy: float, rng: np.random.Generator) -> Exposure:
    """A new exposure with the light of fakes, with `Exposure.injected` saying what they are.

    Parameters
    ----------
    exposure : `Exposure`
        In nJy, with a PSF.
    fakes : `pandas.DataFrame`
        From `place_fakes` or `catalog_fakes`.
    electrons_per_njy : `float`
        Effective gain: for the photon noise of the fakes.
    rng : `numpy.random.Generator`

    Returns
    -------
    exposure : `Exposure`
        INJECTED where a stamp touches a pixel, INJECTED_CORE within 3 x 3 px
        of a centre. `injected` has flux_njy, science_snr (that of the PSF flux
        on this image) and good: no pixel within 2 px of the centre is unusable.
    """
    assert exposure.psf is not None
    image, variance, mask = exposure.image.copy(), exposure.variance.copy(), exposure.mask.copy()
    bad = unusable(exposure.mask)
    size = exposure.psf.size
    profile, work = np.empty((size, size), np.float32), np.empty((size, size), np.float32)
    flux = 10 ** (0.4 * (_NJY_MAG - fakes["mag"].to_numpy(float)))
    snr = np.full(len(fakes), np.nan)
    for i, (x, y) in enumerate(zip(fakes["x"], fakes["y"], strict=True)):
        ix, iy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        shift_psf(exposure.psf.at(x, y).astype(np.float32), x - ix, y - iy, TABLE, profile, work)
        part, of_stamp = _overlap(exposure.shape, ix, iy, size // 2)
        expected = profile.astype(float) * flux[i]
        # A PSF model has pixels below zero: they count in the light, but have no photons.
        electrons = np.maximum(expected, 0.0) * electrons_per_njy
        light = (expected + (rng.poisson(electrons) - electrons) / electrons_per_njy)[of_stamp]
        open_ = ~bad[part]
        image[part] += np.where(open_, light, 0.0).astype(np.float32)
        variance[part] += np.where(open_, electrons[of_stamp] / electrons_per_njy**2, 0.0).astype(np.float32)
        mask[part] |= int(Mask.INJECTED)
        mask[max(iy - 1, 0) : iy + 2, max(ix - 1, 0) : ix + 2] |= int(Mask.INJECTED_CORE)
        weight = np.where(open_, profile[of_stamp], 0.0).astype(float) ** 2
        if weight.sum() > 0:
            snr[i] = flux[i] * weight.sum() / np.sqrt((weight * variance[part]).sum())
    usable = _roomy(exposure.mask)
    good = [_free(usable, place) for place in fakes[["x", "y"]].to_numpy(float)]
    table = fakes.assign(flux_njy=flux, science_snr=snr, good=np.array(good, bool))
    if "injectionId" not in table:
        table["injectionId"] = np.arange(len(table))
    return dataclasses.replace(exposure, image=image, variance=variance, mask=mask, injected=table[list(_COLUMNS)])


def touched(exposure: Exposure, x: F8, y: F8) -> Flags:
    """Whether light of fakes is within a FWHM of positions (px)."""
    out = np.zeros(len(x), bool)
    if exposure.injected is None or exposure.psf is None:
        return out
    reach = int(np.ceil(exposure.psf.fwhm_px()))
    light = (exposure.mask & int(Mask.INJECTED)) != 0
    for i in np.flatnonzero(np.isfinite(x) & np.isfinite(y)):
        ix, iy = round(x[i]), round(y[i])
        out[i] = light[max(iy - reach, 0) : max(iy + reach + 1, 0), max(ix - reach, 0) : max(ix + reach + 1, 0)].any()
    return out


def without_fakes(exposure: Exposure, science: Exposure) -> Exposure:
    """An exposure on the grid of the science image, without data where this has light of fakes.

    For the stamps of alerts: what goes out shows no fake, nor a part of one.
    """
    if science.injected is None:
        return exposure
    light = (science.mask & int(Mask.INJECTED)) != 0
    image, variance = (np.where(light, np.float32(np.nan), plane) for plane in (exposure.image, exposure.variance))
    mask = np.where(light, exposure.mask | int(Mask.NO_DATA), exposure.mask)
    return dataclasses.replace(exposure, image=image, variance=variance, mask=mask)


def difference_snr(fakes: pd.DataFrame, difference: Exposure) -> F8:
    """Predicted S/N of fakes on a difference image: their flux over the error of a PSF flux there; NaN off it."""
    _, err = forced_flux(difference, fakes["x"].to_numpy(float), fakes["y"].to_numpy(float))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(fakes["flux_njy"].to_numpy(float) / err)


def _roomy(mask: NDArray[np.int32]) -> Flags:
    """Pixels within whose `_CORE_PX` all are usable, away from the border."""
    bad = unusable(mask) | ((mask & int(Mask.EDGE)) != 0)
    out = np.zeros(mask.shape, bool)
    ny, nx = mask.shape
    b, c = _BORDER_PX, _CORE_PX
    if min(ny, nx) <= 2 * b:
        return out
    inner = np.zeros((ny - 2 * b, nx - 2 * b), bool)
    for dy in range(-c, c + 1):
        for dx in range(-c, c + 1):
            inner |= bad[b + dy : ny - b + dy, b + dx : nx - b + dx]
    out[b : ny - b, b : nx - b] = ~inner
    return out


def _free(usable: Flags, place: F8) -> bool:
    x, y = np.floor(place + 0.5).astype(int)
    ny, nx = usable.shape
    return bool(0 <= x < nx and 0 <= y < ny and usable[y, x])


def _hosts(exposure: Exposure) -> F8:
    """Galaxies: rows of x, y, fwhm (px)."""
    found = find_stars(exposure, _HOST_SNR)
    stars = stellar_locus(found)
    if not stars.any():
        return np.empty((0, 3))
    wide = found["fwhm"].to_numpy(float) > _HOST_WIDTH * float(found["fwhm"][stars].median())
    return np.asarray(found.loc[wide, ["x", "y", "fwhm"]].to_numpy(float))


def _try_host(hosts: F8, rng: np.random.Generator) -> F8:
    x, y, fwhm = hosts[rng.integers(len(hosts))]
    return np.array([x, y]) + rng.normal(0.0, fwhm / 2.3548, 2)


def _overlap(shape: tuple[int, int], ix: int, iy: int, half: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The pixels of an image that a stamp about (ix, iy) covers, and those of the stamp."""
    parts, stamps = [], []
    for n, i in zip(shape, (iy, ix), strict=True):
        low, high = max(i - half, 0), min(i + half + 1, n)
        parts.append(slice(low, high))
        stamps.append(slice(low - i + half, high - i + half))
    return (parts[0], parts[1]), (stamps[0], stamps[1])
