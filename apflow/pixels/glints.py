"""Glints: the flashes in a row that a tumbling satellite leaves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.stats import poisson

F8 = NDArray[np.float64]

#: Glints of one satellite lie within this of one another, arcsec, and within this of their line, px; five at least.
_GLINT_ARCSEC, _GLINT_PX, _LEAST_GLINTS = 48.0, 1.5, 5
#: Chance lines that may be taken for glints on an image, on average.
_CHANCE = 1e-3


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
    # Lines of a crowd are chance: more of its sources must agree, up to none that could.
    others = int(poisson.isf(_CHANCE / max(len(pairs), 1), expected)) + 1
    near = tree.query_ball_point(places, reach)
    for i, j in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
        step = places[j] - places[i]
        length = float(np.hypot(*step))
        if length < 4 * _GLINT_PX or (out[rows[i]] and out[rows[j]]):
            continue
        members = np.array(near[i])
        line = members[_off(places[members] - places[i], step) <= _GLINT_PX]
        if len(line) >= max(_LEAST_GLINTS, 2 + others):
            out[rows[line]] = True
    return out


def _off(places: F8, step: F8) -> F8:
    """Distances (n,) of places (n, 2) from the line through the origin along a step."""
    return np.asarray(np.abs(places[:, 0] * step[1] - places[:, 1] * step[0]) / np.hypot(*step))
