"""Difference images: subtraction of a PSF-matched template."""

from __future__ import annotations

import dataclasses

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from apflow.errors import BadRequest, DataError, NoTemplate
from apflow.model.exposure import Exposure
from apflow.model.kernel import Kernel
from apflow.model.products import Difference
from apflow.pixels.convolve import convolve_varying, grow_planes, smooth
from apflow.pixels.decorrelation import convolved_psf, decorrelation, matched_psf, sky_variances
from apflow.pixels.matching import fit_kernel
from apflow.pixels.planes import EDGE, HARD, NO_DATA, SAT, unusable
from apflow.pixels.residuals import (
    bright_sources,
    matching_error,
    noise_ratio,
    residual_background,
    residual_power,
    with_matching_variance,
)
from apflow.pixels.tiles import whiten_and_filter

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

#: What may be convolved.
CONVOLVE = ("auto", "template", "science")
#: A template is broader than the science image when its FWHM is so many times that one's.
_BROADER = 1.1
#: Parts of a kernel's weight that spread a bad pixel, as far as 6 px, and that miss light beyond the border.
_CORE, _FARTHEST, _WHOLE = 0.9, 6, 0.98
#: Noise that is less than this part of what the variances say is not measured: the images share theirs.
_LEAST_NOISE = 0.2


def subtract(
    science: Exposure,
    template: Exposure,
    *,
    convolve: str = "auto",
    kernel_order: int | None = None,
    background_order: int = 2,
    min_coverage: float = 0.2,
    decorrelate: bool = True,
) -> Difference:
    """Subtract a template from a science image after PSF matching (Alard & Lupton 1998).

    Parameters
    ----------
    science, template : `Exposure`
        On one grid, background subtracted, with PSFs.
    convolve : `str`
        Which image is convolved to the other's PSF: "template", "science", or
        "auto", the sharper one. Where the template is the broader one,
        matching it to the science image would be a deconvolution and leave
        rings at every star.
    kernel_order, background_order : `int`, optional
        See `apflow.pixels.matching.fit_kernel`.
    min_coverage : `float`
        Least fraction of the science image's usable pixels with template data.
    decorrelate : `bool`
        Whiten the noise after Reiss & Lupton (DMTN-021); the difference then
        has a PSF of its own.

    Returns
    -------
    `Difference`
        On the flux scale of the science image and of the same sign whichever
        image was convolved, which ``exposure.summary`` tells as
        science_convolved (0 or 1). If 1, `matched` is the template as it was,
        on the science image's flux scale, and `kernel` what the science image
        was convolved with; kernel_sum is as if the template had been.

        ``exposure.variance`` is scaled so that PSF fluxes of blank sky scatter
        as it says. ``exposure.summary`` has kernel_sum, kernel_order, n_stamps,
        n_stamps_rejected, bad_stamps (the part rejected), kernel_chi2,
        residual_power, matching_error, template_coverage, variance_scale,
        diff_mad_snr (before scaling) and science_convolved.

    Raises
    ------
    BadRequest
        `convolve` is none of the three.
    NoTemplate
        Too little coverage.
    DataError
        Shapes differ, the science image has no PSF, or no kernel can be had.
    """
    if convolve not in CONVOLVE:
        raise BadRequest(f"convolve is {convolve!r}; accepted: {', '.join(CONVOLVE)}")
    if science.shape != template.shape:
        raise DataError(f"template of shape {template.shape} on a science image of shape {science.shape}: must agree")
    if science.psf is None:
        raise DataError("the science image has no PSF; subtraction needs one")
    coverage = _coverage(science, template)
    if coverage < min_coverage:
        raise NoTemplate(f"the template covers {coverage:.3f} of the detector's good pixels; at least {min_coverage}")
    settings = _Settings(kernel_order, background_order, decorrelate)
    if convolve == "science" or (convolve == "auto" and _is_broader(template, science)):
        result = _turned(_subtract(template, science, settings, turned=True), science, template)
    else:
        result = _subtract(science, template, settings)
        result = _described(result, science_convolved=0.0)
    return _described(result, template_coverage=coverage)


@dataclasses.dataclass(frozen=True)
class _Settings:
    kernel_order: int | None
    background_order: int
    decorrelate: bool


def _is_broader(template: Exposure, science: Exposure) -> bool:
    assert science.psf is not None
    return template.psf is not None and template.psf.fwhm_px() >= _BROADER * science.psf.fwhm_px()


def _described(difference: Difference, **summary: float) -> Difference:
    exposure = difference.exposure
    return dataclasses.replace(
        difference, exposure=dataclasses.replace(exposure, summary={**exposure.summary, **summary})
    )


def _turned(difference: Difference, science: Exposure, template: Exposure) -> Difference:
    """Template minus convolved science image, as science minus template on the science image's flux scale."""
    scale = np.float32(1 / difference.exposure.summary["kernel_sum"])
    summary = {**difference.exposure.summary, "kernel_sum": float(scale), "science_convolved": 1.0}
    exposure = dataclasses.replace(
        difference.exposure,
        image=-scale * difference.exposure.image,
        variance=scale**2 * difference.exposure.variance,
        summary=summary,
    )
    matched = dataclasses.replace(
        template, image=scale * template.image, variance=scale**2 * template.variance, mask=exposure.mask
    )
    exposure, matched = (
        dataclasses.replace(e, unit=science.unit, wcs=science.wcs, info=science.info) for e in (exposure, matched)
    )
    filtered = difference.filtered
    return Difference(exposure, matched, difference.kernel, None if filtered is None else -scale * filtered)


def _subtract(science: Exposure, template: Exposure, settings: _Settings, *, turned: bool = False) -> Difference:
    """Subtract the convolved template; `turned` where the two have changed places."""
    science, template = _finite(science), _finite(template)
    kernel, background, summary = fit_kernel(
        science, template, kernel_order=settings.kernel_order, background_order=settings.background_order
    )
    mask = _difference_mask(science, template, kernel)
    bad = unusable(mask)
    matched_image = convolve_varying(template.image, kernel)
    difference = background.taken_from(science.image, matched_image)
    difference = residual_background(difference, bad, settings.background_order).taken_from(difference)
    psf, whitening = science.psf, None
    assert psf is not None
    if turned and template.psf is not None:
        # What is new has been convolved with the kernel, however well that brings it to the other PSF.
        psf = matched_psf(template.psf, kernel)
    if settings.decorrelate:
        whitening = decorrelation(kernel.centre(), *sky_variances(science, template))
        psf = convolved_psf(psf, whitening)
    # Bad pixels are left out before: a cosmic ray or a saturated core would be spread.
    difference, filtered = whiten_and_filter(difference, bad, whitening, psf.centre())
    variance, matched_variance = _variances(science, template, kernel, settings.decorrelate)
    exposure = Exposure(difference, variance, mask, science.unit, science.wcs, psf, science.info)
    exposure, found = _with_true_noise(exposure, filtered, matched_image)
    exposure = dataclasses.replace(exposure, summary=summary | found)
    matched = Exposure(
        matched_image, matched_variance, mask, science.unit, science.wcs, science.psf, science.info, template.summary
    )
    return Difference(exposure, matched, kernel, filtered)


def _with_true_noise(exposure: Exposure, filtered: F4, matched_image: F4) -> tuple[Exposure, dict[str, float]]:
    """The difference with a variance that blank sky and subtracted stars bear out, and what they showed."""
    assert exposure.psf is not None
    measured = noise_ratio(exposure, filtered, matched_image)
    scale = max(measured, _LEAST_NOISE) ** 2
    sources = bright_sources(exposure, matched_image, scale)
    error = matching_error(exposure, matched_image, scale, sources)
    power = residual_power(exposure, matched_image, scale, sources)
    variance = with_matching_variance(exposure.variance, matched_image, scale, exposure.psf, error)
    summary = {"variance_scale": scale, "diff_mad_snr": measured, "matching_error": error, "residual_power": power}
    return dataclasses.replace(exposure, variance=variance), summary


def _coverage(science: Exposure, template: Exposure) -> float:
    usable, covered = _count_covered(science.mask, template.mask)
    return float(covered / max(usable, 1))


@njit(cache=True, nogil=True)
def _count_covered(science, template):  # type: ignore[no-untyped-def]
    usable = covered = 0
    for y in range(science.shape[0]):
        for x in range(science.shape[1]):
            if (science[y, x] & NO_DATA) == 0:
                usable += 1
                if (template[y, x] & NO_DATA) == 0:
                    covered += 1
    return usable, covered


def _finite(exposure: Exposure) -> Exposure:
    """Put 0 where a pixel has no value, so that it does not spread; its mask says so."""
    ok = np.isfinite(exposure.image) & np.isfinite(exposure.variance)
    if ok.all():
        return exposure
    image, variance = (np.where(ok, p, np.float32(0)) for p in (exposure.image, exposure.variance))
    return dataclasses.replace(
        exposure, image=image, variance=variance, mask=np.where(ok, exposure.mask, exposure.mask | NO_DATA)
    )


def _difference_mask(science: Exposure, template: Exposure, kernel: Kernel) -> I4:
    """Science mask, with the template's bad pixels as far as the kernel's core spreads them."""
    assert science.psf is not None
    centre, halo = kernel.centre(), round(1.5 * science.psf.fwhm_px())
    reach, border = min(_radius(centre, _CORE), _FARTHEST), _radius(centre, _WHOLE)
    mask = science.mask.copy()
    grow_planes(template.mask, HARD & ~SAT, reach, mask)
    grow_planes(template.mask, SAT, reach + halo, mask)
    grow_planes(science.mask, SAT, halo, mask)
    for side in (np.s_[:border], np.s_[-border:], np.s_[:, :border], np.s_[:, -border:]):
        mask[side] |= EDGE
    return mask


def _radius(kernel: F8, part: float) -> int:
    """Half-side, at least 2, of the square that holds so much of a kernel's absolute weight."""
    half, weight = len(kernel) // 2, np.abs(kernel)
    for r in range(2, half):
        if weight[half - r : half + r + 1, half - r : half + r + 1].sum() > part * weight.sum():
            return r
    return half


def _variances(science: Exposure, template: Exposure, kernel: Kernel, decorrelate: bool) -> tuple[F4, F4]:
    """Variance of the difference and of the matched template.

    Each is that of white noise with the same error of a PSF flux: after
    decorrelation the template's noise power is kernel_sum^2 times its own at
    every scale, without it sum(kernel^2) a pixel.
    """
    assert science.psf is not None
    centre, psf = kernel.centre(), science.psf.centre()
    fwhm = template.psf.fwhm_px() if template.psf is not None else science.psf.fwhm_px()
    # The variance is spread by the kernel's square.
    sigma = np.sqrt(max(science.psf.fwhm_px() ** 2 - fwhm**2, 0.0) / 2) / 2.3548
    spread = smooth(template.variance, sigma) if sigma > 0.3 else template.variance
    factor = centre.sum() ** 2 if decorrelate else (centre**2).sum()
    power = (fftconvolve(psf, centre[::-1, ::-1]) ** 2).sum() / (psf**2).sum()
    variance = np.multiply(spread, np.float32(factor))
    variance += science.variance
    # The smoothed plane is nobody else's, and becomes the other variance.
    own = spread if spread is not template.variance else np.empty_like(spread)
    return variance, np.multiply(spread, np.float32(power), out=own)
