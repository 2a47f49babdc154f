"""Images of any telescope, as exposures: what the file says, and estimates where it is silent."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sep
from astropy.io import fits
from astropy.time import Time
from astropy.wcs import WCS
from numpy.typing import NDArray

from apflow.errors import BadRequest, DataError
from apflow.model.exposure import Exposure, ImageInfo, Mask
from apflow.model.wcs import Wcs, fit_wcs
from apflow.operate.any_psf import estimate_psf
from apflow.pixels.convolve import grow
from apflow.pixels.cosmics import find_cosmic_rays
from apflow.pixels.planes import unusable

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]

_VARIANCE = ("VARIANCE", "VAR")
_SIGMA = ("ERR", "ERROR", "NOISE", "RMS", "SIGMA", "UNCERT")
_MASK = ("MASK", "MSK", "BPM")
_ZERO_POINTS = ("MAGZERO", "MAGZPT", "ZEROPNT", "PHOTZP", "MAGZP", "ZP_AB")
#: nJy of AB magnitude 0: 3631 Jy.
_AB_NJY = 10 ** (31.4 / 2.5)
#: A plateau of this many pixels at the top of the range is saturation.
_PLATEAU = 4
#: What is in both images with less than this part of the FWHM is no light of the sky.
_HOT = 0.6


def read(path: Path) -> Exposure:
    """Read the first image of a FITS file, with variance, mask and WCS where the file has them.

    Variance is an extension named VARIANCE or VAR, or ERR, NOISE, RMS... of
    standard deviations; the mask is one named MASK, MSK or BPM, apflow's
    planes or simply not 0 where a pixel is bad. Every projection that astropy
    knows is taken. Where there is no photometric zero point the unit is ADU.

    Returns
    -------
    `Exposure`
        Sky still in it; variance NaN everywhere when the file has none.

    Raises
    ------
    BadRequest
        There is no such file, or it is not FITS.
    DataError
        There is no two-dimensional image in it, or it has no finite pixel.
    """
    if not path.is_file():
        raise BadRequest(f"{path}: no such file; accepted: a FITS file")
    try:
        with warnings.catch_warnings(), fits.open(path) as hdus:
            warnings.simplefilter("ignore")  # other people's headers
            return _exposure(path, hdus)
    except OSError as error:
        raise BadRequest(f"{path} is not a FITS file that can be read: {error}") from error


def _exposure(path: Path, hdus: Any) -> Exposure:
    named = {str(h.name).upper(): h for h in hdus if h.is_image and _plane(h) is not None}
    others = {*_VARIANCE, *_SIGMA, *_MASK}
    chosen = next((h for h in hdus if h.is_image and h.name.upper() not in others and _plane(h) is not None), None)
    if chosen is None:
        found = ", ".join(f"{h.name or 'PRIMARY'} {getattr(h, 'shape', ())}" for h in hdus)
        raise DataError(f"{path} has no two-dimensional image; found: {found}")
    raw = _plane(chosen)
    assert raw is not None
    image = raw.astype(np.float32)
    if not np.isfinite(image).any():
        raise DataError(f"{path} has no pixel with a value: all {image.size} are NaN or infinite")
    header: Mapping[str, Any] = {**hdus[0].header, **chosen.header}
    mask = _mask(named, image, raw.dtype, header)
    variance = np.full(image.shape, np.nan, np.float32)
    for names, power in ((_VARIANCE, 1), (_SIGMA, 2)):
        plane = next((_plane(named[n]) for n in names if n in named), None)
        if plane is not None and plane.shape == image.shape:
            variance = plane.astype(np.float32) ** power
            mask[~(variance > 0)] |= Mask.NO_DATA
            break
    exposure = Exposure(image, variance, mask, "ADU", _wcs(chosen.header, image.shape), None, _info(header))
    return _calibrated(exposure, header)


def _plane(hdu: Any) -> NDArray[Any] | None:
    if hdu.data is None or hdu.data.ndim < 2 or min(hdu.data.shape[-2:]) < 2:
        return None
    squeezed = np.squeeze(hdu.data)
    return np.asarray(squeezed) if squeezed.ndim == 2 else None


def _mask(named: Mapping[str, Any], image: F4, dtype: np.dtype[Any], header: Mapping[str, Any]) -> I4:
    mask = np.zeros(image.shape, np.int32)
    given = next((named[n] for n in _MASK if n in named), None)
    if given is not None and _plane(given) is not None and given.data.shape == image.shape:
        own = "MP_BAD" in given.header
        mask |= given.data.astype(np.int32) if own else np.where(given.data != 0, np.int32(Mask.BAD), np.int32(0))
    mask[~np.isfinite(image)] |= Mask.NO_DATA
    level = float(header.get("SATURATE", np.inf) or np.inf)
    if np.isinf(level) and dtype.kind in "iu":
        top = float(np.nanmax(image))
        level = 0.98 * top if np.count_nonzero(image >= 0.98 * top) >= _PLATEAU else np.inf
    mask[image >= level] |= Mask.SAT
    return mask


def _wcs(header: Any, shape: tuple[int, ...]) -> Wcs | None:
    if not header.get("CTYPE1") or not header.get("CTYPE2"):
        return None
    world = WCS(header, naxis=2)
    if not world.has_celestial:
        return None

    def sky(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        position = world.pixel_to_world(x, y).icrs
        return np.asarray(position.ra.deg), np.asarray(position.dec.deg)

    return fit_wcs(sky, (shape[0], shape[1]))


def _info(header: Mapping[str, Any]) -> ImageInfo:
    """What can be had of instrument, filter and times; MJD 0 where the header has no time."""
    exposure_time_s = float(header.get("EXPTIME") or header.get("EXPOSURE") or header.get("XPOSURE") or 0.0)
    begin = 0.0
    if isinstance(header.get("MJD-OBS"), int | float):
        begin = float(Time(header["MJD-OBS"], format="mjd", scale="utc").tai.mjd)
    elif "T" in str(header.get("DATE-OBS", "")):
        begin = float(Time(str(header["DATE-OBS"]).rstrip("Z"), scale="utc").tai.mjd)
    physical_filter = str(header.get("FILTER") or header.get("FILTER1") or "").strip()
    # The schema has room for one letter: LSST's bands, as DECam and others begin their filters' names.
    band = physical_filter.split(" ")[0].split("_")[0]
    band = band if band in ("u", "g", "r", "i", "z", "y") else ""
    instrument = str(header.get("INSTRUME") or "")
    end = begin + exposure_time_s / 86400.0
    return ImageInfo(instrument, 0, 0, "", 0, physical_filter, band, 0.0, 0.0, 0.0, exposure_time_s, begin, end)


def _calibrated(exposure: Exposure, header: Mapping[str, Any]) -> Exposure:
    """The exposure in nJy where the header allows it."""
    zero_point = next((header[k] for k in _ZERO_POINTS if isinstance(header.get(k), int | float)), None)
    unit = str(header.get("BUNIT", "")).strip()
    if unit.lower() == "njy":
        factor = 1.0
    elif unit == "MJy/sr" and isinstance(header.get("PIXAR_SR"), int | float):
        factor = float(header["PIXAR_SR"]) * 1e15
    elif zero_point is not None:
        factor = _AB_NJY * 10 ** (-float(zero_point) / 2.5)
    else:
        return exposure
    image, variance = exposure.image * np.float32(factor), exposure.variance * np.float32(factor) ** 2
    return dataclasses.replace(exposure, image=image, variance=variance, unit="nJy")


def prepare(exposure: Exposure, gain: float | None = None) -> Exposure:
    """Subtract the sky and estimate the noise.

    Parameters
    ----------
    exposure : `Exposure`
        From `read`, or warped.
    gain : `float`, optional
        Electrons a unit; where it is None, that for which the sky's noise is
        its photons', if there is a sky.

    Raises
    ------
    DataError
        No pixel is usable.
    """
    good = ~unusable(exposure.mask) & np.isfinite(exposure.image)
    if not good.any():
        raise DataError(f"no pixel of the image of shape {exposure.shape} is usable")
    image = np.where(good, exposure.image, np.float32(np.median(exposure.image[good])))
    side = int(np.clip(min(exposure.shape) // 6, 32, 128))
    sky = sep.Background(image, mask=~good, bw=side, bh=side)
    level, noise = float(sky.globalback), max(float(sky.globalrms), 1e-6 * float(np.abs(image).max()), 1e-30)
    image = image - sky.back(dtype=np.float32)
    variance = exposure.variance
    if not np.isfinite(variance).any():
        if gain is None:
            gain = level / noise**2 if level > 3 * noise else np.inf
        variance = np.maximum(sky.rms(dtype=np.float32), 0.1 * noise) ** 2 + np.maximum(image, 0) / np.float32(gain)
    variance = np.where(np.isfinite(variance) & (variance > 0), variance, noise**2).astype(np.float32)
    return dataclasses.replace(exposure, image=image, variance=variance, summary={"sky": level, "sky_noise": noise})


def with_psf(exposure: Exposure, other: Exposure) -> Exposure:
    """The exposure with a PSF from what it and the other image of the same sky show; psf_fwhm_px in its summary."""
    psf, fwhm = estimate_psf(exposure, other)
    return dataclasses.replace(exposure, psf=psf, summary={**exposure.summary, "psf_fwhm_px": fwhm})


def without_cosmic_rays(exposure: Exposure, other: Exposure) -> Exposure:
    """Mask what is sharper than the PSF and not in the other image of the same sky, and hot pixels of both.

    The second condition keeps real objects where the PSF was taken from too
    few or extended sources; a hot pixel is far sharper than any PSF.
    """
    hits = find_cosmic_rays(exposure, 0.85 * exposure.summary["psf_fwhm_px"])
    hits &= ~grow(other.image > 4 * np.sqrt(other.variance), 2)
    hot, others = (find_cosmic_rays(e, _HOT * e.summary["psf_fwhm_px"]) for e in (exposure, other))
    hits |= hot & grow(others, 1)
    mask = exposure.mask.copy()
    mask[hits] |= Mask.CR
    return dataclasses.replace(exposure, mask=mask)
