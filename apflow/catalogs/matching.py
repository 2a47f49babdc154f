"""The assignment of least total cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

I8 = NDArray[np.int64]
F8 = NDArray[np.float64]
Flags = NDArray[np.bool_]


def best_pairs(i: I8, j: I8, cost: F8, alone: float) -> Flags:
    """Choose among pairs so that the total cost is the least possible.

    Each i and each j is in one pair at most; an i without a pair costs
    `alone`, a j without one nothing. Groups that no pair connects are solved
    each by itself, which gives the optimum of all.

    Parameters
    ----------
    i, j : `numpy.ndarray`, (n,)
        The pairs that are possible; no pair twice. Of equally good choices
        the one with the lower indices is taken, so that number things by what
        they are (their ids), not by their place in a table.
    cost : `numpy.ndarray`, (n,)
        What a pair costs.

    Returns
    -------
    `numpy.ndarray`, (n,)
        True for the pairs chosen.
    """
    chosen = np.zeros(len(i), bool)
    worth = np.flatnonzero(cost < alone)  # leaving i alone is never worse than one of the others
    i, j, cost = i[worth], j[worth], cost[worth]
    if not len(worth):
        return chosen
    group, star = _groups(i, j)
    # Where all pairs share an i or a j, one of them is chosen: the cheapest.
    order = np.lexsort((j, i, cost, group))
    order = order[star[order]]
    first = np.diff(group[order], prepend=-1) > 0
    chosen[worth[order[first]]] = True
    rest = np.flatnonzero(~star)
    rest = rest[np.argsort(group[rest], kind="stable")]
    for pairs in np.split(rest, np.flatnonzero(np.diff(group[rest])) + 1) if len(rest) else ():
        chosen[worth[pairs[_solve(i[pairs], j[pairs], cost[pairs], alone)]]] = True
    return chosen


def _groups(i: I8, j: I8) -> tuple[I8, Flags]:
    """Connected group of each pair, and whether all pairs of that group share an i or a j."""
    n_i, n_j = int(i.max()) + 1, int(j.max()) + 1
    graph = coo_array((np.ones(len(i), np.int8), (i, n_i + j)), shape=(n_i + n_j, n_i + n_j))
    n, label = connected_components(graph, directed=False)
    has_i, has_j = (np.bincount(label[np.unique(k)], minlength=n) for k in (i, n_i + j))
    group = label[i].astype(np.int64)
    return group, np.minimum(has_i, has_j)[group] == 1


def _solve(i: I8, j: I8, cost: F8, alone: float) -> I8:
    """Indices of the pairs chosen within one group."""
    own, row = np.unique(i, return_inverse=True)
    theirs, column = np.unique(j, return_inverse=True)
    table = np.full((len(own), len(theirs) + len(own)), np.inf)
    table[row, column] = cost
    table[np.arange(len(own)), len(theirs) + np.arange(len(own))] = alone
    taken = np.full(len(own), -1)
    rows, columns = linear_sum_assignment(table)
    taken[rows] = columns
    return np.flatnonzero(taken[row] == column)
