"""Flux scale and registration of a template on a science image, from what both show."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.exposure import Exposure
from apflow.model.psf import polynomial_terms
from apflow.pixels.convolve import grow
from apflow.pixels.stamps import choose
from apflow.pixels.zogy_filters import Match

F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Sources used at most, and the least for polynomials of order 1.
_MOST, _MANY = 300, 30
#: Half-side of the patch about a source that is compared, pixels, with one more on each side for its gradient.
_PATCH = 3
#: Scatter beyond noise of ratios of fluxes, and of positions in pixels: of PSF models and of variable stars.
_RATIO_ERROR, _SHIFT_ERROR = 0.01, 0.02
#: Sources farther than this many sigma from the polynomial do not count; a shift of more pixels is none.
_CLIP, _FAR = 4.0, 1.5


def fit_match(science: Exposure, template: Exposure, bad: Bool) -> Match:
    """Scale and shift of the template's light relative to the science image's.

    Each image seen through the other's PSF has the same PSF, so that bright
    patches, be they stars or galaxies, are compared pixel by pixel.

    Parameters
    ----------
    science, template : `Exposure`
        On one grid, background subtracted, with PSFs.
    bad : `numpy.ndarray`, (ny, nx), bool
        Pixels that must not be used in either image.

    Returns
    -------
    `Match`
        Of order 1 with 30 sources or more, else constant; scale 1 and no
        shift where no source is in both images.
    """
    assert science.psf is not None and template.psf is not None
    reach = _PATCH + 1
    half = max(science.psf.size, template.psf.size) // 2
    x, y = choose(science, template, bad, half + reach, _MOST)
    near = grow(bad, reach + round(max(science.psf.fwhm_px(), template.psf.fwhm_px())))[y, x]
    x, y = x[~near], y[~near]
    images = [np.where(bad, np.float32(0), e.image) for e in (science, template)]
    rows = np.empty((len(x), 5))
    for i, (xi, yi) in enumerate(zip(x, y, strict=True)):
        to_science, to_template = template.psf.at(xi, yi), science.psf.at(xi, yi)
        first = _seen(images[0], to_science, xi, yi, reach)
        second = _seen(images[1], to_template, xi, yi, reach)
        noise = (
            float(e.variance[yi, xi]) * float((p**2).sum()) for e, p in ((science, to_science), (template, to_template))
        )
        rows[i] = _compare(first, second, *noise)
    return _polynomials(x.astype(float), y.astype(float), rows, science.shape)


def _compare(first: F8, second: F8, noise_first: float, noise_second: float) -> tuple[float, ...]:
    """Scale, shift and the errors of both, of two patches."""
    inner = np.s_[1:-1, 1:-1]
    gy, gx = (np.asarray(g)[inner].ravel() for g in np.gradient(first))
    design = np.stack([first[inner].ravel(), -gx, -gy], 1)
    (scale, bx, by), *_ = np.linalg.lstsq(design, second[inner].ravel(), rcond=None)
    peak = float(np.abs(first).max())
    # Neighbouring pixels share most of their noise: a patch is worth about one.
    error = np.sqrt(noise_second + scale**2 * noise_first) / peak
    slope = float(np.sqrt((gx**2 + gy**2).max())) / peak
    if not scale > 0 or not slope > 0:
        return np.nan, np.nan, np.nan, np.nan, np.nan
    return scale, bx / scale, by / scale, error, error / scale / slope


def _polynomials(x: F8, y: F8, rows: F8, shape: tuple[int, int]) -> Match:
    ok = np.isfinite(rows).all(1)
    ok[ok] = np.hypot(rows[ok, 1], rows[ok, 2]) < _FAR
    x, y, rows = x[ok], y[ok], rows[ok]
    if not len(x):
        return Match(np.ones(1), np.zeros((2, 1)))
    middle = np.median(rows[:, 0])
    order = 1 if len(x) >= _MANY else 0
    design = polynomial_terms(x, y, shape, order)
    sigma_scale = np.hypot(rows[:, 3], _RATIO_ERROR * middle)
    sigma_shift = np.hypot(rows[:, 4], _SHIFT_ERROR)
    scale, kept, scatter = _robust(design, rows[:, 0], sigma_scale)
    shift = np.stack([_robust(design, rows[:, i], sigma_shift)[0] for i in (1, 2)])
    return Match(scale, shift, kept, float(scatter / middle))


def _robust(design: F8, values: F8, sigma: F8) -> tuple[F8, int, float]:
    """Coefficients of weighted least squares without outliers, points kept and their scatter."""
    residual = values - np.median(values)
    for _ in range(5):
        spread = max(1.0, 1.4826 * float(np.median(np.abs(residual / sigma))))
        keep = np.abs(residual) <= _CLIP * spread * sigma
        fit = np.linalg.lstsq(design[keep] / sigma[keep, None], values[keep] / sigma[keep], rcond=None)[0]
        residual = values - design @ fit
    return fit, int(keep.sum()), float(1.4826 * np.median(np.abs(residual[keep])))


@njit(cache=True, nogil=True)
def _seen(image, psf, x0, y0, reach):  # type: ignore[no-untyped-def]
    """Patch of an image convolved with a PSF image."""
    side, half = 2 * reach + 1, psf.shape[0] // 2
    out = np.zeros((side, side))
    for v in range(side):
        for u in range(side):
            for j in range(psf.shape[0]):
                for i in range(psf.shape[1]):
                    out[v, u] += psf[j, i] * image[y0 + v - reach - j + half, x0 + u - reach - i + half]
    return out
