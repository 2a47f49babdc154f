"""Two lists of stars of one field whose relation is unknown: similarities from triangles of equal shape."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
C16 = NDArray[np.complex128]

#: All triangles of so many of the brightest stars are taken, and those of each star of a
#: larger number with pairs of its nearest neighbours: the two lists may be of other depth and size.
_BRIGHTEST, _SETS, _NEIGHBOURS = 14, (40, 120, 300), 6
#: Triangles whose sides' ratios are this close may be the same.
_CLOSE = 0.006
#: A triangle is of use if its shortest side has so many pixels, this part of the longest, and no two sides are alike.
_SHORTEST, _SLENDER, _DISTINCT = 8.0, 0.1, 0.02
#: Pairs of triangles tried at most, the most alike first, and similarities returned.
_TRIALS, _RETURNED = 20_000, 4
#: Scales that can be: template pixels a science pixel.
_SCALES = (0.05, 20.0)
#: Stars by which a similarity is judged, and how close they must come, pixels.
_JUDGES, _TOLERANCE = 150, 3.0
_CHUNK = 500


class Similarity:
    """Shift, rotation, scale and parity: z -> a z + b, or a conj(z) + b where mirrored, in the complex plane."""

    def __init__(self, a: complex, b: complex, mirrored: bool) -> None:
        self.a, self.b, self.mirrored = a, b, mirrored

    def __call__(self, x: F8, y: F8) -> tuple[F8, F8]:
        """Positions (x, y) mapped."""
        z = np.asarray(x, float) + (-1j if self.mirrored else 1j) * np.asarray(y, float)
        w = self.a * z + self.b
        return w.real, w.imag


def similarities(first: F8, second: F8) -> list[Similarity]:
    """Mappings of one list of stars onto another by which most of them coincide, the best first.

    The ratios of a triangle's sides are the same after any shift, rotation,
    scaling and reflection, and their order tells which corner is which (Groth
    1986, Valdes et al. 1995). Each pair of triangles alike gives a mapping, and
    each mapping is tried on the other stars.

    Parameters
    ----------
    first, second : `numpy.ndarray`, (n, 2)
        Positions (x, y), pixels, the brightest first.
    """
    if min(len(first), len(second)) < 3:
        return []
    (corners, shapes), (others, their_shapes) = (_triangles(stars) for stars in (first, second))
    if not len(corners) or not len(others):
        return []
    distance, near = cKDTree(their_shapes).query(shapes, k=min(4, len(others)), distance_upper_bound=_CLOSE)
    distance, near = distance.reshape(len(shapes), -1), near.reshape(len(shapes), -1)
    mine, rank = np.nonzero(np.isfinite(distance))
    order = np.argsort(distance[mine, rank], kind="stable")[:_TRIALS]
    mine, theirs = mine[order], near[mine, rank][order]
    z = first @ np.array([1, 1j])
    w = second @ np.array([1, 1j])
    a, b, mirrored = _from_triangles(z[corners[mine]], w[others[theirs]])
    known = (np.abs(a) > _SCALES[0]) & (np.abs(a) < _SCALES[1])
    a, b, mirrored = a[known], b[known], mirrored[known]
    return _best(a, b, mirrored, z[:_JUDGES], second)


def _triangles(stars: F8) -> tuple[I8, F8]:
    """Corners (n, 3), opposite the shortest side first, and ratios (n, 2) of sides to the longest."""
    found = [np.array(list(combinations(range(min(_BRIGHTEST, len(stars))), 3)))]
    for most in _SETS:
        if most > _BRIGHTEST and len(stars) > 3 and (most == _SETS[0] or len(stars) > most // 2):
            near = cKDTree(stars[:most]).query(stars[:most], k=min(_NEIGHBOURS + 1, len(stars)))[1]
            found += [near[:, [0, i, j]] for i, j in combinations(range(1, near.shape[1]), 2)]
    corners = np.concatenate(found)
    p = stars[corners]
    sides = np.stack([np.hypot(*np.moveaxis(p[:, (i + 1) % 3] - p[:, (i + 2) % 3], -1, 0)) for i in range(3)], 1)
    order = np.argsort(sides, 1)
    corners, sides = np.take_along_axis(corners, order, 1), np.take_along_axis(sides, order, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = sides[:, :2] / sides[:, 2:]
    good = (sides[:, 0] > _SHORTEST) & (ratios[:, 0] > _SLENDER)
    good &= (ratios[:, 1] - ratios[:, 0] > _DISTINCT) & (1 - ratios[:, 1] > _DISTINCT)
    return corners[good].astype(np.int64), ratios[good]


def _from_triangles(z: C16, w: C16) -> tuple[C16, C16, NDArray[np.bool_]]:
    """Similarities by least squares over three corners, of the parity of the triangles."""
    turn = [((p[:, 1] - p[:, 0]).conj() * (p[:, 2] - p[:, 0])).imag for p in (z, w)]
    mirrored = turn[0] * turn[1] < 0
    z = np.where(mirrored[:, None], z.conj(), z)
    zc, wc = z - z.mean(1, keepdims=True), w - w.mean(1, keepdims=True)
    a = (zc.conj() * wc).sum(1) / (np.abs(zc) ** 2).sum(1)
    return a, w.mean(1) - a * z.mean(1), mirrored


def _best(
    a: C16,
    b: C16,
    mirrored: NDArray[np.bool_],
    z: C16,
    second: F8,
) -> list[Similarity]:
    """The similarities that bring most judges next to a star, those that say the same but once."""
    tree = cKDTree(second)
    count = np.zeros(len(a), np.int64)
    for n in range(0, len(a), _CHUNK):
        part = np.s_[n : n + _CHUNK]
        w = a[part, None] * np.where(mirrored[part, None], z.conj(), z) + b[part, None]
        near = tree.query(np.stack([w.real, w.imag], -1), distance_upper_bound=_TOLERANCE)[1]
        for i, row in enumerate(near):
            # A mapping that shrinks the field brings every star next to the same one.
            count[n + i] = len(set(row[row < len(second)].tolist()))
    chosen: list[Similarity] = []
    middle = z.mean()
    for i in np.argsort(-count, kind="stable").tolist():
        where = [s.a * (middle.conjugate() if s.mirrored else middle) + s.b for s in chosen]
        here = a[i] * (middle.conjugate() if mirrored[i] else middle) + b[i]
        if all(abs(here - w) > 2 * _TOLERANCE for w in where):
            chosen.append(Similarity(complex(a[i]), complex(b[i]), bool(mirrored[i])))
        if len(chosen) == _RETURNED:
            break
    return chosen
