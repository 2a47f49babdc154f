"""Two snaps of a visit made one."""

from __future__ import annotations

import dataclasses

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.pixels.interpolate import fill, masked_pixels, typical

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]

#: By how many sigma a pixel of one snap must exceed the other, and its neighbours once one does.
_SEED_SIGMA, _GROW_SIGMA = 6.0, 3.0
#: Seeing, pointing and clouds change between snaps: a snap may exceed the other's brightest pixel near by this part.
_CHANGE = 0.5

_CR, _INTRP, _SAT = int(Mask.CR), int(Mask.INTRP), int(Mask.SAT)
_UNUSABLE = int(Mask.BAD | Mask.SAT | Mask.NO_DATA)


def combine(first: Exposure, second: Exposure) -> Exposure:
    """Sum of two snaps, cosmic rays found by comparison.

    A pixel that exceeds the other snap's brightest pixel within 1 px beyond
    the noise and what seeing may change is a hit, and so are its neighbours
    with a lower excess. The sum then takes the other snap's value twice, its
    variance four times, and sets CR; where both are hit it is interpolated.

    Returns
    -------
    exposure : `Exposure`
        Image, variance and exposure time summed, planes joined; `info` spans
        both snaps and is otherwise the first one's. Of numbers in `summary`
        the larger one stands.

    Raises
    ------
    DataError
        The snaps are of different detectors, shapes or units.
    """
    _check(first, second)
    mask = first.mask | second.mask
    sky = tuple(np.float32(typical(e.image, e.mask, _UNUSABLE)) for e in (first, second))
    hit1 = _excess(first.image, first.variance, second.image, second.variance, mask, *sky)
    hit2 = _excess(second.image, second.variance, first.image, first.variance, mask, *sky[::-1])
    difference = sky[0] - sky[1]
    image1 = np.where(hit1, second.image + difference, first.image)
    image2 = np.where(hit2, first.image - difference, second.image)
    variance = first.variance + second.variance
    variance = np.where(hit1, 4 * second.variance, np.where(hit2, 4 * first.variance, variance))
    mask[hit1 | hit2] |= _CR
    image = image1 + image2
    both = (hit1 & hit2).astype(np.int32)
    if both.any():
        fill(image, both, 1, masked_pixels(both, 1), sky[0] + sky[1])
        mask[both != 0] |= _INTRP
    assert first.info is not None and second.info is not None
    info = dataclasses.replace(
        first.info,
        exposure_time_s=first.info.exposure_time_s + second.info.exposure_time_s,
        mjd_begin_tai=min(first.info.mjd_begin_tai, second.info.mjd_begin_tai),
        mjd_end_tai=max(first.info.mjd_end_tai, second.info.mjd_end_tai),
    )
    summary = {name: max(value, second.summary.get(name, value)) for name, value in first.summary.items()}
    return dataclasses.replace(first, image=image, variance=variance, mask=mask, info=info, summary=summary)


def _check(first: Exposure, second: Exposure) -> None:
    if first.info is None or second.info is None:
        raise DataError("snaps without a header cannot be combined")
    for name, a, b in (
        ("detectors", first.info.detector, second.info.detector),
        ("shapes", first.shape, second.shape),
        ("units", first.unit, second.unit),
    ):
        if a != b:
            raise DataError(
                f"snaps {first.info.exposure} and {second.info.exposure} are of different {name}: {a} and {b}"
            )


@njit(cache=True, nogil=True)
def _excess(
    image: F4, variance: F4, other: F4, other_variance: F4, mask: I4, sky: np.float32, other_sky: np.float32
) -> NDArray[np.bool_]:
    """Pixels of an image that stand out against the other snap."""
    ny, nx = image.shape
    hits = np.zeros((ny, nx), np.bool_)
    stack = [(0, 0) for _ in range(0)]
    step = np.float32(_SEED_SIGMA**2)
    for y in range(ny):
        for x in range(nx):
            more = (image[y, x] - sky) - (other[y, x] - other_sky)
            if more <= 0 or more * more < step * (variance[y, x] + other_variance[y, x]):
                continue
            if _stands_out(image, variance, other, other_variance, mask, sky, other_sky, y, x, _SEED_SIGMA):
                hits[y, x] = True
                stack.append((y, x))
    while len(stack) > 0:
        y, x = stack.pop()
        for yy in range(max(0, y - 1), min(ny, y + 2)):
            for xx in range(max(0, x - 1), min(nx, x + 2)):
                if not hits[yy, xx] and _stands_out(
                    image, variance, other, other_variance, mask, sky, other_sky, yy, xx, _GROW_SIGMA
                ):
                    hits[yy, xx] = True
                    stack.append((yy, xx))
    return hits


@njit(cache=True, nogil=True)
def _stands_out(
    image: F4,
    variance: F4,
    other: F4,
    other_variance: F4,
    mask: I4,
    sky: np.float32,
    other_sky: np.float32,
    y: int,
    x: int,
    sigma: float,
) -> bool:
    """Whether a pixel exceeds the other snap beyond noise and a change of seeing."""
    if mask[y, x] & _UNUSABLE:
        return False
    ny, nx = image.shape
    near = np.float32(0)
    for yy in range(max(0, y - 1), min(ny, y + 2)):
        for xx in range(max(0, x - 1), min(nx, x + 2)):
            near = max(near, other[yy, xx] - other_sky)
    more = (image[y, x] - sky) - (other[y, x] - other_sky) - np.float32(_CHANGE) * near
    return bool(more > sigma * np.sqrt(variance[y, x] + other_variance[y, x]))
