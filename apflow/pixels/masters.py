"""Master bias, dark and flat: many exposures combined into what they have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.errors import BadRequest, DataError
from apflow.model.calibration import Intent, Masters
from apflow.model.camera import Amplifier, Detector
from apflow.model.exposure import Raw
from apflow.pixels.crosstalk import Segments
from apflow.pixels.segments import check_raw, first_overscan, is_dead, native, overscan_noise, raw_name, row_levels

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]

#: Values further than this from the median of their pixel are left out.
_CLIP_SIGMA = 4.0
#: Every so many-th row and column tells the light of a flat.
_STEP = 8
#: The interquartile mean of m overscan values has this times the variance of their mean.
_LEVEL_VARIANCE = 1.2


@dataclass(frozen=True, eq=False)
class Master:
    """A master calib of one detector.

    Attributes
    ----------
    image : `numpy.ndarray`, (ny, nx), float32
        Bias in ADU; dark in e-/s and flat in parts of the detector's level, in
        electrons by the camera's gains. 0 where no exposure has data, which of
        a flat means that it cannot be used.
    variance : `numpy.ndarray`, (ny, nx), float32
        Of the image by read noise and shot noise; errors of the masters that
        were subtracted come on top. Infinite where no exposure has data.
    n_frames : `numpy.ndarray`, (ny, nx), uint16
        Exposures that each pixel is from.
    levels : `numpy.ndarray`, (n exposures,)
        What each was divided by: 1, its time (s), or its light (electrons); NaN
        where an exposure tells nothing.
    read_noise : `numpy.ndarray`, (n amplifiers,)
        Noise of the overscan, ADU: the median of the exposures.
    """

    image: F4
    variance: F4
    n_frames: NDArray[np.uint16]
    levels: F8
    read_noise: F8


def combine(raws: Sequence[Raw], detector: Detector, masters: Masters, intent: Intent) -> Master:
    """Combine bias, dark or flat exposures of one detector.

    Crosstalk is removed and the overscan subtracted row by row; of darks and flats the master bias,
    of flats the master dark too, where there are any. What is left, x, becomes
    sum(x) / sum(level): the best ratio where shot noise rules. A pixel whose
    values are not all within 4 sigma of that is the same sum over those within
    4 sigma of their median (the lower one, since cosmic rays only add), sigma
    being that of the overscan and of the electrons. Saturated pixels of flats
    are left out; those of darks stay, as the least that they can be.

    It goes by amplifiers, and needs little more memory than `raws`.

    Parameters
    ----------
    raws : sequence of `Raw`
        Of one detector.
    detector : `Detector`
    masters : `Masters`
    intent : `Intent`
        Not `Intent.CBP`.

    Raises
    ------
    BadRequest
        Another intent, or no raws.
    DataError
        See `apflow.pixels.segments.check_raw`; or no exposure has data, or a flat no light.
    """
    if intent is Intent.CBP or not raws:
        raise BadRequest(f"a master of {len(raws)} {intent} exposures cannot be made; accepted: bias, dark, flat")
    bias = masters.bias if intent is not Intent.BIAS else None
    dark = masters.dark if intent is Intent.FLAT else None
    used = {name: plane for name, plane in (("bias", bias), ("dark", dark)) if plane is not None}
    for raw in raws:
        check_raw(raw, detector, used)
    levels = _levels(raws, detector, bias, dark, intent)
    image, variance = np.zeros(detector.shape, np.float32), np.full(detector.shape, np.inf, np.float32)
    counts = np.zeros(detector.shape, np.uint16)
    read_noise = np.full(len(detector.amplifiers), np.nan)
    exposures = [Segments(raw, detector) for raw in raws]
    for number, amp in enumerate(detector.amplifiers):
        segments = [all_of[number] for all_of in exposures]
        good = [k for k, s in enumerate(segments) if not s.dead and math.isfinite(levels[k])]
        if not good:
            continue
        stack = np.stack([segments[k].pixels for k in good])
        rows = np.stack([segments[k].levels + segments[k].pedestal for k in good])
        noise = np.array([_noise(segments[k].pixels, segments[k].levels, amp) for k in good])
        read_noise[number] = np.median(noise)
        gain = 1.0 if intent is Intent.BIAS else amp.gain
        part = np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]
        flip = np.s_[:: -1 if amp.flip_y else 1, :: -1 if amp.flip_x else 1]
        columns = stack.shape[2] - first_overscan(amp)
        of_levels = _LEVEL_VARIANCE / columns if columns else 0.0
        _combine(
            stack, rows, amp.prescan, np.float32(gain),
            np.float32(amp.saturation if intent is Intent.FLAT else np.inf),
            _readout(bias, part, flip), _readout(dark, part, flip),
            np.array([raws[k].info.exposure_time_s for k in good], np.float32), levels[good].astype(np.float32),
            ((noise * gain) ** 2 * (1 + of_levels)).astype(np.float32), np.float32(intent is not Intent.BIAS),
            image[part][flip], variance[part][flip], counts[part][flip],
        )  # fmt: skip
    if not counts.any():
        raise DataError(f"no {intent} of detector {detector.name} has data; accepted: one live amplifier or more")
    return Master(image, variance, counts, levels, read_noise)


def separate(levels: F8) -> tuple[F8, F8]:
    """Split levels of exposures in several parts of a camera into those of the lamp and of the parts.

    Parameters
    ----------
    levels : `numpy.ndarray`, (n exposures, n parts)
        NaN where unknown.

    Returns
    -------
    lamp : `numpy.ndarray`, (n exposures,)
    sensitivity : `numpy.ndarray`, (n parts,)
        Their median is 1. Least squares of ``log(lamp[:, None] * sensitivity)``; NaN where nothing is known.
    """
    known = np.isfinite(levels) & (levels > 0)
    logs = np.log(np.where(known, levels, 1.0))
    lamp, part = np.zeros(levels.shape[0]), np.zeros(levels.shape[1])
    with np.errstate(invalid="ignore"):
        for _ in range(50):
            before = part
            lamp = np.where(known, logs - part, 0.0).sum(1) / known.sum(1)
            part = np.where(known, logs - np.nan_to_num(lamp)[:, None], 0.0).sum(0) / known.sum(0)
            part -= np.median(part[np.isfinite(part)]) if np.isfinite(part).any() else 0.0
            if np.allclose(part, before, rtol=0, atol=1e-9, equal_nan=True):
                break
            part = np.where(np.isfinite(part), part, 0.0)
        lamp = np.where(known, logs - np.nan_to_num(part), 0.0).sum(1) / known.sum(1)
    return np.exp(lamp), np.exp(np.where(known.any(0), part, np.nan))


def _levels(raws: Sequence[Raw], detector: Detector, bias: F4 | None, dark: F4 | None, intent: Intent) -> F8:
    """What each exposure is divided by."""
    if intent is Intent.BIAS:
        return np.ones(len(raws))
    if intent is Intent.DARK:
        times = np.array([raw.info.exposure_time_s for raw in raws])
        if not (times > 0).all():
            raise DataError(f"dark {raw_name(raws[int(np.argmin(times))])} has no exposure time; accepted: more than 0")
        return times
    lamp, _ = separate(np.array([[_light(raw, amp, bias, dark) for amp in detector.amplifiers] for raw in raws]))
    if not np.isfinite(lamp).any():
        raise DataError(f"no flat of detector {detector.name} has light; accepted: an illuminated amplifier or more")
    return lamp


def _light(raw: Raw, amp: Amplifier, bias: F4 | None, dark: F4 | None) -> float:
    """Electrons of one amplifier of a flat: the median of a sample; NaN where it is dead or not illuminated."""
    segment = native(raw.segments[amp.segment])
    if is_dead(segment, amp):
        return math.nan
    some = np.ascontiguousarray(segment[: amp.ny : _STEP])
    level = row_levels(some, some.shape[0], first_overscan(amp))
    sample = (some[:, amp.prescan : amp.prescan + amp.nx : _STEP].astype(np.float32) - level[:, None]) * amp.gain
    part = np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]
    flip = np.s_[:: -1 if amp.flip_y else 1, :: -1 if amp.flip_x else 1]
    for plane, scale in ((bias, amp.gain), (dark, raw.info.exposure_time_s)):
        if plane is not None:
            sample -= plane[part][flip][::_STEP, ::_STEP] * np.float32(scale)
    sample = sample[np.isfinite(sample)]
    light = float(np.median(sample)) if sample.size else math.nan
    return light if light > 0 else math.nan


def _noise(segment: NDArray[Any], rows: F4, amp: Amplifier) -> float:
    """Noise of an exposure's overscan, ADU; the camera's where there is none."""
    noise, _ = overscan_noise(segment, rows, amp)
    return noise if math.isfinite(noise) else amp.read_noise / amp.gain


def _readout(plane: F4 | None, part: Any, flip: Any) -> F4:
    """An amplifier's part of a plane in the order of readout; without a plane, nothing."""
    return np.empty((0, 0), np.float32) if plane is None else np.ascontiguousarray(plane[part][flip])


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _combine(
    stack: NDArray[Any],
    rows: F4,
    prescan: int,
    gain: np.float32,
    saturation: np.float32,
    bias: F4,
    dark: F4,
    times: F4,
    levels: F4,
    read2: F4,
    shot: np.float32,
    image: F4,
    variance: F4,
    counts: NDArray[np.uint16],
) -> None:
    """Combine one amplifier, in the order of readout; masters of size 0 are left out."""
    n, (ny, nx) = stack.shape[0], image.shape
    lines = np.empty((n, nx), np.float32)
    total, least, most = np.empty(nx, np.float32), np.empty(nx, np.float32), np.empty(nx, np.float32)
    level, noise2 = levels.sum(), read2.sum()
    # Of the narrowest sigma that any of the values may have: only what is within needs no second look.
    floor2, slope = read2.min() / levels.max() ** 2, shot / levels.max()
    buffer, zero, clip2 = np.empty(n, np.float32), np.float32(0), np.float32(_CLIP_SIGMA**2)
    for y in range(ny):
        total[:], least[:], most[:] = zero, np.float32(np.inf), np.float32(-np.inf)
        for k in range(n):
            line, scale = lines[k], np.float32(1) / levels[k]
            for x in range(nx):
                v = np.float32(stack[k, y, prescan + x])
                line[x] = v - rows[k, y] if v < saturation else np.float32(np.nan)
            if bias.size:
                for x in range(nx):
                    line[x] -= bias[y, x]
            for x in range(nx):
                line[x] *= gain
            if dark.size:
                for x in range(nx):
                    line[x] -= dark[y, x] * times[k]
            for x in range(nx):
                total[x] += line[x]
                v = line[x] * scale
                least[x] = v if v < least[x] else least[x]
                most[x] = v if v > most[x] else most[x]
        for x in range(nx):
            mean = total[x] / level
            limit2 = clip2 * (floor2 + slope * max(mean, zero))
            off = max(most[x] - mean, mean - least[x])
            if off * off <= limit2:
                image[y, x] = mean
                variance[y, x] = (noise2 + shot * max(total[x], zero)) / (level * level)
                counts[y, x] = n
            else:
                found, its_level, its_noise2, kept = _clipped(lines, x, levels, read2, shot, buffer)
                if kept:
                    image[y, x] = found
                    variance[y, x] = (its_noise2 + shot * max(found * its_level, zero)) / (its_level * its_level)
                    counts[y, x] = kept


@njit(cache=True, nogil=True, error_model="numpy")
def _clipped(
    lines: F4, x: int, levels: F4, read2: F4, shot: np.float32, buffer: F4
) -> tuple[np.float32, np.float32, np.float32, int]:
    """Ratio of one pixel over the values near their median, its level and noise, and how many they are."""
    n = 0
    for k in range(lines.shape[0]):
        v = lines[k, x] / levels[k]
        if v == v:
            j = n
            while j > 0 and buffer[j - 1] > v:
                buffer[j] = buffer[j - 1]
                j -= 1
            buffer[j] = v
            n += 1
    total, level, noise2, kept = np.float32(0), np.float32(0), np.float32(0), 0
    if n == 0:
        return total, level, noise2, kept
    median = buffer[(n - 1) // 2]
    for k in range(lines.shape[0]):
        sigma2 = read2[k] + shot * max(median * levels[k], np.float32(0))
        off = lines[k, x] - median * levels[k]
        if off * off <= np.float32(_CLIP_SIGMA**2) * sigma2:
            total += lines[k, x]
            level += levels[k]
            noise2 += read2[k]
            kept += 1
    if kept == 0:
        return total, level, noise2, kept
    return total / level, level, noise2, kept
