"""PSF matching after Alard & Lupton (1998) with a spatially varying kernel (Alard 2000)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from apflow.errors import DataError
from apflow.model.exposure import Exposure
from apflow.model.kernel import Kernel, KernelStamps
from apflow.model.psf import polynomial_terms
from apflow.pixels.basis import Basis, convolved, make_basis
from apflow.pixels.convolve import grow
from apflow.pixels.decorrelation import sky_variances
from apflow.pixels.planes import unusable
from apflow.pixels.stamps import choose
from apflow.pixels.surface import Surface

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

#: Stamps above which the kernel varies to order 2, below which it does not vary, and below which the PSF models help.
_MANY, _FEW, _VERY_FEW = 150, 8, 6
#: Width of the prior on the coefficients, in kernel sums: of the constant and of the spatial terms.
_PRIOR, _PRIOR_SPATIAL = 10.0, 1.0
#: Error of any kernel model, of the flux: keeps the brightest star from deciding alone.
_MODEL_ERROR = 0.01
_REJECT_SIGMA = 4.0
#: A template is noisier than the science image when its sky's variance is so many times that one's.
_NOISIER = 1.5
#: Combinations of unknowns that are mostly noise keep this part of their power.
_LEAST_SIGNAL = 0.5


@dataclass(frozen=True)
class Stamps:
    """What the fit knows of each stamp: positions, data, weights and the bases convolved with the template."""

    x: I8
    y: I8
    data: F4  # (ns, npix)
    weight: F4  # (ns, npix)
    model: F4  # (ns, nb, npix)
    noise: F4  # (ns, npix) variance of the template's pixels
    core: NDArray[np.bool_]  # (npix,) the object's own pixels


def fit_kernel(
    science: Exposure, template: Exposure, *, kernel_order: int | None = None, background_order: int = 2
) -> tuple[Kernel, Surface, dict[str, float]]:
    """Fit the kernel that makes a template look like a science image.

    Parameters
    ----------
    science, template : `Exposure`
        On one grid, background subtracted; their PSFs choose the basis.
    kernel_order : `int`, optional
        Order of the spatial variation of the kernel's shape; its sum is
        constant. 1 by default, and 2 above 150 good stamps. Constant with
        fewer than 8 stamps; with fewer than 6 the PSF models stand in as one
        more stamp.
    background_order : `int`
        Order of the polynomial background difference.

    Returns
    -------
    kernel : `Kernel`
    background : `Surface`
        Of the science image over that of the template.
    summary : `dict`
        kernel_sum, n_stamps, n_stamps_rejected, bad_stamps (the part of all),
        kernel_chi2 (per degree of freedom, median over stamps), kernel_order.

    Raises
    ------
    DataError
        The images differ in shape, or there is neither a stamp nor a pair of PSFs.
    """
    if science.shape != template.shape:
        raise DataError(f"template of shape {template.shape} on a science image of shape {science.shape}: must agree")
    fwhm = science.psf.fwhm_px() if science.psf is not None else 4.0
    template_fwhm = template.psf.fwhm_px() if template.psf is not None else 0.8 * fwhm
    basis = make_basis(fwhm, template_fwhm)
    stamps = _cut(science, template, basis, fwhm)
    n = len(stamps.x)
    if n < _VERY_FEW:
        stamps, background_order = _with_model_stamp(stamps, science, template, basis), min(background_order, 0)
    good = _first_cut(stamps)
    for _ in range(6):
        order = _order(kernel_order, int(good[:n].sum()))
        levels = background_order if good.sum() >= _FEW else 0
        solution = _solve(stamps, good, basis, order, levels, science.shape)
        residual = _residuals(stamps, solution)
        stamps = _without_neighbours(stamps, residual)
        chi2 = _core_chi2(stamps, residual)
        keep = _like_the_others(stamps, chi2, good)
        if (keep == good).all() or keep.sum() < min(_VERY_FEW, n):
            break
        good = keep
    if _is_noisier(template, science, solution):
        # Only now: plain least squares is the milder judge of stamps, and keeps more of them.
        solution = _solve(stamps, good, basis, order, levels, science.shape, unbiased=True)
    table = KernelStamps(stamps.x[:n], stamps.y[:n], good[:n], chi2[:n])
    kernel = Kernel(np.tensordot(solution.shape_terms, basis.images, 1), order, science.shape, table)
    summary = {
        "kernel_sum": float(solution.shape_terms[0, 0]),
        "n_stamps": float(good[:n].sum()),
        "n_stamps_rejected": float(n - good[:n].sum()),
        "bad_stamps": float((n - good[:n].sum()) / max(n, 1)),
        "kernel_chi2": float(np.median(chi2[good])),
        "kernel_order": float(order),
    }
    return kernel, Surface(solution.background, solution.background_order, science.shape), summary


def _is_noisier(template: Exposure, science: Exposure, solution: _Solution) -> bool:
    noise, template_noise = sky_variances(science, template)
    return bool(template_noise * solution.shape_terms[0, 0] ** 2 > _NOISIER * noise)


def _order(wanted: int | None, stamps: int) -> int:
    """Order of the spatial variation that so many stamps bear."""
    if stamps < _FEW:
        return 0
    return wanted if wanted is not None else 2 if stamps > _MANY else 1


def _cut(science: Exposure, template: Exposure, basis: Basis, fwhm: float) -> Stamps:
    """Choose the stamps and cut them out."""
    reach = basis.images.shape[-1] // 2
    half = int(np.clip(np.ceil(2.5 * fwhm + 3), 10, 22))
    bad = unusable(science.mask) | grow(unusable(template.mask), 3)
    most = int(np.clip(80 * science.image.size / 512**2, 80, 300))
    x, y = choose(science, template, bad, half + reach, most)
    planes = (science.image, science.variance, template.variance, bad)
    data, noise, template_noise, masked = (_stack(plane, x, y, half) for plane in planes)
    # The kernel averages the template's noise over its own area.
    noise = noise + template_noise * np.float32(min(1.0, 1 / (4 * np.pi * basis.match_sigma_px**2)))
    model = convolved(basis, np.nan_to_num(_stack(template.image, x, y, half + reach)))
    # Averaged over 5 x 5 pixels: photon noise in the weights would bias the fluxes.
    noise = _boxed(noise) + (_MODEL_ERROR * model[:, 0]) ** 2
    weight = np.where(masked | ~(noise > 0), 0, 1 / np.where(noise > 0, noise, 1)).astype(np.float32)
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    core = (u**2 + v**2 <= (1.5 * fwhm) ** 2).ravel()
    pixels = (2 * half + 1) ** 2
    data = np.where(masked, 0, data).astype(np.float32).reshape(len(x), pixels)
    model = model.reshape(len(x), len(basis.images), pixels)
    template_noise = np.where(masked, 0, template_noise).astype(np.float32).reshape(len(x), pixels)
    return Stamps(x, y, data, weight.reshape(len(x), pixels), model, template_noise, core)


def _stack(plane: NDArray[Any], x: I8, y: I8, half: int) -> NDArray[Any]:
    out = np.empty((len(x), 2 * half + 1, 2 * half + 1), plane.dtype)
    for i in range(len(x)):
        out[i] = plane[y[i] - half : y[i] + half + 1, x[i] - half : x[i] + half + 1]
    return out


def _boxed(noise: F4) -> F4:
    padded = np.pad(noise, ((0, 0), (2, 2), (2, 2)), "edge")
    n = noise.shape[-1]
    rows = np.sum([padded[:, j : j + n] for j in range(5)], 0)
    return np.asarray(np.sum([rows[:, :, i : i + n] for i in range(5)], 0) / np.float32(25))


def _with_model_stamp(stamps: Stamps, science: Exposure, template: Exposure, basis: Basis) -> Stamps:
    """Add the two PSF models as a stamp of S/N 100, for images with next to no stars."""
    if science.psf is None or template.psf is None:
        raise DataError(f"{len(stamps.x)} objects to match PSFs with and no PSF models; at least {_VERY_FEW} needed")
    side = round(np.sqrt(len(stamps.core)))
    reach = basis.images.shape[-1] // 2
    ratio = float(np.median(_flux_ratios(stamps))) if len(stamps.x) else 1.0
    data = ratio * _fitted(science.psf.centre(), side)
    patch = _fitted(template.psf.centre(), side + 2 * reach)
    model = convolved(basis, patch[None].astype(np.float32)).reshape(1, len(basis.images), -1)
    weight = np.full((1, side * side), 1e4 * (data**2).sum() ** -1, np.float32)
    ny, nx = science.shape
    return Stamps(
        np.append(stamps.x, nx // 2),
        np.append(stamps.y, ny // 2),
        np.concatenate([stamps.data, data.reshape(1, -1).astype(np.float32)]),
        np.concatenate([stamps.weight, weight]),
        np.concatenate([stamps.model, model]),
        np.concatenate([stamps.noise, np.zeros_like(weight)]),
        stamps.core,
    )


def _fitted(image: F8, side: int) -> F8:
    """An image with an odd side cut or padded to another odd side."""
    missing = (side - len(image)) // 2
    return np.pad(image, missing) if missing >= 0 else image[-missing:missing, -missing:missing]


def _first_cut(stamps: Stamps) -> NDArray[np.bool_]:
    """Stamps whose flux ratio is like the others': keeps variable stars out of the first fit.

    No kernel is known yet, so that sharp objects differ from extended ones by some part of their flux.
    """
    ratio = _flux_ratios(stamps)
    middle = np.median(ratio)
    spread = 1.4826 * np.median(np.abs(ratio - middle))
    good = np.abs(ratio - middle) < max(5 * spread, 0.25 * abs(middle))
    return np.asarray(good if good.any() else ~good)


def _flux_ratios(stamps: Stamps) -> F8:
    """Flux of each stamp's object over that of the template."""
    used = (stamps.weight > 0) & stamps.core
    flux, reference = (np.where(used, plane, 0).sum(1) for plane in (stamps.data, stamps.model[:, 0]))
    return np.asarray(flux / np.where(np.abs(reference) > 0, reference, np.inf), np.float64)


def _like_the_others(stamps: Stamps, chi2: F8, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Stamps whose object fits, within noise or as well in proportion as other bright ones do.

    Without the second way in, a crowd of faint or extended objects would vote
    out the few sharp, bright ones that show what the kernel must be.
    """
    level = np.median(chi2[good])
    spread = max(1.4826 * float(np.median(np.abs(chi2[good] - level))), np.sqrt(2 / stamps.core.sum()))
    used = (stamps.weight > 0) & stamps.core
    power = np.where(used, stamps.weight * stamps.model[:, 0] ** 2, 0).sum(1)
    excess = np.maximum(chi2 - level, 0) * used.sum(1)
    relative = np.sqrt(excess / np.maximum(power, 1e-30))
    bright = good & (power >= np.median(power[good]))
    return np.asarray((chi2 < level + _REJECT_SIGMA * spread) | (relative < max(3 * np.median(relative[bright]), 0.01)))


@dataclass(frozen=True)
class _Solution:
    shape_terms: F8  # (nterms, nb)
    background: F8
    background_order: int
    fitted: F8  # (ns, nb): coefficients at each stamp
    level: F8  # (ns,) background at each stamp


def _solve(
    stamps: Stamps,
    good: NDArray[np.bool_],
    basis: Basis,
    order: int,
    background_order: int,
    shape: tuple[int, int],
    *,
    unbiased: bool = False,
) -> _Solution:
    """Regularised weighted least squares for kernel and background; see `_less_noise` for `unbiased`."""
    nb = len(basis.images)
    x, y = stamps.x.astype(float), stamps.y.astype(float)
    terms, levels = polynomial_terms(x, y, shape, order), polynomial_terms(x, y, shape, background_order)
    nt, nl = terms.shape[1], levels.shape[1]
    # Unknowns: the sum, the other images by spatial term, the background.
    image = np.concatenate([[0], np.tile(np.arange(1, nb), nt), np.full(nl, nb)])
    spatial = np.concatenate([[0], np.repeat(np.arange(nt), nb - 1), np.arange(nl)])
    columns = np.concatenate([stamps.model[good], np.ones((good.sum(), 1, stamps.core.size), np.float32)], 1)
    weighted = columns * stamps.weight[good][:, None]
    normal = np.matmul(weighted, columns.swapaxes(1, 2)).astype(np.float64)
    right = np.matmul(weighted, stamps.data[good][:, :, None])[:, :, 0].astype(np.float64)
    # Sums over stamps of normal equations times pairs of spatial functions; each unknown has one of them.
    functions = np.concatenate([terms, levels], 1)[good]
    function = np.where(image < nb, spatial, nt + spatial)
    pairs = functions[:, :, None] * functions[:, None]
    sums = np.tensordot(normal, pairs, (0, 0))
    matrix = sums[image[:, None], image, function[:, None], function]
    vector = np.tensordot(right, functions, (0, 0))[image, function]
    total = vector[0] / matrix[0, 0]
    prior = np.where(spatial == 0, _PRIOR, _PRIOR_SPATIAL) * abs(total)
    prior[(image == 0) | (image == nb)] = np.inf
    matrix[np.diag_indices_from(matrix)] += prior**-2.0
    scale = np.sqrt(np.diag(matrix))
    scale[scale == 0] = 1.0
    normed = matrix / np.outer(scale, scale) + 1e-10 * np.eye(len(scale))
    if unbiased:
        power = (stamps.weight[good] * stamps.noise[good]).sum(1, dtype=np.float64)
        shared = np.pad(np.einsum("iyx,jyx->ij", basis.images, basis.images, dtype=np.float64), (0, 1))
        noise = np.tensordot(power, pairs, (0, 0))[function[:, None], function] * shared[image[:, None], image]
        theta = _less_noise(normed, noise / np.outer(scale, scale), vector / scale) / scale
    else:
        theta = scipy.linalg.solve(normed, vector / scale, assume_a="pos") / scale
    shape_terms = np.zeros((nt, nb))
    shape_terms[0, 0] = theta[0]
    shape_terms[:, 1:] = theta[1 : 1 + nt * (nb - 1)].reshape(nt, nb - 1)
    background = theta[1 + nt * (nb - 1) :]
    return _Solution(shape_terms, background, background_order, terms @ shape_terms, levels @ background)


def _less_noise(matrix: F8, noise: F8, vector: F8) -> F8:
    """Solution of normal equations, the matrix less the power that noise has in it.

    Noise in the models adds to their power and not to what they share with
    the data, so that least squares makes the kernel too faint (regression
    dilution): by 1.5 % in simulated pairs whose template is the noisier
    image, and 0.6 % so. In other pairs the noise that the kernel gains costs
    more than the bias.
    """
    part, modes = scipy.linalg.eigh(noise, matrix)
    return np.asarray(modes @ ((modes.T @ vector) / np.maximum(1 - part, _LEAST_SIGNAL)))


def _residuals(stamps: Stamps, solution: _Solution) -> F4:
    """Data minus model, (ns, npix)."""
    model = np.matmul(solution.fitted[:, None].astype(np.float32), stamps.model)[:, 0]
    return np.asarray(stamps.data - model - solution.level[:, None].astype(np.float32))


def _without_neighbours(stamps: Stamps, residual: F4) -> Stamps:
    """Leave out pixels beside the objects that the model does not explain: changes of other objects."""
    off = ~stamps.core & (stamps.weight * residual**2 > _REJECT_SIGMA**2)
    side = round(np.sqrt(stamps.core.size))
    off = uniform_filter(off.reshape(-1, side, side).astype(np.float32), (0, 3, 3)).reshape(off.shape) > 0.2
    return dataclasses.replace(stamps, weight=np.where(off & ~stamps.core, np.float32(0), stamps.weight))


def _core_chi2(stamps: Stamps, residual: F4) -> F8:
    """Chi^2 per pixel of each stamp's object."""
    w = stamps.weight[:, stamps.core]
    squared = w * residual[:, stamps.core] ** 2
    return np.asarray(squared.sum(1) / np.maximum((w > 0).sum(1), 1), np.float64)
