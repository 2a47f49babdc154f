"""Raw segments: whether they are what the camera says, and the level of their serial overscan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.camera import Amplifier, Detector
from apflow.model.exposure import Raw

F4 = NDArray[np.float32]

#: First overscan columns that are left out: they hold charge deferred from the last pixels of the row.
_OVERSCAN_SKIP = 4
#: A row's overscan within so many ADU is counted by value, which is faster than to sort it.
_COUNTED = 256


def raw_name(raw: Raw) -> str:
    """A raw image, for messages."""
    return f"{raw.info.instrument} exposure {raw.info.exposure} detector {raw.info.detector}"


def check_raw(raw: Raw, detector: Detector, calibs: Mapping[str, NDArray[Any]]) -> None:
    """See that a raw image and the master calibs are of a detector.

    Raises
    ------
    DataError
        The raw is of another detector; a segment is missing, unknown or of a
        wrong shape; or a calib has not the shape of the CCD.
    """
    if raw.info.detector != detector.id:
        raise DataError(f"raw {raw_name(raw)} is not of detector {detector.id} ({detector.name}), which is asked for")
    expected = {amp.segment: amp for amp in detector.amplifiers}
    missing, extra = sorted(set(expected) - set(raw.segments)), sorted(set(raw.segments) - set(expected))
    if missing or extra:
        raise DataError(
            f"raw {raw_name(raw)}: segments missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(extra) or 'none'}; accepted: {', '.join(sorted(expected))}"
        )
    for name, amp in expected.items():
        if raw.segments[name].shape != amp.raw_shape:
            raise DataError(
                f"raw {raw_name(raw)}: {name} (amplifier {amp.name}) has shape {raw.segments[name].shape}; "
                f"accepted: {amp.raw_shape}"
            )
    for name, calib in calibs.items():
        if calib.shape != detector.shape:
            raise DataError(f"{name} for {raw_name(raw)} has shape {calib.shape}; accepted: {detector.shape}")


def native(segment: NDArray[Any]) -> NDArray[Any]:
    """A segment in one of the two types for which kernels are compiled; float32 holds 18 bits exactly."""
    return np.ascontiguousarray(segment, np.uint16 if segment.dtype == np.uint16 else np.float32)


def is_dead(segment: NDArray[Any], amp: Amplifier) -> bool:
    """Whether the light-sensitive pixels of a segment are constant or have no finite value."""
    science = segment[: amp.ny, amp.prescan : amp.prescan + amp.nx]
    # Some rows tell of most amplifiers that they live. fmin and fmax pass over NaN; of nothing but NaN the comparison
    # is false.
    return not any(np.fmin.reduce(part, None) < np.fmax.reduce(part, None) for part in (science[::64], science))


def first_overscan(amp: Amplifier) -> int:
    """First column of the serial overscan that is used."""
    first = amp.prescan + amp.nx
    return first + _OVERSCAN_SKIP if amp.overscan_x > 2 * _OVERSCAN_SKIP else first


@njit(cache=True, nogil=True, error_model="numpy")
def row_levels(segment: NDArray[Any], ny: int, first: int) -> F4:
    """Level of the overscan in each of the first ``ny`` rows of a segment, ADU.

    The interquartile mean of the columns from ``first`` on: robust, and finer
    than the median of integers. NaN where there is no data, 0 where there is no overscan.
    """
    levels = np.zeros(ny, np.float32)
    buffer = np.empty(segment.shape[1] - first, np.float32)
    counts = np.zeros(_COUNTED, np.int32)
    for y in range(ny if buffer.size else 0):
        n, whole = 0, True
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for x in range(first, segment.shape[1]):
            v = np.float32(segment[y, x])
            if v == v:
                buffer[n] = v
                n += 1
                low, high = min(low, v), max(high, v)
                whole &= v == np.floor(v)
        if n == 0:
            levels[y] = np.nan
        elif whole and high - low < _COUNTED:
            levels[y] = low + _mean_of_counts(buffer[:n], low, int(high - low) + 1, counts)
        else:
            total = 0.0
            for v in np.sort(buffer[:n])[n // 4 : n - n // 4]:
                total += v
            levels[y] = total / (n - n // 4 - n // 4)
    return levels


@njit(cache=True, nogil=True, error_model="numpy")
def _mean_of_counts(values: F4, lowest: np.float32, size: int, counts: NDArray[np.int32]) -> float:
    """Interquartile mean above the lowest of integers in a narrow range; `counts` is scratch."""
    counts[:size] = 0
    for v in values:
        counts[int(v - lowest)] += 1
    begin, end = values.size // 4, values.size - values.size // 4
    total, rank = 0, 0
    for step in range(size):
        total += step * (min(max(rank + counts[step], begin), end) - min(max(rank, begin), end))
        rank += counts[step]
    return total / (end - begin)


@njit(cache=True, nogil=True)
def read_row(segment: NDArray[Any], y: int, first: int, flip_x: bool, row: F4) -> None:
    """Copy pixels of a row of a segment from column ``first`` on, in the CCD's order."""
    n = row.size
    pixels = segment[y, first : first + n]
    if flip_x:
        pixels = pixels[::-1]
    for i in range(n):
        row[i] = np.float32(pixels[i])


def overscan_noise(segment: NDArray[Any], levels: F4, amp: Amplifier) -> tuple[float, int]:
    """Noise of the serial overscan about its rows' means, ADU, and how many values it is from.

    Values beyond 5 sigma are left out: hits and deferred charge. The noise
    holds that of the converter's steps. NaN where there is no overscan.
    """
    first = first_overscan(amp)
    sample = segment[: amp.ny : 8, first:] - levels[::8, None]
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return float("nan"), 0
    # Steps of an ADU make the first guess coarse: never clip closer than two of them.
    limit = max(5 * 1.4826 * float(np.median(np.abs(sample - np.median(sample)))), 2.0)
    squares, n = _scatter(segment, levels, first, np.float32(limit))
    return float(np.sqrt(squares / n)) if n > 0 else float("nan"), int(n)


@njit(cache=True, nogil=True, error_model="numpy")
def _scatter(segment: NDArray[Any], levels: F4, first: int, limit: np.float32) -> tuple[float, int]:
    """Sum of squares about the rows' own means, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for y in range(levels.size):
        total, total2, n = 0.0, 0.0, 0
        for x in range(first, segment.shape[1]):
            v = np.float32(segment[y, x]) - levels[y]
            if abs(v) <= limit:
                total += v
                total2 += v * v
                n += 1
        if n > 1:
            squares += total2 - total * total / n
            freedom += n - 1
    return squares, freedom
