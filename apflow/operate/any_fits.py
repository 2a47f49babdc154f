"""Images of any telescope, as exposures: what the file says, and estimates where it is silent."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sep
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from apflow.errors import BadRequest, DataError
from apflow.model.exposure import Exposure, Mask
from apflow.model.wcs import Wcs, fit_wcs
from apflow.operate import any_header
from apflow.operate.any_psf import estimate_psf
from apflow.pixels import estimate
from apflow.pixels.convolve import grow
from apflow.pixels.cosmics import find_cosmic_rays
from apflow.pixels.planes import unusable
from apflow.pixels.stars import find_stars

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]

#: Names of extensions, and the power of their pixels that is the variance.
_VARIANCE = dict.fromkeys(("VARIANCE", "VAR"), 1) | dict.fromkeys(("IVAR", "INVVAR"), -1)
_VARIANCE |= dict.fromkeys(("ERR", "ERROR", "NOISE", "RMS", "SIGMA", "UNCERT"), 2)
_MASK = ("MASK", "MSK", "BPM", "DQ")
#: Never the image, and of no use without knowing who wrote them.
_OTHER = ("WHT", "WEIGHT", "CON", "CTX", "EXP", "AREA", "BKG", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "SAMP", "TIME")
_SCIENCE = ("SCI", "SCIENCE", "IMAGE")
#: So many pixels that are exactly 0, far from the sky's level, hold no data.
_ZEROS = 100
#: The noise of a sky with a gradient falls to less than this part once that is subtracted.
_GRADIENT = 0.7
#: A gain in the header that makes the sky's photons noisier than the sky by this factor in variance is of other
#: pixels; so is one that is this many times off photon transfer.
_REFUTED, _FAR_OFF = 1.5, 3.0
#: Photon transfer wants so many stars, this broad in pixels at least; it is precise with this relative error.
_STARS, _SMOOTH_FWHM, _PRECISE = 5, 3.3, 0.12
#: What is in both images with less than this part of the FWHM is no light of the sky.
_HOT = 0.6


def read(path: Path, noise: Path | None = None, mask: Path | None = None) -> Exposure:
    """Read the first image of a FITS file, with variance, mask and WCS where the file has them.

    The image is the extension named SCI, SCIENCE or IMAGE, or else the first
    one that is not known for something else, compressed or not. Variance is
    an extension named VARIANCE or VAR, IVAR of its inverse, or ERR, NOISE,
    RMS... of standard deviations; the mask is one named MASK, MSK, BPM or DQ,
    apflow's planes or simply not 0 where a pixel is bad (JWST: DO_NOT_USE).
    Every projection that astropy knows is taken. Where there is no
    photometric zero point the unit is ADU.

    Parameters
    ----------
    path : `pathlib.Path`
    noise, mask : `pathlib.Path`, optional
        FITS files of standard deviations in the image's unit, and of what is
        not 0 where a pixel is bad, in place of what the file itself has.

    Returns
    -------
    `Exposure`
        Sky still in it; variance NaN everywhere when the file has none.

    Raises
    ------
    BadRequest
        There is no such file, it is not FITS, or noise or mask are of another shape than the image.
    DataError
        There is no two-dimensional image in it, it has no finite pixel or but one value, or its WCS is invalid.
    """
    with _opened(path) as hdus:
        given = {name: _only_plane(file, name) for name, file in (("ERR", noise), ("MASK", mask)) if file is not None}
        return _exposure(path, hdus, given)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise BadRequest(f"{path}: no such file; accepted: a FITS file")
    try:
        with warnings.catch_warnings(), fits.open(path) as hdus:
            warnings.simplefilter("ignore")  # other people's headers
            yield hdus
    except OSError as error:
        raise BadRequest(f"{path} is not a FITS file that can be read: {error}") from error


def _only_plane(path: Path, name: str) -> Any:
    """The first image of a file as an extension of the given name."""
    with _opened(path) as hdus:
        found = next((plane for h in hdus if h.is_image and (plane := _plane(h)) is not None), None)
    if found is None:
        raise BadRequest(f"{path} has no two-dimensional image; accepted: one of the shape of the image it belongs to")
    return fits.ImageHDU(found.astype(found.dtype.newbyteorder("=")), name=name)


def _exposure(path: Path, hdus: Any, given: Mapping[str, Any]) -> Exposure:
    named = {str(h.name).upper(): h for h in hdus if h.is_image and _plane(h) is not None}
    others = {*_VARIANCE, *_MASK, *_OTHER}
    images = [h for h in hdus if h.is_image and h.name.upper() not in others and _plane(h) is not None]
    if not images:
        found = ", ".join(f"{h.name or type(h).__name__} {getattr(h, 'shape', ())}" for h in hdus)
        raise DataError(f"{path} has no two-dimensional image; found: {found}")
    chosen = next((named[name] for name in _SCIENCE if name in named), images[0])
    raw = _plane(chosen)
    assert raw is not None
    image = raw.astype(np.float32)
    if not np.isfinite(image).any():
        raise DataError(f"{path} has no pixel with a value: all {image.size} are NaN or infinite")
    if np.nanmin(image) == np.nanmax(image):
        raise DataError(f"{path} shows nothing: all its pixels are {np.nanmax(image):g}")
    for name, hdu in given.items():
        if hdu.shape != image.shape:
            raise BadRequest(
                f"the {name} given for {path} is of shape {hdu.shape}; accepted: {image.shape}, the image's"
            )
        named = {n: h for n, h in named.items() if n not in (_VARIANCE if name in _VARIANCE else _MASK)} | {name: hdu}
    header: Mapping[str, Any] = {**hdus[0].header, **chosen.header}
    mask = _mask(named, image, raw.dtype, header)
    saturated = _saturation(image, mask, header)
    mask[image >= min(saturated.values())] |= Mask.SAT
    variance = np.full(image.shape, np.nan, np.float32)
    name = next((n for n in _VARIANCE if n in named), "")
    plane = _plane(named[name]) if name else None
    if plane is not None and plane.shape == image.shape:
        plane = np.where(np.isfinite(plane) & (plane > 0), plane, np.nan)
        variance = (plane.astype(np.float64) ** _VARIANCE[name]).astype(np.float32)
        mask[~(variance > 0)] |= Mask.NO_DATA
    try:
        wcs = _wcs(chosen.header, image.shape)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise DataError(f"{path} has a WCS that cannot be used ({error}); accepted: a valid one, or none") from error
    facts = any_header.camera(header) | {name: level for name, level in saturated.items() if np.isfinite(level)}
    return _calibrated(Exposure(image, variance, mask, "ADU", wcs, None, any_header.info(header), facts), header)


def _calibrated(exposure: Exposure, header: Mapping[str, Any]) -> Exposure:
    """The exposure in nJy where the header allows it."""
    factor = any_header.njy_per_unit(header)
    if factor is None:
        return exposure
    facts = dict(exposure.summary)
    for name in facts:
        facts[name] *= factor if name.startswith("saturation") else 1 / factor if name.startswith("gain") else 1.0
    image, variance = exposure.image * np.float32(factor), exposure.variance * np.float32(factor) ** 2
    return dataclasses.replace(exposure, image=image, variance=variance, unit="nJy", summary=facts)


def _plane(hdu: Any) -> NDArray[Any] | None:
    if hdu.data is None or hdu.data.ndim < 2 or min(hdu.data.shape[-2:]) < 2:
        return None
    squeezed = np.squeeze(hdu.data)
    return np.asarray(squeezed) if squeezed.ndim == 2 else None


def _mask(named: Mapping[str, Any], image: F4, dtype: np.dtype[Any], header: Mapping[str, Any]) -> I4:
    mask = np.zeros(image.shape, np.int32)
    given = next((named[n] for n in _MASK if n in named), None)
    plane = _plane(given) if given is not None else None
    if given is not None and plane is not None and plane.shape == image.shape:
        if "MP_BAD" in given.header:
            mask |= plane.astype(np.int32)
        else:
            bits = 1 if header.get("TELESCOP") == "JWST" else -1
            mask[(plane.astype(np.int64) & bits) != 0] |= Mask.BAD
    mask[~np.isfinite(image)] |= Mask.NO_DATA
    mask[_zeros(image, dtype)] |= Mask.NO_DATA
    mask[estimate.constant_borders(image)] |= Mask.NO_DATA
    return mask


def _saturation(image: F4, mask: I4, header: Mapping[str, Any]) -> dict[str, float]:
    """Levels by name: what the header says, and what the tops of the stars say where they are lower."""
    stated = any_header.saturation(header) or np.inf
    seen = estimate.saturation(image, (mask == 0) & (image < stated))
    return {"saturation_in_header": stated, "saturation_by_plateau": seen}


def _zeros(image: F4, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Pixels of exactly 0 that stand for no data, as resampling leaves them beyond the detector's edge."""
    zeros = image == 0
    rest = image[np.isfinite(image) & ~zeros]
    if np.count_nonzero(zeros) < _ZEROS or not rest.size:
        return np.zeros_like(zeros)
    level = np.median(rest)
    # A sky of whole numbers about 0 has true zeros.
    far = abs(level) > 5 * 1.4826 * np.median(np.abs(rest - level))
    return zeros if far or dtype.kind == "f" else np.zeros_like(zeros)


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
    level = float(sky.globalback)
    image = image - sky.back(dtype=np.float32)
    again = sep.Background(image, mask=~good, bw=side, bh=side)
    if again.globalrms < _GRADIENT * sky.globalrms:
        sky, image = again, image - again.back(dtype=np.float32)
    noise = max(float(sky.globalrms), 1e-6 * float(np.abs(image).max()), 1e-30)
    mask = exposure.mask.copy()
    mask[estimate.bad_columns(image, good, noise)] |= Mask.BAD
    facts = {**exposure.summary, "sky": level, "sky_noise": noise}
    variance = exposure.variance
    if not np.isfinite(variance).any():
        shot, known = (
            (gain, {}) if gain is not None else _gain(dataclasses.replace(exposure, image=image, mask=mask), facts)
        )
        facts |= known
        variance = np.maximum(sky.rms(dtype=np.float32), 0.5 * noise) ** 2 + np.maximum(image, 0) / np.float32(shot)
    variance = np.where(np.isfinite(variance) & (variance > 0), variance, noise**2).astype(np.float32)
    return dataclasses.replace(exposure, image=image, variance=variance, mask=mask, summary=facts)


def _gain(exposure: Exposure, facts: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Electrons a unit, infinite where nothing tells, and by name where it is from, with the read noise in electrons.

    The header, where neither the sky's noise nor precise photon transfer
    refutes it; photon transfer where that is precise; that for which the sky's noise is its photons', where
    there is a sky; photon transfer, be it rough.
    """
    level, noise = facts["sky"], facts["sky_noise"]
    photons = level / noise**2 if level > 3 * noise else np.inf
    flat = dataclasses.replace(exposure, variance=np.full(exposure.shape, noise**2, np.float32))
    stars = find_stars(flat)
    seen, error = np.inf, np.inf
    if len(stars) >= _STARS and np.quantile(stars["fwhm"], 0.25) >= _SMOOTH_FWHM:
        seen, error = estimate.gain(exposure.image, ~unusable(exposure.mask), noise) or (np.inf, np.inf)
    precise = error < _PRECISE * seen
    stated = facts.get("gain_in_header", 0.0)
    possible = stated > 0 and (photons == np.inf or stated >= photons / _REFUTED)
    if possible and (not precise or max(seen / stated, stated / seen) < _FAR_OFF):
        return stated, {"read_noise_electron": _read_noise(stated, level, noise)}
    if precise or (np.isfinite(error) and abs(seen - photons) > 3 * error):
        return seen, {"gain_by_photon_transfer": seen, "read_noise_electron": _read_noise(seen, level, noise)}
    return photons, {"gain_by_sky": photons} if np.isfinite(photons) else {}


def _read_noise(gain: float, level: float, noise: float) -> float:
    """Electrons of noise that the photons of the sky leave unexplained; of an image without its sky, all of it."""
    return gain * float(np.sqrt(max(noise**2 - max(level, 0.0) / gain, 0.0)))


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
