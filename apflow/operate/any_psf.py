"""The PSF of an image of which nothing is known, be it without a star to speak of."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure
from apflow.model.psf import Psf
from apflow.pixels.convolve import grow
from apflow.pixels.psf import fit_psf, psf_size
from apflow.pixels.stars import find_stars

#: S/N from which an object tells of the PSF.
_SNR = 15.0
#: PSF taken where there are no objects, FWHM in pixels.
_USUAL_FWHM = 3.0
#: Narrower than this is a hot pixel: a Gaussian's light would lie in one pixel.
_HOT_FWHM = 1.35
#: Objects that make a clump of sizes, at least, and as a part of the greatest clump.
_FEWEST, _PART = 2.5, 0.3
#: Width of a clump, as a part of its size, beside the sizes' errors.
_CLUMP = 0.04


def estimate_psf(exposure: Exposure, other: Exposure | None = None) -> tuple[Psf, float]:
    """PSF of an image from its sharpest objects, and their FWHM in pixels.

    Parameters
    ----------
    exposure : `Exposure`
        With the sky subtracted.
    other : `Exposure`, optional
        Another image on the same grid: objects that it does not show are
        cosmic rays or blemishes and do not count.

    Returns
    -------
    psf : `Psf`
        A Gaussian where the sharpest objects are too few or fit no profile.
    fwhm_px : `float`
    """
    found = find_stars(exposure, _SNR)
    found = found[found["fwhm"] > _HOT_FWHM]
    if other is not None:
        shown = grow(other.image > 4 * np.sqrt(other.variance), 2)
        found = found[shown[found["y"].round().astype(int), found["x"].round().astype(int)]]
    if found.empty:
        return gaussian(_USUAL_FWHM, exposure.shape), _USUAL_FWHM
    stars = found[sharpest(found)]
    fwhm = float(np.average(stars["fwhm"], weights=1 / _relative_error(stars) ** 2))
    if len(stars) >= _FEWEST:
        try:
            return fit_psf(exposure, stars, order=1), fwhm
        except DataError:
            pass
    return gaussian(fwhm, exposure.shape), fwhm


def sharpest(objects: pd.DataFrame) -> NDArray[np.bool_]:
    """Which objects belong to the clump of the smallest sizes; the smallest object alone where none clump.

    Stars all have one size and nothing real is smaller. Galaxies have any
    size: where they are many, the greatest clump may well be theirs.
    """
    fwhm, error = objects["fwhm"].to_numpy(), _relative_error(objects)
    width = np.hypot(error, error[:, None])
    closeness = np.exp(-0.5 * (np.log(fwhm[:, None] / fwhm) / width) ** 2).sum(1)
    clumped = closeness >= max(_FEWEST, _PART * float(closeness.max()))
    if not clumped.any():
        return np.asarray(fwhm == fwhm.min())
    order = np.argsort(fwhm, kind="stable")
    first = float(fwhm[order][clumped[order]][0])
    # From the clump's lower edge to its top.
    near = clumped & (fwhm < first * (1 + 4 * _CLUMP))
    centre = float(fwhm[near][np.argmax(closeness[near])])
    for _ in range(3):
        inside = np.abs(np.log(fwhm / centre)) < 2.5 * error
        centre = float(np.median(fwhm[inside]))
    return np.asarray(np.abs(np.log(fwhm / centre)) < 2.5 * error)


def _relative_error(objects: pd.DataFrame) -> NDArray[np.float64]:
    """Scatter of the sizes of stars, as a part of the size: of the PSF over the image, and of the noise."""
    return np.asarray(np.hypot(_CLUMP, 1 / objects["snr"].to_numpy()))


def gaussian(fwhm_px: float, shape: tuple[int, int]) -> Psf:
    """A round Gaussian that is the same all over an image."""
    half = psf_size(fwhm_px) // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    image = np.exp(-(u**2 + v**2) / 2 / (fwhm_px / 2.3548) ** 2)
    return Psf((image / image.sum())[None], shape)
