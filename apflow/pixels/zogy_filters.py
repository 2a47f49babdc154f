"""The filters of proper image subtraction in Fourier space, and their application tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray

from apflow.model.psf import Psf, polynomial_terms
from apflow.pixels.convolve import kernel_transform

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
C8 = NDArray[np.complex64]
Bool = NDArray[np.bool_]

#: Side of an overlap-save tile, pixels: its planes stay in the cache.
TILE = 256
#: Least and greatest overlap on each side, pixels: what the filters' tails reach.
_HALO = (24, 64)
#: Spatial frequencies that both PSFs let pass less than this are subtracted as they are.
_FLOOR = 3e-3
#: Where the template's PSF lets pass this many times less than the science image's, it is not amplified to it.
_GAIN = 4.0


@dataclass(frozen=True, eq=False)
class Match:
    """How the template lies on the science image, as polynomials over the image.

    Attributes
    ----------
    scale : `numpy.ndarray`
        The template's flux over the science image's; terms as
        `apflow.model.psf.polynomial_terms`.
    shift : `numpy.ndarray`, (2, n)
        x and y in the template less those in the science image, pixels.
    stars : `int`
        Sources that say so.
    error : `float`
        Scatter of the ratios of their fluxes about the polynomial, as a fraction.
    """

    scale: F8
    shift: F8
    stars: int = 0
    error: float = 0.0

    def at(self, x: float, y: float, shape: tuple[int, int]) -> tuple[float, float, float]:
        """Scale and shift (x, y) at a position of an image of the given shape."""
        columns = np.column_stack([self.scale, *self.shift])
        order = {1: 0, 3: 1}[len(columns)]
        scale, dx, dy = polynomial_terms(x, y, shape, order) @ columns
        return float(scale), float(dx), float(dy)


@dataclass(frozen=True, eq=False)
class Filters:
    """Transfer functions at any position of an image.

    With the PSFs P_n and P_r of science image and template, their noise
    variances s_n and s_r and the template's flux scale b = F_r / F_n, the
    proper difference of Zackay, Ofek & Gal-Yam (2016, equation 13), divided by
    its F_D so that it is on the science image's scale, is K_n N - K_r R with

        K_n = b |P_r| / (F_D d),   K_r = P_n P_r* / |P_r| / (F_D d),
        d^2 = s_n b^2 |P_r|^2 + s_r |P_n|^2,   F_D = b / sqrt(s_n b^2 + s_r).

    The phase of P_r is taken out of both, which changes neither noise nor
    signal and leaves sources where the science image has them.
    """

    science: Psf
    template: Psf
    match: Match
    noise: tuple[float, float]
    shape: tuple[int, int]
    hats: tuple[C8, C8]

    @property
    def halo(self) -> int:
        """Overlap of the tiles on each side, pixels."""
        return int(np.clip(max(self.science.size, self.template.size) // 2 + 8, *_HALO))

    def at(self, x: float, y: float) -> tuple[C8, C8, C8, C8]:
        """K_n, K_r, the template's match W to the science PSF, and P_D = K_n P_n: (TILE, TILE // 2 + 1) each.

        W = P_n / (b P_r), held back where that amplifies.
        """
        weights = []
        for psf in (self.science, self.template):
            w = polynomial_terms(x, y, psf.shape, psf.order)
            weights.append((w / (w @ psf.terms.sum((1, 2)))).astype(np.float32))
        scale, dx, dy = self.match.at(x, y, self.shape)
        ramps = (np.exp(2j * np.pi * np.fft.rfftfreq(TILE) * dx), np.exp(2j * np.pi * np.fft.fftfreq(TILE) * dy))
        numbers = (np.float32(v) for v in (scale, *self.noise))
        a, b, c, d = _transfer(*self.hats, *weights, *numbers, *(r.astype(np.complex64) for r in ramps))
        return a, b, c, d


def make_filters(science: Psf, template: Psf, match: Match, noise: tuple[float, float]) -> Filters:
    """The filters of a pair; `noise` holds the variances of the two images' sky."""
    hats = kernel_transform(science.terms, (TILE, TILE)), kernel_transform(template.terms, (TILE, TILE))
    return Filters(science, template, match, noise, science.shape, hats)


@njit(cache=True, fastmath=True, nogil=True)
def _transfer(hat_n, hat_r, w_n, w_r, scale, noise_n, noise_r, ramp_x, ramp_y):  # type: ignore[no-untyped-def]
    ny, nx = hat_n.shape[1], hat_n.shape[2]
    to_n, to_r = np.empty((ny, nx), np.complex64), np.empty((ny, nx), np.complex64)
    match, psf = np.empty((ny, nx), np.complex64), np.empty((ny, nx), np.complex64)
    one, tiny = np.float32(1), np.float32(1e-12)
    flux = scale / np.sqrt(noise_n * scale * scale + noise_r)
    floor, gain2 = np.float32(_FLOOR), np.float32(_GAIN * _GAIN)
    for y in range(ny):
        for x in range(nx):
            n, r = np.complex64(0), np.complex64(0)
            for m in range(w_n.size):
                n += w_n[m] * hat_n[m, y, x]
            for m in range(w_r.size):
                r += w_r[m] * hat_r[m, y, x]
            a = np.sqrt(r.real * r.real + r.imag * r.imag) + tiny
            power = n.real * n.real + n.imag * n.imag + tiny
            q = n * r.conjugate() * (one / a)
            # Where neither PSF lets anything pass, K_n is 1 and K_r is 1 / scale.
            above = max(a * a, power) / (np.float32(9) * floor * floor)
            e = floor / (one + above * above)
            up_n, up_r = scale * (a + e), q + e
            power_r = up_r.real * up_r.real + up_r.imag * up_r.imag
            inverse = one / (flux * np.sqrt(noise_n * up_n * up_n + noise_r * power_r))
            ramp = ramp_y[y] * ramp_x[x]
            to_n[y, x] = up_n * inverse
            to_r[y, x] = up_r * inverse * ramp
            steep = power / (gain2 * a * a)
            kept = power / ((power + floor * floor) * (one + steep * steep))
            match[y, x] = q * (kept / (a * scale)) * ramp
            psf[y, x] = n * (up_n * inverse)
    return to_n, to_r, match, psf


def image_of(transfer: C8, size: int) -> F8:
    """Centred image (size, size), size odd, of a transfer function."""
    half = size // 2
    image = np.roll(scipy.fft.irfft2(transfer, (TILE, TILE)), (half, half), (0, 1))
    return np.asarray(image[:size, :size], np.float64)


def apply(filters: Filters, science: F4, template: F4, bad: Bool) -> tuple[F4, F4, F4]:
    """Proper difference, matched template and PSF-matched difference of two images.

    Parameters
    ----------
    filters : `Filters`
    science, template : `numpy.ndarray`, (ny, nx), float32
        Finite everywhere.
    bad : `numpy.ndarray`, (ny, nx), bool
        Pixels of the science image in whose place the matched template is
        taken: nothing is left there that could ring.

    Returns
    -------
    difference, matched, filtered : `numpy.ndarray`, (ny, nx), float32
        The last is the first correlated with the difference's PSF at the image's middle.
    """
    ny, nx = science.shape
    halo = filters.halo
    valid = TILE - 2 * halo
    difference, matched, filtered = (np.empty((ny, nx), np.float32) for _ in range(3))
    to_filtered = filters.at((nx - 1) / 2, (ny - 1) / 2)[3].conj()
    inner = np.s_[halo : halo + valid, halo : halo + valid]
    for y0 in range(0, ny, valid):
        rows = _mirrored(y0 - halo, ny)
        for x0 in range(0, nx, valid):
            y1, x1 = min(y0 + valid, ny), min(x0 + valid, nx)
            columns = _mirrored(x0 - halo, nx)
            to_n, to_r, match, _ = filters.at((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2)
            hat = scipy.fft.rfft2(_tile(template, rows, columns))
            model = scipy.fft.irfft2(_product(hat, match), (TILE, TILE), overwrite_x=True)
            image = _with_model(science, bad, rows, columns, model)
            proper, seen = _difference(scipy.fft.rfft2(image), hat, to_n, to_r, to_filtered)
            planes = (
                scipy.fft.irfft2(proper, (TILE, TILE), overwrite_x=True),
                model,
                scipy.fft.irfft2(seen, (TILE, TILE), overwrite_x=True),
            )
            for whole, plane in zip((difference, matched, filtered), planes, strict=True):
                whole[y0:y1, x0:x1] = plane[inner][: y1 - y0, : x1 - x0]
    return difference, matched, filtered


@njit(cache=True, nogil=True)
def _tile(image, rows, columns):  # type: ignore[no-untyped-def]
    out = np.empty((rows.size, columns.size), np.float32)
    for y in range(rows.size):
        line = image[rows[y]]
        for x in range(columns.size):
            out[y, x] = line[columns[x]]
    return out


@njit(cache=True, nogil=True)
def _with_model(image, bad, rows, columns, model):  # type: ignore[no-untyped-def]
    """A tile with a model of it in place of bad pixels."""
    out = np.empty((rows.size, columns.size), np.float32)
    for y in range(rows.size):
        line, marks = image[rows[y]], bad[rows[y]]
        for x in range(columns.size):
            out[y, x] = model[y, x] if marks[columns[x]] else line[columns[x]]
    return out


@njit(cache=True, fastmath=True, nogil=True)
def _product(a, b):  # type: ignore[no-untyped-def]
    out = np.empty_like(a)
    for y in range(a.shape[0]):
        for x in range(a.shape[1]):
            out[y, x] = a[y, x] * b[y, x]
    return out


@njit(cache=True, fastmath=True, nogil=True)
def _difference(science, template, to_n, to_r, to_filtered):  # type: ignore[no-untyped-def]
    proper, seen = np.empty_like(science), np.empty_like(science)
    for y in range(science.shape[0]):
        for x in range(science.shape[1]):
            d = science[y, x] * to_n[y, x] - template[y, x] * to_r[y, x]
            proper[y, x] = d
            seen[y, x] = d * to_filtered[y, x]
    return proper, seen


def _mirrored(start: int, length: int) -> NDArray[np.intp]:
    """TILE positions from `start` on, reflected at the borders of an axis."""
    position = np.arange(start, start + TILE) % (2 * length)
    return np.where(position < length, position, 2 * length - 1 - position)
