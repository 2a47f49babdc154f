"""Photon transfer: gain from the noise of two flats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.calibration import Masters
from apflow.model.camera import Amplifier, Detector
from apflow.model.exposure import Raw
from apflow.pixels.segments import check_raw, first_overscan, is_dead, native, overscan_noise, read_row, row_levels

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]

#: Differences further out are hits and unstable pixels.
_CLIP_SIGMA = 5.0
#: With more of its pixels saturated the rest of an amplifier is a selection of the fainter ones.
_MAX_SATURATED = 0.01
#: Pixels from which the ratio of the levels is taken, and a first guess of the noise.
_SAMPLE = 16_384
#: Fewer pixels give no gain worth having: 4.5 % for so many.
_MIN_PIXELS = 1000
#: Photons' noise that does not stand out of the read noise by so many sigma tells no gain.
_SIGNIFICANT = 5.0


@dataclass(frozen=True)
class PhotonTransfer:
    """Gain (e-/ADU) and read noise (e-) of one amplifier, with their standard errors; NaN where unknown."""

    gain: float = math.nan
    gain_error: float = math.nan
    read_noise: float = math.nan
    read_noise_error: float = math.nan


def photon_transfer(first: Raw, second: Raw, detector: Detector, masters: Masters) -> dict[str, PhotonTransfer]:
    """Gain and read noise of each amplifier from two flats of about the same light.

    Photons arrive after Poisson, so the noise that they leave in ADU tells how
    many electrons an ADU is (Janesick 2001, *Scientific Charge-Coupled
    Devices*, ch. 5). The difference D = k first - second, with k the ratio of
    the two levels, holds neither the flat's structure nor the detector's, and::

        var(D) = (k^2 s_1 + s_2) / gain + (k^2 + 1) (read noise)^2 + noise of the rows' overscan levels

    with s the mean signals. The read noise is that of both flats' overscan.
    Defects, saturated pixels and differences beyond 5 sigma are left out, the
    master bias is subtracted where there is one.

    The brighter-fatter effect correlates neighbours at the expense of each
    pixel's variance, in proportion to the level: the gain of one pair comes
    out too large, of order 10 % at 50,000 e- in thick CCDs; a fit to many
    levels takes care of it (Astier et al. 2019, A&A 629, A36, eq. 20), one
    pair cannot. Compare gains at the same level, or at low ones.

    Parameters
    ----------
    first, second : `Raw`
    detector : `Detector`
    masters : `Masters`

    Returns
    -------
    measured : `dict` [`str`, `PhotonTransfer`]
        By amplifier name. NaN where an amplifier is dead or has no overscan,
        more than 1 % of it is saturated, or photons add no noise that stands
        out of the read noise.

    Raises
    ------
    DataError
        See `apflow.pixels.segments.check_raw`.
    """
    planes: Mapping[str, Any] = {"bias": masters.bias, "defects": masters.defects}
    for raw in (first, second):
        check_raw(raw, detector, {name: plane for name, plane in planes.items() if plane is not None})
    return {amp.name: _one(first, second, amp, masters) for amp in detector.amplifiers}


def _one(first: Raw, second: Raw, amp: Amplifier, masters: Masters) -> PhotonTransfer:
    segments = [native(raw.segments[amp.segment]) for raw in (first, second)]
    if amp.overscan_x == 0 or any(is_dead(segment, amp) for segment in segments):
        return PhotonTransfer()
    levels = [row_levels(segment, amp.ny, first_overscan(amp)) for segment in segments]
    noises = [overscan_noise(s, level, amp) for s, level in zip(segments, levels, strict=True)]
    return _measure(segments, levels, noises, amp, masters)


def _measure(
    segments: list[NDArray[Any]],
    levels: list[F4],
    noises: list[tuple[float, int]],
    amp: Amplifier,
    masters: Masters,
) -> PhotonTransfer:
    step = max(1, math.isqrt(amp.nx * amp.ny // _SAMPLE))
    science = np.s_[: amp.ny : step, amp.prescan : amp.prescan + amp.nx : step]
    first, second = (s[science] - level[::step, None] for s, level in zip(segments, levels, strict=True))
    finite = np.isfinite(first) & np.isfinite(second)
    first, second = first[finite], second[finite]
    if first.size == 0 or not min(np.median(first), np.median(second)) > 0:
        return PhotonTransfer()
    k = float(np.median(second) / np.median(first))
    difference = k * first - second
    spread = 1.4826 * float(np.median(np.abs(difference - np.median(difference))))
    sums = _pair(
        segments[0], segments[1], levels[0], levels[1],
        masters.bias if masters.bias is not None else np.empty((0, 0), np.float32),
        masters.defects if masters.defects is not None else np.empty((0, 0), np.bool_),
        (amp.x0, amp.y0, amp.nx, amp.ny), amp.prescan, amp.flip_x, amp.flip_y,
        np.float32(amp.saturation), np.float32(k), np.float32(_CLIP_SIGMA * spread),
    )  # fmt: skip
    n, s1, s2, d, d2, n_saturated = sums.tolist()
    freedom = sum(m for _, m in noises)
    if n < _MIN_PIXELS or n_saturated > _MAX_SATURATED * amp.nx * amp.ny or freedom == 0:
        return PhotonTransfer()
    read2 = float(np.mean([noise**2 for noise, _ in noises]))
    # The interquartile mean of m values has 1.2 times the variance of their mean.
    of_levels = 1 + 1.2 / (segments[0].shape[1] - first_overscan(amp))
    variance = (d2 - d * d / n) / (n - 1)
    shot = variance - (k * k + 1) * read2 * of_levels
    read_error = math.sqrt(read2 / (2 * freedom))  # of the read noise in ADU
    shot_error = math.hypot(variance * math.sqrt(2 / n), (k * k + 1) * 2 * math.sqrt(read2) * read_error)
    gain = (k * k * s1 + s2) / n / shot if shot > _SIGNIFICANT * shot_error else math.nan
    if not gain > 0:
        return PhotonTransfer()
    gain_error = gain * shot_error / shot
    read = math.sqrt(read2)
    return PhotonTransfer(gain, gain_error, read * gain, math.hypot(read_error * gain, read * gain_error))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _pair(
    first: NDArray[Any],
    second: NDArray[Any],
    first_levels: F4,
    second_levels: F4,
    bias: F4,
    defects: NDArray[np.bool_],
    box: tuple[int, int, int, int],
    prescan: int,
    flip_x: bool,
    flip_y: bool,
    saturation: np.float32,
    k: np.float32,
    limit: np.float32,
) -> F8:
    """Sums over the usable pixels of 1, both signals, the difference and its square; and saturated pixels."""
    x0, y0, nx, ny = box
    a, b, use = np.empty(nx, np.float32), np.empty(nx, np.float32), np.empty(nx, np.float32)
    zero, one = np.float32(0), np.float32(1)
    sums = np.zeros(6)
    for j in range(ny):
        y = y0 + (ny - 1 - j if flip_y else j)
        read_row(first, j, prescan, flip_x, a)
        read_row(second, j, prescan, flip_x, b)
        full, first_level, second_level = zero, first_levels[j], second_levels[j]
        for i in range(nx):
            use[i] = zero if (a[i] >= saturation) | (b[i] >= saturation) else one
            full += one - use[i]
            a[i] -= first_level
            b[i] -= second_level
        if bias.size:
            offset = bias[y, x0 : x0 + nx]
            for i in range(nx):
                a[i] -= offset[i]
                b[i] -= offset[i]
        if defects.size:
            known = defects[y, x0 : x0 + nx]
            for i in range(nx):
                use[i] = zero if known[i] else use[i]
        row_n, row_s1, row_s2, row_d, row_d2 = zero, zero, zero, zero, zero
        for i in range(nx):
            d = k * a[i] - b[i]
            good = use[i] if abs(d) <= limit else zero
            d = d if good > zero else zero
            row_n += good
            row_s1 += a[i] if good > zero else zero
            row_s2 += b[i] if good > zero else zero
            row_d += d
            row_d2 += d * d
        sums += np.array((row_n, row_s1, row_s2, row_d, row_d2, full), np.float64)
    return sums
