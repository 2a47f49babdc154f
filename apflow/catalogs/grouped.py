"""Sums, extremes and slopes of many groups of rows at once.

`cell` is the group of each row, `n` the number of groups; a group without
rows gives NaN (0 for sums).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]


def total(cell: I8, values: F8, n: int) -> F8:
    """Sum by group; floats even where there are no rows at all."""
    return np.bincount(cell, values, n).astype(np.float64)


def lowest(cell: I8, values: F8, n: int) -> F8:
    """Minimum by group."""
    out = np.full(n, np.nan)
    np.fmin.at(out, cell, values)
    return out


def highest(cell: I8, values: F8, n: int) -> F8:
    """Maximum by group."""
    out = np.full(n, np.nan)
    np.fmax.at(out, cell, values)
    return out


def deviation(cell: I8, values: F8, n: int) -> F8:
    """Standard deviation by group, with n - 1; NaN for one row."""
    count = np.bincount(cell, minlength=n)
    mean = total(cell, values, n) / np.maximum(count, 1)
    square = total(cell, (values - mean[cell]) ** 2, n)
    return np.sqrt(square / np.where(count > 1, count - 1, np.nan))


def steepest(cell: I8, values: F8, times: F8, n: int) -> F8:
    """Largest ``delta value / delta time``, signed, between rows next to each other in time.

    Rows are in the order that ties in time are to have; of those there is no slope.
    """
    order = np.lexsort((times, cell))
    cell, values, times = cell[order], values[order], times[order]
    step = np.diff(times)
    pair = np.flatnonzero((np.diff(cell) == 0) & (step > 0))
    return highest(cell[pair], np.diff(values)[pair] / step[pair], n)


def weighted_mean(cell: I8, values: F8, errors: F8, n: int) -> tuple[F8, F8]:
    """Mean by inverse variance and its standard error."""
    weight = 1.0 / errors**2
    whole = total(cell, weight, n)
    whole[whole == 0] = np.nan
    return total(cell, weight * values, n) / whole, 1.0 / np.sqrt(whole)
