"""Linearity: what an amplifier should have read."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.camera import Detector
from apflow.model.response import LINEARITY_STEP

F4 = NDArray[np.float32]

_PER_ADU = np.float32(1 / LINEARITY_STEP)


def linearity_table(detector: Detector, amplifier: int) -> F4:
    """That of one amplifier, by its number, for `linearise`; empty where it is linear."""
    if detector.linearity is None or not detector.linearity[amplifier].any():
        return np.empty(0, np.float32)
    table: F4 = detector.linearity[amplifier]
    return table


@njit(cache=True, nogil=True, error_model="numpy")
def linearise(signals: F4, table: F4) -> None:
    """Correct signals (ADU above the overscan's level) in place, by straight lines between the steps of a table.

    Parameters
    ----------
    signals : `numpy.ndarray`, (n,), float32
        Below 0 and above the table's end its ends are what is added; NaN stays NaN.
    table : `numpy.ndarray`, float32
        See `apflow.model.response.linearity_tables`.
    """
    last = np.int32(table.size - 2)
    for i in range(signals.size):
        at = signals[i] * _PER_ADU
        # Of a NaN the comparisons are false, so that the index is a good one.
        at = at if at > np.float32(0) else np.float32(0)
        at = at if at < np.float32(last + 1) else np.float32(last + 1)
        below = min(np.int32(at), last)
        step = at - np.float32(below)
        signals[i] += table[below] + step * (table[below + 1] - table[below])
