"""Glints: the flashes in a row that a tumbling satellite leaves."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.stats import poisson

F8 = NDArray[np.float64]

#: Glints of one satellite lie within this of one another, arcsec, and within this of their line, px; five at least.
_GLINT_ARCSEC, _GLINT_PX, _LEAST_GLINTS = 48.0, 1.5, 5
#: Chance lines that may be taken for glints on an image, on average.
_CHANCE = 1e-3
#: Sources expected by chance within reach and on a line, from which on no row stands out.
_CROWDED = 0.5


def glint_trails(x: F8, y: F8, candidates: NDArray[np.bool_], scale_arcsec: float, area_px: float) -> NDArray[np.bool_]:
    """Sources that lie with others along a line, as the glints of a tumbling satellite do.

    Parameters
    ----------
    x, y : `numpy.ndarray`, (n,)
        Pixels.
    candidates : `numpy.ndarray`, (n,), bool
        Sources that may be glints: those that only the science image has.
    scale_arcsec : `float`
        Of a pixel.
    area_px : `float`
        Of the image.

    Returns
    -------
    glint : `numpy.ndarray`, (n,), bool
        True for five sources and more within 48 arcsec of one another and
        1.5 px of their line, where chance makes less than one such line in a
        thousand images of as many sources.
    """
    out = np.zeros(len(x), np.bool_)
    rows = np.flatnonzero(candidates & np.isfinite(x) & np.isfinite(y))
    if len(rows) < _LEAST_GLINTS:
        return out
    places = np.c_[x[rows], y[rows]]
    reach = _GLINT_ARCSEC / scale_arcsec
    tree = cKDTree(places)
    pairs = tree.query_pairs(reach, output_type="ndarray")
    expected = len(rows) / area_px * 2 * reach * 2 * _GLINT_PX
    if expected > _CROWDED:
        return out
    # Chance lines of a crowd have more sources: those of satellites must, too.
    least = max(_LEAST_GLINTS, 3 + int(poisson.isf(_CHANCE / max(len(pairs), 1), expected)))
    near = tree.query_ball_point(places, reach, return_sorted=True)
    bounds = np.concatenate([[0], np.cumsum([len(n) for n in near])])
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    out[rows] = _on_lines(places, pairs, np.concatenate(near).astype(np.int64), bounds.astype(np.int64), least)
    return out


@njit(cache=True, nogil=True)
def _on_lines(places, pairs, near, bounds, least):  # type: ignore[no-untyped-def]
    """Places (n, 2) on a line with at least so many of its first one's neighbours."""
    out = np.zeros(places.shape[0], np.bool_)
    for p in range(pairs.shape[0]):
        i, j = pairs[p]
        dx, dy = places[j, 0] - places[i, 0], places[j, 1] - places[i, 1]
        length = np.hypot(dx, dy)
        if length < 4 * _GLINT_PX:
            continue
        for turn in range(2):
            count = 0
            for m in near[bounds[i] : bounds[i + 1]]:
                if abs((places[m, 0] - places[i, 0]) * dy - (places[m, 1] - places[i, 1]) * dx) <= _GLINT_PX * length:
                    count += 1
                    if turn == 1:
                        out[m] = True
            if count < least:
                break
    return out
