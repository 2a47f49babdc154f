"""Sky and noise of two images of one field, from their difference: what both show is in neither."""

from __future__ import annotations

import dataclasses

import numpy as np
import sep
from numpy.typing import NDArray

from apflow.model.exposure import Exposure
from apflow.pixels.convolve import grow, smooth
from apflow.pixels.planes import unusable

F4 = NDArray[np.float32]
Bool = NDArray[np.bool_]

#: Pixels of more sigma are light; pixels of so many in both images give the ratio of their fluxes.
_LIGHT, _BRIGHT = 3.0, 20.0
#: Pixels that the ratio needs, and blank ones that sky and noise need, as a part of all.
_LEAST, _LEAST_BLANK = 30, 0.05
#: Sides of the cells of sky and noise, as parts of the image's shorter side and in pixels.
_CELLS, _SMALLEST, _LARGEST = 6, 32, 64
#: The noise at the scale of a PSF over what the variances say is no less and no more than this.
_FACTORS = (0.5, 5.0)


def settled(science: Exposure, template: Exposure, fwhm_px: float) -> tuple[Exposure, Exposure]:
    """The two images with one sky between them, and variances that are true at the scale of a PSF.

    A sky estimated in each image alone takes some of the light of galaxies and
    nebulae with it, not the same in both. Where pixels share their noise, as
    resampling and stacking leave it, it is larger over a PSF than the pixels'
    own variances say, and not everywhere by as much. Both show in the difference
    of the two, where nothing else is blank sky's.

    Parameters
    ----------
    science, template : `Exposure`
        On one grid, with the sky subtracted.
    fwhm_px : `float`
        FWHM of what noise is looked at, pixels.

    Returns
    -------
    science, template : `Exposure`
        The former less the sky of the difference, both with the same factor in
        their variances, whose median ``summary`` has as noise_factor.
        As they were, where there is little blank sky.
    """
    bad = unusable(science.mask) | unusable(template.mask)
    shown = [e.image > np.float32(_LIGHT) * np.sqrt(e.variance) for e in (science, template)]
    smoothed = [smooth(np.where(bad, np.float32(0), e.image), fwhm_px / 2.3548) for e in (science, template)]
    ratio = _ratio(science, template, bad)
    variance = science.variance + np.float32(ratio**2) * template.variance
    difference = science.image - np.float32(ratio) * template.image
    hidden = bad | grow(shown[0] & shown[1], round(fwhm_px))
    for image in smoothed:
        level = float(np.median(image[~bad]))
        spread = 1.4826 * float(np.median(np.abs(image[~bad] - level)))
        hidden |= image > level + 2 * _LIGHT * spread
    if (~hidden).mean() < _LEAST_BLANK:
        return science, template
    side = int(np.clip(min(science.shape) // _CELLS, _SMALLEST, _LARGEST))
    sky = _mesh(difference, hidden, side).back(dtype=np.float32)
    factor = _noise(difference - sky, variance, hidden, fwhm_px / 2.3548, side)
    middle = float(np.median(factor[~hidden]))
    square = factor**2
    science, template = (
        dataclasses.replace(e, variance=e.variance * square, summary={**e.summary, "noise_factor": middle})
        for e in (science, template)
    )
    return dataclasses.replace(science, image=science.image - sky), template


def _ratio(science: Exposure, template: Exposure, bad: Bool) -> float:
    """Science flux over template flux of bright pixels, 1 where there are few."""
    both = ~bad
    for e in (science, template):
        both &= e.image > np.float32(_BRIGHT) * np.sqrt(e.variance)
    if both.sum() < _LEAST:
        return 1.0
    # Of sums and not of pixels: seeing moves light between pixels.
    return float(science.image[both].sum(dtype=float) / template.image[both].sum(dtype=float))


def _mesh(image: F4, hidden: Bool, side: int) -> sep.Background:
    return sep.Background(np.ascontiguousarray(image), mask=hidden, bw=side, bh=side)


def _noise(difference: F4, variance: F4, hidden: Bool, sigma: float, side: int) -> F4:
    """Scatter of smoothed blank sky over what the variances of its pixels give, (ny, nx)."""
    blank = ~hidden
    seen = smooth(np.where(blank, difference, np.float32(0)), sigma)
    # The square of a Gaussian is one of 1 / sqrt(2) of its width, and of sum 1 / (4 pi sigma^2).
    expected = smooth(np.where(blank, variance, np.float32(0)), sigma / np.sqrt(2)) / np.float32(4 * np.pi * sigma**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = np.where(expected > 0, seen / np.sqrt(expected), np.float32(0)).astype(np.float32)
    rms = _mesh(snr, grow(hidden, max(round(sigma), 1)), side).rms(dtype=np.float32)
    return np.asarray(np.clip(rms, *_FACTORS))
