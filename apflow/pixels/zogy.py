"""Proper image subtraction, after Zackay, Ofek & Gal-Yam (2016, ApJ 830, 27)."""

from __future__ import annotations

import dataclasses

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError, NoTemplate
from apflow.model.exposure import Exposure, Mask
from apflow.model.kernel import Kernel
from apflow.model.products import Difference
from apflow.model.psf import Psf, polynomial_terms
from apflow.pixels.convolve import grow, kernel_transform, smooth
from apflow.pixels.interpolate import interpolate
from apflow.pixels.planes import EDGE, HARD, NO_DATA, SAT, bad_bits, unusable
from apflow.pixels.residuals import matching_error, noise_ratio, residual_background, with_matching_variance
from apflow.pixels.zogy_filters import TILE, Filters, apply, image_of, make_filters
from apflow.pixels.zogy_match import fit_match

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
Bool = NDArray[np.bool_]

#: Positions a side at which PSF and kernel are made, and the order of the polynomial through them.
_NODES, _ORDER = 5, 2
#: Side of the kernel kept with the difference, and what the difference's PSF has beyond the images', pixels.
_KERNEL, _WIDER = 31, 16
#: A saturated star's light is replaced as far as this many FWHM from its saturated pixels: PSFs are wrong nearer.
_SATURATED_FWHM = 3.0
#: Noise that is less than this part of what the variances say is not measured: the images share theirs.
_LEAST_NOISE = 0.2


def subtract_zogy(
    science: Exposure, template: Exposure, *, min_coverage: float = 0.2, background_order: int = 2
) -> Difference:
    """The proper difference of two images.

    Its noise is white wherever that of the images is, and the S/N of its
    PSF-matched map is the most that a linear statistic can have for a point
    source, whichever image is the sharper. It needs PSFs that are right: no
    kernel is fitted to the pixels. Flux scale and registration are, from the
    sources that both images show.

    Parameters
    ----------
    science, template : `Exposure`
        On one grid, background subtracted, with PSFs.
    min_coverage : `float`
        Least fraction of the science image's usable pixels with template data.
    background_order : `int`
        Of the polynomial subtracted from the difference.

    Returns
    -------
    `Difference`
        On the science image's flux scale. ``exposure.psf`` is P_D, so that
        matched filtering gives the paper's S; ``exposure.variance`` is scaled
        to the scatter of blank sky and grown near bright sources by what is
        left of them, in place of the terms of the paper's S_corr.
        `kernel` is what the template would be convolved with to have the science
        image's PSF and scale, P_n / (F_r P_r), and `matched` the template
        so convolved; where the template is broader that is held back from
        deconvolving, and scaled so that PSF fluxes with the science image's PSF are right.
        ``exposure.summary`` has kernel_sum, n_stamps, flux_scatter, residual_shift_x_px, residual_shift_y_px,
        template_coverage, variance_scale, diff_mad_snr and matching_error.

    Raises
    ------
    NoTemplate
        Too little coverage.
    DataError
        Shapes differ, a PSF is missing, or no pixel is good in both.
    """
    if science.shape != template.shape:
        raise DataError(f"template of shape {template.shape} on a science image of shape {science.shape}: must agree")
    if science.psf is None or template.psf is None:
        which = "science image" if science.psf is None else "template"
        raise DataError(f"the {which} has no PSF; proper subtraction needs those of both")
    coverage = _coverage(science, template)
    if coverage < min_coverage:
        raise NoTemplate(f"the template covers {coverage:.3f} of the detector's good pixels; at least {min_coverage}")
    bad_science, bad_template = (_bad(e.image, e.variance, e.mask) for e in (science, template))
    bad = bad_science | bad_template
    noise = _sky_variances(science, template, bad)
    match = fit_match(science, template, bad)
    filters = make_filters(science.psf, template.psf, match, noise)
    light = _filled_template(science, template, bad_science, bad_template, filters)
    saturated = ((science.mask | template.mask) & SAT) != 0
    replaced = bad | grow(saturated, round(_SATURATED_FWHM * max(science.psf.fwhm_px(), template.psf.fwhm_px())))
    clean = np.where(bad_science, np.float32(0), science.image)
    image, matched, filtered = apply(filters, clean, light, replaced)
    psf, kernel, correction = _models(filters)
    mask = _mask(science, template, bad, replaced, saturated, kernel)
    surface = residual_background(image, unusable(mask), background_order)
    image, filtered = surface.taken_from(image), surface.taken_from(filtered)
    image[bad & ~saturated] = 0
    variance, of_matched = _variances(science, template, filters)
    scale, dx, dy = match.at((science.shape[1] - 1) / 2, (science.shape[0] - 1) / 2, science.shape)
    summary = {
        "kernel_sum": 1 / scale,
        "n_stamps": float(match.stars),
        "flux_scatter": match.error,
        "residual_shift_x_px": dx,
        "residual_shift_y_px": dy,
        "template_coverage": coverage,
    }
    exposure = Exposure(image, variance, mask, science.unit, science.wcs, psf, science.info, summary)
    matched *= np.float32(correction)
    of_matched *= np.float32(correction**2)
    warped = Exposure(matched, of_matched, mask, science.unit, science.wcs, science.psf, science.info, template.summary)
    return Difference(_with_errors(exposure, filtered, matched), warped, kernel, filtered)


def _with_errors(exposure: Exposure, filtered: F4, matched: F4) -> Exposure:
    """The difference with its variance as measured on blank sky, and more near bright sources."""
    assert exposure.psf is not None
    measured = noise_ratio(exposure, filtered, matched)
    scale = max(measured, _LEAST_NOISE) ** 2
    error = matching_error(dataclasses.replace(exposure, variance=exposure.variance * np.float32(scale)), matched)
    variance = with_matching_variance(exposure.variance, matched, scale, exposure.psf, error)
    summary = {"variance_scale": scale, "diff_mad_snr": measured, "matching_error": error}
    return dataclasses.replace(exposure, variance=variance, summary={**exposure.summary, **summary})


def _coverage(science: Exposure, template: Exposure) -> float:
    usable = (science.mask & NO_DATA) == 0
    covered = np.count_nonzero(usable & ((template.mask & NO_DATA) == 0))
    return float(covered / max(int(np.count_nonzero(usable)), 1))


def _sky_variances(science: Exposure, template: Exposure, bad: Bool) -> tuple[float, float]:
    part = np.s_[::5, ::5]
    ok = ~bad[part]
    if not ok.any():
        raise DataError("no pixel is good in both science image and template")
    return float(np.median(science.variance[part][ok])), float(np.median(template.variance[part][ok]))


def _filled_template(science: Exposure, template: Exposure, bad_n: Bool, bad_r: Bool, filters: Filters) -> F4:
    """The template, its bad pixels taken from the science image where that is good there."""
    if not bad_r.any():
        return template.image
    middle = (science.shape[1] - 1) / 2, (science.shape[0] - 1) / 2
    scale = np.float32(filters.match.at(*middle, science.shape)[0])
    filled = np.where(bad_r & ~bad_n, scale * science.image, template.image)
    both = bad_r & bad_n
    # Clipped light of a saturated star is nearer to its light than what is about it.
    both &= ((template.mask & SAT) == 0) | ~np.isfinite(template.image)
    filled[both] = 0
    return interpolate(filled, np.where(both, np.int32(NO_DATA), np.int32(0)), NO_DATA)


def _mask(science: Exposure, template: Exposure, bad: Bool, replaced: Bool, saturated: Bool, kernel: Kernel) -> I4:
    """Planes of both images, those of wrong pixels as far as the kernel's core spreads them."""
    reach = _core_radius(kernel.centre())
    mask = science.mask.copy()
    present = int(np.bitwise_or.reduce(template.mask, None))
    for plane in (Mask.BAD, Mask.CR, Mask.NO_DATA):
        if present & plane:
            _set(mask, grow(bad & ((template.mask & plane) != 0), reach), plane)
    _set(mask, bad & ((mask & HARD) == 0), Mask.NO_DATA)
    _set(mask, (replaced & ~bad) | saturated, Mask.SAT)
    for border in (np.s_[:reach], np.s_[-reach:], np.s_[:, :reach], np.s_[:, -reach:]):
        mask[border] |= EDGE
    return mask


def _set(mask: I4, where: Bool, plane: Mask) -> None:
    np.bitwise_or(mask, np.int32(plane), out=mask, where=where)


@njit(cache=True, nogil=True)
def _bad(image, variance, mask):  # type: ignore[no-untyped-def]
    """True where a pixel has no value of its own or no variance."""
    out = np.empty(image.shape, np.bool_)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            out[y, x] = bad_bits(mask[y, x]) or not np.isfinite(image[y, x]) or not np.isfinite(variance[y, x])
    return out


def _core_radius(kernel: F8) -> int:
    """Half-side of the square that holds 90 % of a kernel's squared weight, 2 to 6 pixels."""
    half = len(kernel) // 2
    weight = kernel**2
    for r in range(2, 6):
        if weight[half - r : half + r + 1, half - r : half + r + 1].sum() > 0.9 * weight.sum():
            return r
    return 6


def _models(filters: Filters) -> tuple[Psf, Kernel, float]:
    """PSF of the difference, the matching kernel, and what the matched template lacks of a star's PSF flux."""
    ny, nx = filters.shape
    x, y = (c.ravel() for c in np.meshgrid(np.linspace(0, nx - 1, _NODES), np.linspace(0, ny - 1, _NODES)))
    size = max(filters.science.size, filters.template.size) + _WIDER
    psfs, kernels = [], []
    for xi, yi in zip(x, y, strict=True):
        _, _, match, psf = filters.at(xi, yi)
        psfs.append(image_of(psf, size))
        kernels.append(image_of(match, _KERNEL))
    order = _ORDER if filters.science.order + filters.template.order else 0
    inverse = np.linalg.pinv(polynomial_terms(x, y, filters.shape, order))
    terms, kernel = (np.tensordot(inverse, np.stack(images), 1) for images in (psfs, kernels))
    lacking = _lacking(filters)
    return Psf(terms, filters.shape), Kernel(lacking * kernel, order, filters.shape), lacking


def _lacking(filters: Filters) -> float:
    """PSF flux of a star over what the matched template shows of it, at the image's middle."""
    middle = (filters.shape[1] - 1) / 2, (filters.shape[0] - 1) / 2
    unshifted = dataclasses.replace(filters.match, shift=np.zeros_like(filters.match.shift))
    scale, _, _ = unshifted.at(*middle, filters.shape)
    to_n, _, match, psf = dataclasses.replace(filters, match=unshifted).at(*middle)
    wanted = psf / to_n
    seen = match * kernel_transform(filters.template.at(*middle)[None], (TILE, TILE))[0] * scale
    return float((np.abs(wanted) ** 2).sum() / (wanted.conj() * seen).sum().real)


def _variances(science: Exposure, template: Exposure, filters: Filters) -> tuple[F4, F4]:
    """Variance of the difference and of the matched template: of white noise with the same errors of PSF fluxes."""
    ny, nx = filters.shape
    to_n, to_r, match, psf = filters.at((nx - 1) / 2, (ny - 1) / 2)
    own = np.abs(psf / to_n) ** 2
    power = np.abs(psf) ** 2
    part_n, part_r = ((power * np.abs(k) ** 2).sum() / power.sum() for k in (to_n, to_r))
    part_m = (own * np.abs(match) ** 2).sum() / own.sum()
    spread_n, spread_r = (_smoothed(e.variance, _spread(k)) for e, k in ((science, to_n), (template, to_r)))
    return _sum(spread_n, spread_r, np.float32(part_n), np.float32(part_r)), np.float32(part_m) * spread_r


@njit(cache=True, fastmath=True, nogil=True)
def _sum(a, b, weight_a, weight_b):  # type: ignore[no-untyped-def]
    out = np.empty_like(a)
    for y in range(a.shape[0]):
        for x in range(a.shape[1]):
            out[y, x] = weight_a * a[y, x] + weight_b * b[y, x]
    return out


def _smoothed(variance: F4, sigma: float) -> F4:
    """A variance spread by a filter, the same array where that spreads next to nothing; 0 where it is not finite."""
    if not np.isfinite(variance.sum(dtype=np.float64)):
        variance = np.where(np.isfinite(variance), variance, np.float32(0))
    return smooth(variance, sigma) if sigma > 0 else variance


def _spread(transfer: NDArray[np.complex64]) -> float:
    """Width of a filter's square, pixels: what it does to a variance."""
    weight = image_of(transfer, _KERNEL) ** 2
    v, u = np.mgrid[-(_KERNEL // 2) : _KERNEL // 2 + 1, -(_KERNEL // 2) : _KERNEL // 2 + 1]
    sigma = float(np.sqrt((weight * (u**2 + v**2)).sum() / weight.sum() / 2))
    return sigma if sigma > 0.3 else 0.0
