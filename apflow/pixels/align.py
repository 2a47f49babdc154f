"""Registration of one image on another by the stars that both show, with or without a first idea of where they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import gammainc

from apflow.errors import DataError
from apflow.model.psf import polynomial_exponents, polynomial_terms
from apflow.pixels.asterisms import similarities

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Mapping = Callable[[F8, F8], tuple[F8, F8]]
Model = Callable[[F8, F8, tuple[int, int]], tuple[F8, float] | None]

#: Stars used at most, the brightest.
_MOST = 600
#: Distances in pixels within which stars are matched while the mapping is improved, the last times the scatter.
_TOLERANCES = (3.0, 2.0, 1.5)
_CLIP, _CLOSEST = 4.0, 0.15
#: Stars that must match at least, and the probability that so many do so by chance, of as many mappings tried.
_LEAST, _CHANCE, _TRIALS = 4, 1e-4, 2e4
#: The first idea may be wrong by so many pixels.
_SEARCH = 40.0
#: Stars that vote on the shift.
_VOTERS = 200
#: Highest order of the polynomial, and the stars a coefficient needs.
_ORDER, _STARS_A_TERM = 3, 4


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where the pixels of the science image are in the template.

    Attributes
    ----------
    start : callable
        A first mapping of science pixels (x, y) to template pixels.
    correction : `numpy.ndarray`, (2, nterms)
        Coefficients in x and y of the polynomial added to it, pixels of the template.
    shape : `tuple` [`int`, `int`]
        Shape (ny, nx) of the science image.
    matched : `int`
        Stars that both images show.
    stars : `tuple` [`int`, `int`]
        Stars of the science image that fall on the template, and of the template on the science image.
    rms_px : `float`
        Scatter of the matched stars about the mapping in one coordinate, pixels of the template.
    """

    start: Mapping
    correction: F8
    shape: tuple[int, int]
    matched: int
    stars: tuple[int, int]
    rms_px: float

    def __call__(self, x: F8, y: F8) -> tuple[F8, F8]:
        """Template pixels of science pixels."""
        u, v = self.start(x, y)
        moved = _polynomial(np.stack([np.ravel(x), np.ravel(y)], 1), self.correction, self.shape)
        return u + moved[:, 0].reshape(np.shape(u)), v + moved[:, 1].reshape(np.shape(v))


def jacobian(mapping: Mapping, shape: tuple[int, int]) -> F8:
    """Derivatives (2, 2) of a mapping of pixels at the middle of an image of the given shape."""
    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    u, v = mapping(np.array([x + 1, x - 1, x, x]), np.array([y, y, y + 1, y - 1]))
    return np.array([[u[0] - u[1], u[2] - u[3]], [v[0] - v[1], v[2] - v[3]]]) / 2


def describe(mapping: Mapping, shape: tuple[int, int]) -> dict[str, float]:
    """Shift of the middle, rotation, scale and parity of a mapping, as numbers by name with unit.

    rotation_deg turns the science image's axes into the template's, from x to
    y; scale is template pixels a science pixel; mirrored is 1 where one
    image is the mirror image (in x) of the other.
    """
    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    u, v = mapping(np.array([x]), np.array([y]))
    d = jacobian(mapping, shape)
    determinant = float(np.linalg.det(d))
    if determinant < 0:
        d = d @ np.diag([-1.0, 1.0])
    return {
        "shift_x_px": float(u[0] - x),
        "shift_y_px": float(v[0] - y),
        "rotation_deg": float(np.degrees(np.arctan2(d[1, 0] - d[0, 1], d[0, 0] + d[1, 1]))),
        "scale": float(np.sqrt(abs(determinant))),
        "mirrored": float(determinant < 0),
    }


def align(
    science: pd.DataFrame,
    template: pd.DataFrame,
    shapes: tuple[tuple[int, int], tuple[int, int]],
    start: Mapping | None = None,
) -> Alignment:
    """Find how one image lies on the other.

    Parameters
    ----------
    science, template : `pandas.DataFrame`
        Stars with x, y (pixels) and flux, as `apflow.pixels.stars.find_stars` gives them.
    shapes : `tuple`
        Shapes (ny, nx) of the science image and of the template.
    start : callable, optional
        A mapping of science pixels to template pixels that may be wrong by
        tens of pixels. Without it, or where the stars do not agree with it,
        it is found from their asterisms: any shift, rotation, scale and parity.

    Raises
    ------
    DataError
        Too few stars match; the message says how many of how many.
    """
    first, second = (_brightest(t) for t in (science, template))
    best = 0
    if start is not None:
        found = _refined(first, second, shapes, start, _SEARCH)
        if isinstance(found, Alignment):
            return found
        best = found
    for guess in similarities(first, second):
        found = _refined(first, second, shapes, guess, 0.0)
        if isinstance(found, Alignment):
            return found
        best = max(best, found)
    raise DataError(
        f"{best} of {len(first)} stars of the science image and {len(second)} of the template match; needed: {_LEAST} "
        "or more, and more than chance explains, of one field of the sky"
    )


def _brightest(stars: pd.DataFrame) -> F8:
    order = np.argsort(-stars["flux"].to_numpy(), kind="stable")[:_MOST]
    return stars[["x", "y"]].to_numpy(float)[order]


def _refined(
    first: F8, second: F8, shapes: tuple[tuple[int, int], tuple[int, int]], start: Mapping, search: float
) -> Alignment | int:
    """The mapping improved with all stars, or how many matched where these are too few."""
    shape, other = shapes
    u = np.stack(start(*first.T), 1)
    inside = _inside(u, other, search)
    first, u = first[inside], u[inside]
    if min(len(first), len(second)) < _LEAST:
        return 0
    tree = cKDTree(second)
    correction = (_common_offset(u, tree, search) if search else np.zeros(2))[:, None]
    rms = _TOLERANCES[-1] / _CLIP
    # What three stars say of rotation and scale is worth less than what all do.
    models = _MODELS if search else _MODELS[1:]
    for limit in (*_TOLERANCES, 0.0, 0.0):
        at = u + _polynomial(first, correction, shape)
        tolerance = limit or float(np.clip(_CLIP * rms, _CLOSEST, _TOLERANCES[-1]))
        i, j = _pairs(at, tree, tolerance)
        if len(i) < _LEAST:
            return len(i)
        correction, rms = _fit(first[i], second[j] - u[i], shape, models)
    there = int(_inside(u + _polynomial(first, correction, shape), other, 0.0).sum())
    by_chance = there * len(second) * np.pi * max(tolerance, 1.0) ** 2 / (other[0] * other[1])
    # A shift is given by one star, a similarity by two, and many were tried.
    free, trials = (1, search**2) if search else (2, min(_TRIALS, (len(first) * len(second)) ** 2 / 2))
    if trials * gammainc(len(i) - free, by_chance) > _CHANCE:
        return len(i)
    design = _terms(second, other, 1)
    back = np.asarray(design @ np.linalg.lstsq(design[j], first[i], rcond=None)[0])
    stars = (there, int(_inside(back, shape, 0.0).sum()))
    return Alignment(start, correction, shape, len(i), stars, rms)


def _inside(positions: F8, shape: tuple[int, int], margin: float) -> NDArray[np.bool_]:
    x, y = positions.T
    return np.asarray((x > -margin) & (y > -margin) & (x < shape[1] - 1 + margin) & (y < shape[0] - 1 + margin))


def _common_offset(u: F8, tree: cKDTree, search: float) -> F8:
    """The shift that most pairs of stars share."""
    near = tree.query_ball_point(u[:_VOTERS], search)
    offsets = np.concatenate([tree.data[j] - u[i] for i, j in enumerate(near)])
    if not len(offsets):
        return np.zeros(2)
    votes = cKDTree(offsets)
    count = votes.query_ball_point(offsets, _TOLERANCES[0], return_length=True)
    # Of equals the smallest shift: with few stars the first idea is worth something.
    best = np.lexsort((np.hypot(*offsets.T), -count))[0]
    return np.asarray(np.median(offsets[votes.query_ball_point(offsets[best], _TOLERANCES[0])], 0))


def _pairs(at: F8, tree: cKDTree, tolerance: float) -> tuple[I8, I8]:
    """Pairs (i, j) of stars that are each other's nearest."""
    distance, j = tree.query(at, distance_upper_bound=tolerance)
    i = np.flatnonzero(np.isfinite(distance))
    if not len(i):
        return i, i
    back = cKDTree(at).query(tree.data[j[i]])[1]
    mutual = back == i
    return i[mutual], j[i][mutual]


def _fit(stars: F8, offset: F8, shape: tuple[int, int], models: tuple[Model, ...]) -> tuple[F8, float]:
    """Coefficients through offsets, by the first model that the next one hardly betters, and the scatter about it."""
    best: tuple[F8, float] | None = None
    for model in models:
        fit = model(stars, offset, shape)
        if fit is None:
            break
        for _ in range(4):
            coefficients, terms = fit
            size = np.hypot(*(offset - _polynomial(stars, coefficients, shape)).T)
            # The median of the distances of a Gaussian scatter is 1.177 sigma.
            keep = size <= _CLIP * max(float(np.median(size)) / 1.177, 1e-6)
            fit = model(stars[keep], offset[keep], shape) or fit
        free = max(int(keep.sum()) - terms, 0.5)
        rms = float(np.sqrt((size[keep] ** 2).sum() / 2 / free))
        # A model with more terms must explain more than the noise that it takes up.
        if best is None or rms < best[1] * (1 - 1 / np.sqrt(2 * free)):
            best = coefficients, rms
    assert best is not None
    return best


def _shift(stars: F8, offset: F8, shape: tuple[int, int]) -> tuple[F8, float]:
    return offset.mean(0)[:, None], 1.0


def _similarity(stars: F8, offset: F8, shape: tuple[int, int]) -> tuple[F8, float] | None:
    if len(stars) < _STARS_A_TERM:
        return None
    (ny, nx), z = shape, stars @ np.array([1, 1j])
    middle = (nx - 1) / 2 + 1j * (ny - 1) / 2
    design = np.stack([np.ones_like(z), z - middle], 1)
    a, b = np.linalg.lstsq(design, offset @ np.array([1, 1j]), rcond=None)[0]
    along_x, along_y = b * (nx - 1) / 2, 1j * b * (ny - 1) / 2
    return np.array([[a.real, along_x.real, along_y.real], [a.imag, along_x.imag, along_y.imag]]), 2.0


def _polynomial_fit(stars: F8, offset: F8, shape: tuple[int, int], order: int) -> tuple[F8, float] | None:
    design = _terms(stars, shape, order)
    if len(stars) < _STARS_A_TERM * design.shape[1]:
        return None
    return np.linalg.lstsq(design, offset, rcond=None)[0].T, float(design.shape[1])


_MODELS: tuple[Model, ...] = (
    _shift,
    _similarity,
    *(functools.partial(_polynomial_fit, order=order) for order in range(1, _ORDER + 1)),
)


def _terms(stars: F8, shape: tuple[int, int], order: int) -> F8:
    return polynomial_terms(stars[:, 0], stars[:, 1], shape, order)


def _polynomial(stars: F8, correction: F8, shape: tuple[int, int]) -> F8:
    order = next(o for o in range(_ORDER + 1) if len(polynomial_exponents(o)) == correction.shape[1])
    return np.asarray(_terms(stars, shape, order) @ correction.T)
