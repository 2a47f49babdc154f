"""Crosstalk: the ghosts that bright pixels of one amplifier leave in the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.camera import Amplifier, Detector
from apflow.model.exposure import Raw
from apflow.pixels.segments import first_overscan, is_dead, native, row_levels

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]

#: What one pixel adds to another is left there below this part of the read noise.
_NEGLIGIBLE = 0.1
#: Read noises of correction from which a pixel is flagged: were the coefficient wrong by a third, one would be left.
_LARGE = 3.0
#: Each so many rows and columns of an amplifier tell its background.
_SPARSE = 8


@dataclass(frozen=True, eq=False)
class Segment:
    """One amplifier's pixels in the order of readout, free of the others' ghosts.

    Attributes
    ----------
    amp : `Amplifier`
    pixels : `numpy.ndarray`, of `Amplifier.raw_shape`, uint16 or float32
        ADU.
    levels : `numpy.ndarray`, (amplifier's ny,), float32
        Level of each row's overscan, ADU.
    pedestal : `float`
        Ghost of the others' backgrounds, ADU, which is still in `pixels`.
    dead : `bool`
        See `apflow.pixels.segments.is_dead`.
    ghosts : `numpy.ndarray`, (n,), int32
        Where the correction was large: flat indices into the light-sensitive pixels, in the order of readout.
    """

    amp: Amplifier
    pixels: NDArray[Any]
    levels: F4
    pedestal: np.float32
    dead: bool
    ghosts: I4


@dataclass(frozen=True, eq=False)
class _Source:
    """Pixels that stand out so far that they leave ghosts: flat indices, and ADU above the background."""

    background: np.float32
    at: I4
    excess: F4


_NOWHERE = np.empty(0, np.int32)


class Segments:
    """The segments of a raw image with their levels, without crosstalk where the detector's is known.

    All amplifiers are read in step, so that pixels at the same place of their
    segments see each other: the victim's is ``own + sum c[victim, source] *
    (source - its overscan)`` in ADU. Second-order ghosts, 1e-8, are left.
    A source's background is taken from all pixels of a victim at once. A pixel
    that differs from it by so little that its ghost is below 0.1 of the read
    noise in every amplifier is passed over: each source then leaves at most
    that much behind, and noise, which has both signs, nothing on average.
    Saturated victims are left as they are, so that they are known as such.

    Parameters
    ----------
    raw : `Raw`
        As `apflow.pixels.segments.check_raw` accepts.
    detector : `Detector`
    """

    def __init__(self, raw: Raw, detector: Detector) -> None:
        amps = self._amps = detector.amplifiers
        self._pixels = [native(raw.segments[amp.segment]) for amp in amps]
        self._levels = [row_levels(p, amp.ny, first_overscan(amp)) for p, amp in zip(self._pixels, amps, strict=True)]
        self._dead = [is_dead(p, amp) for p, amp in zip(self._pixels, amps, strict=True)]
        self._matrix = detector.crosstalk
        if self._matrix is None:
            return
        self._noise = np.array([amp.read_noise / amp.gain for amp in amps], np.float32)
        with np.errstate(divide="ignore"):
            limits = (_NEGLIGIBLE * self._noise[:, None] / np.abs(self._matrix)).min(axis=0)
        self._sources = [
            _source(own, level, amp, limit)
            for own, level, amp, limit in zip(self._pixels, self._levels, amps, limits, strict=True)
        ]
        self._backgrounds = np.array([source.background for source in self._sources])

    def __iter__(self) -> Iterator[Segment]:
        """In the order of the detector's amplifiers."""
        return (self[number] for number in range(len(self._amps)))

    def __getitem__(self, number: int) -> Segment:
        """That of one amplifier."""
        amp, own, levels = self._amps[number], self._pixels[number], self._levels[number]
        if self._matrix is None or self._dead[number]:
            return Segment(amp, own, levels, np.float32(0), self._dead[number], _NOWHERE)
        row = self._matrix[number]
        acting = [(c, source) for c, source in zip(row, self._sources, strict=True) if source.at.size and c != 0]
        clean = own.astype(np.float32)
        ghosts = _remove(clean, own, amp, acting, _LARGE * self._noise[number])
        return Segment(amp, clean, levels, row @ self._backgrounds, False, ghosts)


def _source(pixels: NDArray[Any], levels: F4, amp: Amplifier, limit: np.float32) -> _Source:
    light = pixels[: amp.ny, amp.prescan : amp.prescan + amp.nx]
    sample = light[::_SPARSE, ::_SPARSE] - levels[::_SPARSE, None]
    sample = sample[np.isfinite(sample)]
    background = np.float32(np.median(sample)) if sample.size else np.float32(0)
    if not np.isfinite(limit):
        return _Source(background, _NOWHERE, np.empty(0, np.float32))
    return _Source(background, *_standing_out(light, levels + background, limit))


@njit(cache=True, nogil=True, error_model="numpy")
def _standing_out(light: NDArray[Any], levels: F4, limit: np.float32) -> tuple[I4, F4]:
    """Flat indices of the pixels that differ from their row's level by more than a limit, and by how much."""
    ny, nx = light.shape
    counts = np.zeros(ny, np.int32)
    for y in range(ny):
        row, level = light[y], levels[y]
        n = np.int32(0)
        for x in range(nx):
            n += np.int32(1) if abs(np.float32(row[x]) - level) > limit else np.int32(0)
        counts[y] = n
    at, excess = np.empty(counts.sum(), np.int32), np.empty(counts.sum(), np.float32)
    filled = 0
    for y in range(ny):
        if counts[y]:
            for x in range(nx):
                more = np.float32(light[y, x]) - levels[y]
                if abs(more) > limit:
                    at[filled], excess[filled] = y * nx + x, more
                    filled += 1
    return at, excess


def _remove(own: F4, was: NDArray[Any], amp: Amplifier, acting: Sequence[tuple[np.float32, _Source]], large: Any) -> I4:
    """Take the ghosts of sources from a copy of a segment, in place; gives where that was much."""
    light, before = (p[: amp.ny, amp.prescan : amp.prescan + amp.nx] for p in (own, was))
    for coefficient, source in acting:
        _subtract(light, source.at, source.excess, coefficient, np.float32(amp.saturation))
    # Where the sum is large, at least one of its parts is more than its share.
    share = large / max(len(acting), 1)
    found = [_changed(light, before, s.at, s.excess, share / abs(c), large) for c, s in acting]
    return np.concatenate([_NOWHERE, *found])


@njit(cache=True, nogil=True)
def _subtract(light: F4, at: I4, excess: F4, coefficient: np.float32, saturation: np.float32) -> None:
    nx = light.shape[1]
    for n in range(at.size):
        y, x = at[n] // nx, at[n] % nx
        if light[y, x] < saturation:
            light[y, x] -= coefficient * excess[n]


@njit(cache=True, nogil=True)
def _changed(light: F4, before: NDArray[Any], at: I4, excess: F4, least: np.float32, large: np.float32) -> I4:
    """Which of the pixels, of those with an excess of at least so much, were changed by more than `large`."""
    nx = light.shape[1]
    found = np.empty(at.size, np.int32)
    n = 0
    for i in range(at.size):
        if abs(excess[i]) > least:
            y, x = at[i] // nx, at[i] % nx
            found[n] = at[i]
            n += abs(light[y, x] - np.float32(before[y, x])) > large
    return found[:n].copy()
