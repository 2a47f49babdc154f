"""Streaks of satellites across a difference image."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Mask
from apflow.model.products import Difference
from apflow.pixels.planes import EDGE, HARD, bad_bits

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]

#: Side of a bin at least, pixels, and greatest number of bins along a side: a power of two for the transform.
_LEAST_BIN, _MOST_BINS = 4, 512
#: A bin counts with this S/N at most, so that a star is no line.
_CLIP = 3.0
#: Planes that are left out of bins.
_UNUSED = HARD | EDGE
#: Half-side, in bins, of the square whose mean is taken from each bin: left-over background is no line either.
_SMOOTH = 8
#: Least S/N of a line across the image, and least part of the side that it must cross.
_LEAST_SNR, _LEAST_CHORD = 9.0, 0.2
#: Least length of a streak, in bins, and part of its stretches that are bright.
_LEAST_BINS, _LEAST_FILLED = 24, 0.6
_MOST_STREAKS = 8
#: A streak is masked to where its profile falls under this S/N per pixel of all its length, and this far at most, px.
_PROFILE_SNR, _WIDEST = 3.0, 40


@dataclass(frozen=True)
class Streak:
    """A straight band of light: ends (x, y) of its middle line and half its width, pixels."""

    x0: float
    y0: float
    x1: float
    y1: float
    half_width: float
    snr: float


def find_streaks(difference: Difference) -> tuple[Streak, ...]:
    """Streaks across a difference image, brightest first, of either sign.

    Lines are summed over the binned S/N map by the fast Radon transform
    (Brady 1998; Nir, Zackay & Ofek 2018), the brightest one is traced and
    taken out, and so on.

    Raises
    ------
    DataError
        The difference has no PSF.
    """
    exposure = difference.exposure
    if exposure.psf is None:
        raise DataError("streaks are found with the PSF of the difference image; accepted: a difference with psf set")
    side = max(_LEAST_BIN, -(-max(exposure.shape) // _MOST_BINS))
    binned = _high_pass(_bin(exposure.image, exposure.variance, exposure.mask, side), _SMOOTH)
    found: list[Streak] = []
    while len(found) < _MOST_STREAKS:
        line = _best_line(binned)
        if line is None:
            break
        traced = _trace(difference, binned, side, line)
        _blank(binned, np.array(line[:4]), 2.0 + (0.0 if traced is None else traced.half_width / side))
        if traced is None:
            break
        found.append(traced)
    return tuple(found)


def mark_streaks(difference: Difference) -> Difference:
    """The difference with STREAK set on its streaks; itself where there are none."""
    streaks = find_streaks(difference)
    if not streaks:
        return difference
    mask = difference.exposure.mask.copy()
    for s in streaks:
        _paint(mask, np.array([s.x0, s.y0, s.x1, s.y1]), s.half_width, int(Mask.STREAK))
    return dataclasses.replace(difference, exposure=dataclasses.replace(difference.exposure, mask=mask))


@njit(cache=True, nogil=True)
def _bin(image, variance, mask, side):  # type: ignore[no-untyped-def]
    """S/N of the light in bins of the image, clipped, in a square of a power of two; 0 where half is bad."""
    ny, nx = image.shape
    rows, columns = (ny + side - 1) // side, (nx + side - 1) // side
    n = 1
    while n < max(rows, columns):
        n *= 2
    out = np.zeros((n, n), np.float32)
    light, noise = np.empty(columns, np.float32), np.empty(columns, np.float32)
    count = np.empty(columns, np.int64)
    for r in range(rows):
        light[:], noise[:], count[:] = 0, 0, 0
        # Every second row: a streak is wider than that, and half the memory is read.
        for y in range(r * side, min((r + 1) * side, ny), 2 if side > 4 else 1):
            for c in range(columns):
                pixels = image[y, c * side : (c + 1) * side]
                errors, bits = variance[y, c * side : (c + 1) * side], mask[y, c * side : (c + 1) * side]
                some, s, v = 0, np.float32(0), np.float32(0)
                for x in range(pixels.size):
                    some |= bits[x]
                    s += pixels[x]
                    v += errors[x]
                # A bin with a bad pixel or two is left out of this row: it has others.
                if some & _UNUSED == 0:
                    light[c] += s
                    noise[c] += v
                    count[c] += pixels.size
        for c in range(columns):
            if count[c] * 4 > side * side and noise[c] > 0 and np.isfinite(light[c]):
                out[r, c] = min(max(light[c] / np.sqrt(noise[c]), -_CLIP), _CLIP)
    return out


@njit(cache=True, nogil=True)
def _high_pass(binned, half):  # type: ignore[no-untyped-def]
    """Each bin that has a value less the mean of those about it."""
    n = binned.shape[0]
    total, count = np.zeros((n + 1, n + 1)), np.zeros((n + 1, n + 1))
    for y in range(n):
        row, seen = 0.0, 0.0
        for x in range(n):
            row += binned[y, x]
            seen += 1.0 if binned[y, x] != 0 else 0.0
            total[y + 1, x + 1] = total[y, x + 1] + row
            count[y + 1, x + 1] = count[y, x + 1] + seen
    out = np.zeros((n, n), np.float32)
    for y in range(n):
        y0, y1 = max(y - half, 0), min(y + half + 1, n)
        for x in range(n):
            if binned[y, x] != 0:
                x0, x1 = max(x - half, 0), min(x + half + 1, n)
                s = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
                c = count[y1, x1] - count[y0, x1] - count[y1, x0] + count[y0, x0]
                out[y, x] = binned[y, x] - s / c
    return out


def _best_line(binned: F4) -> tuple[float, float, float, float, float] | None:
    """Ends (x0, y0, x1, y1) in bins and S/N of the line with the highest |S/N|; None below the threshold."""
    n = binned.shape[0]
    best: tuple[float, float, float, float, float] | None = None
    for turned in (False, True):
        plane = np.ascontiguousarray(binned.T) if turned else binned
        for flipped in (False, True):
            view = np.ascontiguousarray(plane[:, ::-1]) if flipped else plane
            snr, x, shift = _radon(view, _LEAST_CHORD)
            if abs(snr) < _LEAST_SNR or (best is not None and abs(snr) <= abs(best[4])):
                continue
            a, b = float(x), float(x + shift)
            if flipped:
                a, b = n - 1 - a, n - 1 - b
            best = (0.0, a, n - 1.0, b, snr) if turned else (a, 0.0, b, n - 1.0, snr)
    return best


@njit(cache=True, nogil=True)
def _radon(plane, chord):  # type: ignore[no-untyped-def]
    """Highest |S/N| of the lines that cross a square from its first to its last row by 0 to n columns.

    Returns the S/N, the column in the first row (it may lie off the square) and the shift.
    """
    n = plane.shape[0]
    one, two = np.zeros((n, 2 * n), np.float32), np.zeros((n, 2 * n), np.float32)
    one[:, n:] = plane
    height = 1
    while height < n:
        # Rows of `one`: strip by strip, the sums over `height` rows for shifts 0 to height - 1.
        for strip in range(0, n, 2 * height):
            for shift in range(2 * height):
                upper, lower = one[strip + shift // 2], one[strip + height + shift // 2]
                target, offset = two[strip + shift], (shift + 1) // 2
                for x in range(2 * n - offset):
                    target[x] = upper[x] + lower[x + offset]
                for x in range(2 * n - offset, 2 * n):
                    target[x] = upper[x]
        one, two = two, one
        height *= 2
    least = chord * n
    best, at, by = np.float32(0), 0, 0
    for shift in range(n):
        row = one[shift]
        slope = shift / (n - 1.0)
        for x in range(2 * n):
            start = x - n
            # Rows during which start + slope * row lies on the square.
            enter = 0.0 if start >= 0 else (-start / slope if slope > 0 else 1.0 * n)
            leave = n - 1.0 if start + shift <= n - 1 else (n - 1 - start) / slope
            length = leave - enter + 1
            if length >= least:
                snr = row[x] / np.sqrt(np.float32(length))
                if abs(snr) > abs(best):
                    best, at, by = snr, start, shift
    return best, at, by


def _trace(
    difference: Difference, binned: F4, side: int, line: tuple[float, float, float, float, float]
) -> Streak | None:
    """The part of a line that is bright, with its width on the image; None where it is no streak."""
    (ax, ay, bx, by, snr), sign = line, np.sign(line[4])
    n = int(np.hypot(bx - ax, by - ay)) + 1
    t = np.linspace(0, 1, n)
    xs, ys = ax + t * (bx - ax), ay + t * (by - ay)
    on = (xs >= 0) & (xs <= binned.shape[1] - 1) & (ys >= 0) & (ys <= binned.shape[0] - 1)
    t, xs, ys = t[on], xs[on], ys[on]
    ix, iy = np.rint(xs).astype(int), np.rint(ys).astype(int)
    # Three bins across: the transform's lines follow the bins by half a bin.
    dx, dy = (1, 0) if abs(by - ay) >= abs(bx - ax) else (0, 1)
    last = np.array(binned.shape)[::-1] - 1
    values = sign * np.stack(
        [binned[np.clip(iy + k * dy, 0, last[1]), np.clip(ix + k * dx, 0, last[0])] for k in (-1, 0, 1)]
    ).sum(0)
    first, end = _stretch(values - values.std() * 0.25)
    if end - first < _LEAST_BINS:
        return None
    parts = np.array_split(values[first:end], 8)
    if np.mean([part.mean() > 0.25 * values[first:end].mean() for part in parts]) < _LEAST_FILLED:
        return None
    ends = (np.array([xs[first], ys[first], xs[end - 1], ys[end - 1]]) + 0.5) * side - 0.5
    exposure = difference.exposure
    assert exposure.psf is not None
    profile = sign * _profile(exposure.image, exposure.variance, exposure.mask, ends, _WIDEST + side)
    offsets, half = _width(profile, exposure.psf.fwhm_px(), side)
    if half == 0.0:
        return None
    length = np.hypot(ends[2] - ends[0], ends[3] - ends[1])
    across = np.array([-(ends[3] - ends[1]), ends[2] - ends[0]]) / length * offsets
    ends = ends + np.concatenate([across, across])
    x0, y0, x1, y1 = (float(e) for e in ends)
    return Streak(x0, y0, x1, y1, half, float(snr))


def _stretch(values: F8) -> tuple[int, int]:
    """The stretch of greatest sum: its first and one past its last."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    lowest = np.minimum.accumulate(total)
    end = int((total - lowest).argmax())
    first = int(total[: end + 1].argmin())
    return first, end


def _width(profile: F8, fwhm: float, side: int) -> tuple[float, float]:
    """Offset of the middle of a profile across a line, px, and half the width to mask; 0 where there is no band."""
    middle = len(profile) // 2
    reach = side + round(fwhm)
    peak = middle - reach + int(profile[middle - reach : middle + reach + 1].argmax())
    if profile[peak] < _PROFILE_SNR:
        return 0.0, 0.0
    low, high = peak, peak
    while low > 0 and profile[low - 1] > _PROFILE_SNR:
        low -= 1
    while high < len(profile) - 1 and profile[high + 1] > _PROFILE_SNR:
        high += 1
    # A profile that is faint is wider than what shows of it; the line is known to a pixel.
    return (low + high) / 2 - middle, float(max((high - low) / 2, 0.75 * fwhm) + 2.0)


@njit(cache=True, nogil=True)
def _profile(image, variance, mask, ends, reach):  # type: ignore[no-untyped-def]
    """S/N of the light along a segment at whole pixels across it, -reach to reach; bright pixels are clipped."""
    length = np.hypot(ends[2] - ends[0], ends[3] - ends[1])
    ux, uy = (ends[2] - ends[0]) / length, (ends[3] - ends[1]) / length
    ny, nx = image.shape
    out = np.zeros(2 * reach + 1)
    for k in range(-reach, reach + 1):
        total, count = 0.0, 0
        t = 0.0
        while t <= length:
            x, y = round(ends[0] + t * ux - k * uy), round(ends[1] + t * uy + k * ux)
            if 0 <= x < nx and 0 <= y < ny and not bad_bits(mask[y, x]) and variance[y, x] > 0:
                total += min(max(image[y, x] / np.sqrt(variance[y, x]), -_CLIP), _CLIP)
                count += 1
            t += 2.0
        if count > 0:
            out[k + reach] = total / np.sqrt(count)
    return out


@njit(cache=True, nogil=True)
def _blank(binned, ends, half):  # type: ignore[no-untyped-def]
    """Set the bins within `half` of a line to 0."""
    dx, dy = ends[2] - ends[0], ends[3] - ends[1]
    length = np.hypot(dx, dy)
    for y in range(binned.shape[0]):
        for x in range(binned.shape[1]):
            if abs((x - ends[0]) * dy - (y - ends[1]) * dx) <= half * length:
                binned[y, x] = 0


@njit(cache=True, nogil=True)
def _paint(mask, ends, half, bit):  # type: ignore[no-untyped-def]
    """Set a bit in the pixels within `half` of a segment."""
    dx, dy = ends[2] - ends[0], ends[3] - ends[1]
    squared = dx * dx + dy * dy
    y0, y1 = min(ends[1], ends[3]) - half, max(ends[1], ends[3]) + half
    for y in range(max(0, int(y0)), min(mask.shape[0], int(y1) + 2)):
        for x in range(mask.shape[1]):
            t = min(max(((x - ends[0]) * dx + (y - ends[1]) * dy) / squared, 0.0), 1.0)
            if (x - ends[0] - t * dx) ** 2 + (y - ends[1] - t * dy) ** 2 <= half * half:
                mask[y, x] |= bit
