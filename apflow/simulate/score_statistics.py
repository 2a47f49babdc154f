"""Shares with their errors, and where a share reaches a half."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import ndtr, ndtri

F8 = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: Fewer trials, or fewer of either kind, fix no curve.
_LEAST, _LEAST_OF_EACH = 20, 5


def share(hits: Flags) -> float:
    """Part of the trials that hit; NaN without any."""
    return float(hits.mean()) if len(hits) else math.nan


def interval(hits: Flags) -> tuple[float, float]:
    """Lower and upper limit of a share at one sigma (Wilson 1927), NaN without trials.

    Unlike sqrt(p q / n) they are right for few trials, and where all or none hit.
    """
    n = len(hits)
    if not n:
        return math.nan, math.nan
    p = float(hits.mean())
    middle, half = (p + 0.5 / n) / (1 + 1 / n), math.sqrt(p * (1 - p) / n + 0.25 / n**2) / (1 + 1 / n)
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def half_point(values: F8, hits: Flags) -> float:
    """Where the chance to hit is a half, it rising with the value; NaN where the trials do not say.

    Maximum likelihood of ``p = c Phi((v - m) / w)``: noise of a width about a
    threshold, and a part 1 - c that is lost however large the value.

    Parameters
    ----------
    values : `numpy.ndarray`, (n,)
    hits : `numpy.ndarray`, (n,), bool
    """
    finite = np.isfinite(values)
    values, hits = values[finite], hits[finite]
    if len(values) < _LEAST or min(hits.sum(), (~hits).sum()) < _LEAST_OF_EACH:
        return math.nan

    def chance(parameters: Iterable[float]) -> F8:
        middle, width, lost = parameters
        return np.asarray(ndtr((values - middle) / math.exp(width)) / (1 + math.exp(lost)))

    def unlikely(parameters: Iterable[float]) -> float:
        p = np.clip(chance(parameters), 1e-6, 1 - 1e-6)
        return -float(np.where(hits, np.log(p), np.log1p(-p)).sum())

    start = (float(np.median(values[~hits])), math.log(max(float(values.std()) / 2, 1e-3)), -4.0)
    best = minimize(unlikely, start, method="Nelder-Mead", options={"maxiter": 2000, "xatol": 1e-4, "fatol": 1e-6})
    middle, width, lost = best.x
    top = 1 / (1 + math.exp(lost))
    point = middle + math.exp(width) * float(ndtri(min(0.5 / top, 1.0)))
    return point if values.min() <= point <= values.max() else math.nan
