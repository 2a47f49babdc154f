"""Calibration of an image: background, cosmic rays, PSF, WCS, zero point."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.model.psf import Psf, fwhm_px
from apflow.model.wcs import Wcs
from apflow.pixels.astrometry import fit_wcs
from apflow.pixels.background import subtract_background
from apflow.pixels.cosmics import find_cosmic_rays
from apflow.pixels.interpolate import interpolate
from apflow.pixels.photometry import fit_zero_point, in_our_band, nanojansky_per_electron, surface_brightness
from apflow.pixels.point_sources import fit_point_sources
from apflow.pixels.psf import fit_psf
from apflow.pixels.psf_error import psf_model_error
from apflow.pixels.stars import find_stars, stellar_locus
from apflow.pixels.wings import ApertureCorrection, fit_aperture_correction

#: Stars that make the PSF at most: the brightest say it all.
_PSF_STARS = 300
#: Stars that tell the error of the PSF's model, the brightest.
_ERROR_STARS = 120

_CR, _INTRP = int(Mask.CR), int(Mask.INTRP)


def calibrate(
    exposure: Exposure,
    wcs: Wcs,
    reference: pd.DataFrame,
    *,
    min_stars: int = 10,
    star_snr: float = 20.0,
    psf_order: int = 1,
    match_radius_arcsec: float = 5.0,
    colour_term: float = 0.0,
) -> Exposure:
    """From electrons to nJy, with all that is known of the image.

    The zero point is of total fluxes: those of PSF fits times the aperture
    correction. The image is scaled so that a PSF flux measured on it, with its
    own PSF of sum 1, is a total flux in nJy: who measures PSF fluxes needs no
    correction.

    Parameters
    ----------
    exposure : `Exposure`
        In ``electron``, as `remove_signature` makes it.
    wcs : `Wcs`
        Where the telescope was meant to point.
    reference : `pandas.DataFrame`
        Stars: ra, dec (degrees), mag (AB in the band of the image), and
        where there is one colour (mag; NaN where it is not known).
    min_stars : `int`
        Fewest stars for the PSF, and matched for WCS and zero point.
    star_snr : `float`
        Least S/N of a star.
    psf_order : `int`
        Spatial order of the PSF.
    match_radius_arcsec : `float`
        Largest pointing error.
    colour_term : `float`
        By how much a star of colour 1 is fainter in the image than ``mag`` says.

    Returns
    -------
    exposure : `Exposure`
        In ``nJy``, sky subtracted, cosmic rays masked (CR, INTRP) and
        interpolated, with `psf`, `wcs` and `summary`.

    Raises
    ------
    DataError
        Too few stars, or too few that match the reference.
    """
    assert exposure.info is not None
    time_s = exposure.info.exposure_time_s
    sky_free, sky, noise = subtract_background(exposure)
    found = find_stars(sky_free, star_snr)
    locus = stellar_locus(found)
    _enough(int(locus.sum()), min_stars, f"stars of S/N {star_snr:g} among {len(found)} sources for the PSF")
    clean, n_hit = _without_cosmic_rays(sky_free, float(found["fwhm"][locus].median()))
    alive = ~_hit(clean, found)
    stars = found[locus & alive]
    _enough(len(stars), min_stars, f"stars of S/N {star_snr:g} among {len(found)} sources for the PSF")
    psf = fit_psf(clean, stars[:_PSF_STARS], psf_order)
    measured = fit_point_sources(clean, psf, stars["x"].to_numpy(), stars["y"].to_numpy()).dropna()
    px, py, flux = (measured[c].to_numpy() for c in ("x", "y", "flux"))
    refined, astrometry = fit_wcs(px, py, reference, wcs, match_radius_arcsec, min_stars, clean.shape)
    aperture = fit_aperture_correction(clean, psf, px, py, flux, float(stars["fwhm"].median()))
    matched = measured.iloc[astrometry.star]
    known = reference.iloc[astrometry.reference]
    colour = known["colour"].to_numpy(float) if "colour" in known else None
    mag = in_our_band(known["mag"].to_numpy(float), colour, colour_term)
    level = aperture.relative(px, py, clean.shape)[astrometry.star]
    zero = fit_zero_point(matched["flux"].to_numpy() * level, time_s, mag, matched["flux_err"].to_numpy())
    scale = _scale(nanojansky_per_electron(zero.zero_point_mag, time_s), aperture, clean.shape)
    zero_point = zero.zero_point_mag + 2.5 * np.log10(aperture.value)
    sigma_px, e1, e2 = _shape(psf)
    scale_arcsec = refined.pixel_scale_arcsec
    summary = {
        "psf_fwhm_arcsec": psf.fwhm_px() * scale_arcsec,
        "psf_sigma_px": sigma_px,
        "psf_sigma_arcsec": sigma_px * scale_arcsec,
        "psf_fwhm_spread_arcsec": _fwhm_spread_px(psf) * scale_arcsec,
        "psf_ellipticity_e1": e1,
        "psf_ellipticity_e2": e2,
        "wcs_offset_arcsec": astrometry.offset_arcsec,
        "wcs_rotation_arcsec": astrometry.rotation_arcsec,
        "wcs_scatter_arcsec": astrometry.scatter_arcsec,
        "wcs_distortion_arcsec": astrometry.distortion_arcsec,
        "psf_model_error": psf_model_error(clean, psf, px[:_ERROR_STARS], py[:_ERROR_STARS], flux[:_ERROR_STARS]),
        "aperture_correction": aperture.value,
        "aperture_correction_error": aperture.error,
        "zero_point_mag": zero_point,
        "zero_point_error_mag": float(np.hypot(zero.error_mag, 1.0857 * aperture.error)),
        "zero_point_scatter_mag": zero.scatter_mag,
        "sky_electron": sky,
        "sky_noise_electron": noise,
        "sky_mag_arcsec2": surface_brightness(sky / time_s, zero_point, scale_arcsec),
        "depth_mag": zero.zero_point_mag - 2.5 * np.log10(5.0 * noise * np.sqrt(psf.effective_area_px()) / time_s),
        "n_psf_stars": float(min(len(stars), _PSF_STARS)),
        "n_reference_matched": float(len(matched)),
        "n_cosmic_ray_pixels": float(n_hit),
    }
    return dataclasses.replace(
        clean,
        image=clean.image * scale,
        variance=clean.variance * scale**2,
        unit="nJy",
        wcs=refined,
        psf=psf,
        summary={**exposure.summary, **{name: float(value) for name, value in summary.items()}},
    )


def _scale(nanojansky: float, aperture: ApertureCorrection, shape: tuple[int, int]) -> NDArray[np.float32] | np.float32:
    """nJy of an electron in a PSF flux: one number, or a plane (ny, nx) with the aperture correction."""
    if aperture.slope == (0.0, 0.0):
        return np.float32(nanojansky)
    ny, nx = shape
    row = aperture.relative(np.arange(float(nx)), np.full(nx, (ny - 1) / 2.0), shape)
    column = aperture.relative(np.full(ny, (nx - 1) / 2.0), np.arange(float(ny)), shape) - 1.0
    return np.asarray(np.float32(nanojansky) * (row.astype(np.float32) + column.astype(np.float32)[:, None]))


def _enough(n: int, least: int, what: str) -> None:
    if n < least:
        raise DataError(f"{n} {what}; accepted: {least} or more")


def _without_cosmic_rays(exposure: Exposure, fwhm_px: float) -> tuple[Exposure, int]:
    """Cosmic rays masked and interpolated, and how many pixels they hit."""
    hits = find_cosmic_rays(exposure, fwhm_px)
    n = int(np.count_nonzero(hits))
    if n == 0:
        return exposure, 0
    mask = exposure.mask.copy()
    mask[hits] |= _CR | _INTRP
    image = interpolate(exposure.image, hits.astype(np.int32), 1)
    return dataclasses.replace(exposure, image=image, mask=mask), n


def _hit(exposure: Exposure, stars: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether a cosmic ray lies within 2 px of a star's centre."""
    x, y = np.round(stars["x"].to_numpy()).astype(int), np.round(stars["y"].to_numpy()).astype(int)
    ny, nx = exposure.shape
    out = np.zeros(len(x), np.bool_)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            out |= (exposure.mask[np.clip(y + dy, 0, ny - 1), np.clip(x + dx, 0, nx - 1)] & _CR) != 0
    return out


def _fwhm_spread_px(psf: Psf) -> float:
    """Standard deviation of the FWHM at nine places of the image."""
    ny, nx = psf.shape
    places = [(x, y) for y in np.linspace(0, ny - 1, 7)[1::2] for x in np.linspace(0, nx - 1, 7)[1::2]]
    return float(np.std([fwhm_px(psf.at(x, y)) for x, y in places]))


def _shape(psf: Psf) -> tuple[float, float, float]:
    """Sigma (px) of the adaptive round Gaussian at the centre, and (Ixx - Iyy, 2 Ixy) / (Ixx + Iyy) under it."""
    image = psf.centre()
    axis = np.arange(psf.size) - psf.size // 2
    y, x = axis[:, None], axis[None, :]
    s2 = (psf.fwhm_px() / 2.3548) ** 2
    for _ in range(20):
        weighted = image * np.exp(-0.5 * (x * x + y * y) / s2)
        ixx, iyy, ixy = (float((weighted * m).sum() / weighted.sum()) for m in (x * x, y * y, x * y))
        # A Gaussian under a weight of its own width has half its moments.
        s2 = ixx + iyy
    return float(np.sqrt(s2)), (ixx - iyy) / (ixx + iyy), 2 * ixy / (ixx + iyy)
