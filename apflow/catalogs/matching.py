"""The assignment of greatest total gain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

I8 = NDArray[np.int64]
F8 = NDArray[np.float64]
Flags = NDArray[np.bool_]


def best_pairs(i: I8, j: I8, gain: F8) -> Flags:
    """Choose among pairs so that the total gain is the greatest possible.

    Each i and each j is in one pair at most. Groups that no pair connects are
    solved each by itself, which gives the optimum of all.

    Parameters
    ----------
    i, j : `numpy.ndarray`, (n,)
        The pairs that are possible; no pair twice. Between equally good choices
        it is the numbers that decide, not the order of the pairs.
    gain : `numpy.ndarray`, (n,)
        What a pair is worth; one that is worth 0 or less is never chosen.

    Returns
    -------
    `numpy.ndarray`, (n,)
        True for the pairs chosen.
    """
    chosen = np.zeros(len(i), bool)
    order = np.lexsort((j, i))
    order = order[gain[order] > 0]
    if not len(order):
        return chosen
    i, j, gain = i[order], j[order], gain[order]
    group, star = _groups(i, j)
    # Where all pairs share an i or a j, one of them is chosen.
    best = np.lexsort((j, i, -gain, group))
    best = best[star[best]]
    chosen[order[best[np.diff(group[best], prepend=-1) > 0]]] = True
    rest = np.flatnonzero(~star)
    rest = rest[np.argsort(group[rest], kind="stable")]
    for pairs in np.split(rest, np.flatnonzero(np.diff(group[rest])) + 1) if len(rest) else ():
        chosen[order[pairs[_solve(i[pairs], j[pairs], gain[pairs])]]] = True
    return chosen


def _groups(i: I8, j: I8) -> tuple[I8, Flags]:
    """Connected group of each pair, and whether all pairs of that group share an i or a j."""
    n_i, n_j = int(i.max()) + 1, int(j.max()) + 1
    graph = coo_array((np.ones(len(i), np.int8), (i, n_i + j)), shape=(n_i + n_j, n_i + n_j))
    n, label = connected_components(graph, directed=False)
    has_i, has_j = (np.bincount(label[np.unique(k)], minlength=n) for k in (i, n_i + j))
    group = label[i].astype(np.int64)
    return group, np.minimum(has_i, has_j)[group] == 1


def _solve(i: I8, j: I8, gain: F8) -> I8:
    """Indices of the pairs chosen within one group."""
    own, row = np.unique(i, return_inverse=True)
    theirs, column = np.unique(j, return_inverse=True)
    # What is not possible is worth nothing: an i that the solver puts there stays alone.
    table = np.zeros((len(own), len(theirs)))
    table[row, column] = gain
    taken = np.full(len(own), -1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    taken[rows] = columns
    return np.flatnonzero(taken[row] == column)
