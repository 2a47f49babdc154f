"""Gradient boosting of small decision trees for two classes (Friedman 2001), with binned features."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.reliability import Model

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]

_BINS = 96
#: Shrinkage of each tree's answer, and the weight of the prior that it is 0.
_RATE, _PRIOR = 0.08, 4.0
#: Least weight (sum of p (1 - p)) of an end of a tree.
_LEAST_WEIGHT = 8.0
#: Part of the rows, and of the features, that each tree sees.
_ROWS, _COLUMNS = 0.6, 0.5

#: Newton's steps to the calibration, which converges in about five.
_NEWTON = 20


def boost(rows: F4, real: Bool, names: tuple[str, ...], version: str, *, ntrees: int, depth: int, seed: int) -> Model:
    """Train a forest that minimizes the logistic loss; the same input gives the same forest.

    Parameters
    ----------
    rows : `numpy.ndarray`, (n, nfeatures), float32
        A NaN counts as less than every number.
    real : `numpy.ndarray`, (n,), bool
    names : `tuple` [`str`, ...]
    version : `str`
    ntrees, depth, seed : `int`
    """
    rng = np.random.default_rng(seed)
    edges = _edges(rows)
    binned = np.stack([np.searchsorted(e, column, "left") for e, column in zip(edges, rows.T, strict=True)])
    binned[np.isnan(rows.T)] = 0
    bins = np.ascontiguousarray(binned.T.astype(np.uint8))
    target, score = real.astype(float), np.zeros(len(real))
    nodes = 2**depth - 1
    feature, threshold = np.zeros((ntrees, nodes), np.int16), np.full((ntrees, nodes), np.inf, np.float32)
    leaf = np.zeros((ntrees, nodes + 1), np.float32)
    for tree in range(ntrees):
        p = 1 / (1 + np.exp(-score))
        gradient, weight = target - p, p * (1 - p)
        seen = rng.random(len(real)) < _ROWS
        columns = np.sort(rng.permutation(len(names))[: max(1, round(_COLUMNS * len(names)))])
        cut, which, value, ends = _grow(bins, gradient, weight, seen, columns, depth)
        feature[tree], leaf[tree] = which, value
        threshold[tree] = [edges[f][c] if c < len(edges[f]) else np.inf for f, c in zip(which, cut, strict=True)]
        score += value[ends]
    return Model(version, names, feature, threshold, leaf)


def calibrate(votes: F8, real: Bool) -> tuple[float, float]:
    """Slope and offset that turn sums of trees into probabilities, by most likelihood (Platt 1999)."""
    design, target = np.stack([votes, np.ones(len(votes))], -1), real.astype(float)
    line = np.array([1.0, 0.0])
    for _ in range(_NEWTON):
        p = 1 / (1 + np.exp(-design @ line))
        line = line + np.linalg.solve((design.T * (p * (1 - p))) @ design, design.T @ (target - p))
    return float(line[0]), float(line[1])


def _edges(rows: F4) -> list[F4]:
    """Values between which each feature is binned: quantiles, each once."""
    out = []
    for column in rows.T:
        known = column[np.isfinite(column)]
        quantiles = np.quantile(known, np.linspace(0, 1, _BINS)[1:-1]) if len(known) else np.zeros(1)
        sorted_ = np.sort(quantiles.astype(np.float32))
        out.append(sorted_[np.append(True, np.diff(sorted_) > 0)])
    return out


@njit(cache=True, nogil=True)
def _grow(bins, gradient, weight, seen, columns, depth):  # type: ignore[no-untyped-def]
    """One tree: bin and feature of each question, answers, and the end that each row comes to."""
    n, nodes = bins.shape[0], 2**depth - 1
    cut, which = np.full(nodes, 255, np.int64), np.zeros(nodes, np.int64)
    node = np.zeros(n, np.int64)
    for level in range(depth):
        first, many = 2**level - 1, 2**level
        sums = np.zeros((many, columns.size, _BINS, 2))
        for i in range(n):
            if seen[i]:
                for c in range(columns.size):
                    b = bins[i, columns[c]]
                    sums[node[i] - first, c, b, 0] += gradient[i]
                    sums[node[i] - first, c, b, 1] += weight[i]
        for m in range(many):
            cut[first + m], which[first + m] = _split(sums[m], columns)
        for i in range(n):
            right = bins[i, which[node[i]]] > cut[node[i]]
            node[i] = 2 * node[i] + (2 if right else 1)
    top, bottom = np.zeros(nodes + 1), np.zeros(nodes + 1)
    for i in range(n):
        node[i] -= nodes
        if seen[i]:
            top[node[i]] += gradient[i]
            bottom[node[i]] += weight[i]
    return cut, which, _RATE * top / (bottom + _PRIOR), node


@njit(cache=True, nogil=True)
def _split(sums, columns):  # type: ignore[no-untyped-def]
    """The bin and the feature after which to split, by the most gain; bin 255 where nothing is gained."""
    best, cut, which = 1e-6, 255, columns[0]
    for c in range(columns.size):
        g, h = sums[c, :, 0].sum(), sums[c, :, 1].sum()
        left_g = left_h = 0.0
        for b in range(_BINS - 1):
            left_g += sums[c, b, 0]
            left_h += sums[c, b, 1]
            if left_h < _LEAST_WEIGHT or h - left_h < _LEAST_WEIGHT:
                continue
            right_g = g - left_g
            gain = left_g**2 / (left_h + _PRIOR) + right_g**2 / (h - left_h + _PRIOR) - g**2 / (h + _PRIOR)
            if gain > best:
                best, cut, which = gain, b, columns[c]
    return cut, which
