"""Two images on one grid: by their stars, by their WCS, or as they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import BadRequest, DataError
from apflow.model.exposure import Exposure, Mask
from apflow.model.wcs import fit_wcs
from apflow.pixels.align import Alignment, Mapping, align, describe
from apflow.pixels.common_sky import settled
from apflow.pixels.stars import find_stars
from apflow.pixels.warp import STEP, warp_into

F8 = NDArray[np.float64]

#: S/N of the stars that images are aligned by; what is narrower than this is no star, pixels.
_SNR, _NARROWEST = 10.0, 1.35
#: Quantile of the widths that is a star's, galaxies being wider; taken where there are none, pixels.
_STELLAR, _USUAL_FWHM = 0.25, 3.0
#: With fewer stars than this in one of them, images of one shape are taken as aligned, and a WCS as right.
_FEW = 10
#: Images on one grid that stars have within so many pixels of each other are not resampled: the
#: matching kernel takes up the rest, and interpolation would cost an image its white noise.
_KERNEL_TAKES_PX = 0.5
#: A template with so many times as many pixels along a side is binned before it is resampled.
_BINNED = 1.5


@dataclass(frozen=True)
class Placement:
    """How a template was brought to a science image's grid.

    Attributes
    ----------
    by : `str`
        "stars", "WCS", or "nothing" where images of one shape were taken as aligned.
    resampled : `bool`
    numbers : `dict` [`str`, `float`]
        Matched stars, stars of both images, scatter, and the mapping as `apflow.pixels.align.describe` has it.
    note : `str`
        Why the stars did not tell, where they did not.
    """

    by: str
    resampled: bool
    numbers: dict[str, float] = field(default_factory=dict)
    note: str = ""


def on_one_grid(
    science: Exposure, template: Exposure, paths: tuple[Path, Path]
) -> tuple[Exposure, Exposure, Placement]:
    """The two images with the template on the science image's grid.

    Stars decide wherever enough of them are in both images, beginning with the
    two WCS, with the pixels as they are where the shapes are one, or with
    nothing. Where they are too few the WCS are believed, or images of one shape taken as aligned.

    Parameters
    ----------
    science, template : `Exposure`
        With the sky subtracted, from `apflow.operate.any_fits.prepare`.
    paths : `tuple` [`pathlib.Path`, `pathlib.Path`]
        Their files, for messages.

    Returns
    -------
    science, template : `Exposure`
        The former with a WCS from the template's where it had none.
    placement : `Placement`

    Raises
    ------
    BadRequest
        No WCS in both, and stars that do not match, or too few of them and different shapes.
    DataError
        The images do not overlap.
    """
    start = _start(science, template)
    stars = _stars(science), _stars(template)
    mapping: Mapping
    try:
        mapping = align(stars[0], stars[1], (science.shape, template.shape), start)
        by, note = "stars", ""
    except DataError as error:
        by, note = ("WCS" if _both_wcs(science, template) else "nothing"), str(error)
        if start is None or (by == "nothing" and min(map(len, stars)) >= _FEW):
            raise BadRequest(_cannot(science, template, paths, note)) from error
        mapping = start
    numbers = describe(mapping, science.shape)
    if isinstance(mapping, Alignment):
        numbers |= {
            "matched_stars": float(mapping.matched),
            "science_stars": float(mapping.stars[0]),
            "template_stars": float(mapping.stars[1]),
            "rms_px": mapping.rms_px,
        }
    same = science.shape == template.shape and _largest_shift(mapping, science.shape) < _KERNEL_TAKES_PX
    if not same:
        resampled = _resampled(science, template, mapping)
        if ((resampled.mask & Mask.NO_DATA) != 0).all():
            raise DataError(_apart(science, template, paths))
        template = resampled
    if science.wcs is None and template.wcs is not None:
        sky = template.wcs.pixel_to_sky
        science = dataclasses.replace(science, wcs=fit_wcs(lambda x, y: sky(*mapping(x, y)), science.shape))
    widths = [float(table["fwhm"].quantile(_STELLAR)) for table in stars if len(table)]
    science, template = settled(science, template, max(widths, default=_USUAL_FWHM))
    return science, dataclasses.replace(template, wcs=science.wcs), Placement(by, not same, numbers, note)


def _both_wcs(science: Exposure, template: Exposure) -> bool:
    return science.wcs is not None and template.wcs is not None


def _start(science: Exposure, template: Exposure) -> Mapping | None:
    """Where the template's pixels are if the WCS, or else the shapes, can be believed."""
    ours, theirs = science.wcs, template.wcs
    if ours is not None and theirs is not None:
        return lambda x, y: theirs.sky_to_pixel(*ours.pixel_to_sky(x, y))
    if science.shape == template.shape:
        return lambda x, y: (np.asarray(x, float), np.asarray(y, float))
    return None


def _stars(exposure: Exposure) -> pd.DataFrame:
    found = find_stars(exposure, _SNR)
    return found[found["fwhm"] > _NARROWEST]


def _nodes(shape: tuple[int, int], step: int) -> tuple[F8, F8]:
    """Positions (x, y) of every `step` pixels, one past the end."""
    y, x = (np.arange(-(-n // step) + 1) * float(step) for n in shape)
    grid_x, grid_y = np.meshgrid(x, y)
    return grid_x, grid_y


def _largest_shift(mapping: Mapping, shape: tuple[int, int]) -> float:
    x, y = _nodes((shape[0] - 1, shape[1] - 1), max(min(shape) // 4, 1))
    u, v = mapping(x, y)
    return float(np.nanmax(np.hypot(u - x, v - y)))


def _resampled(science: Exposure, template: Exposure, mapping: Mapping) -> Exposure:
    """The template on the science image's grid; NO_DATA where it has none."""
    factor = int(describe(mapping, science.shape)["scale"] / _BINNED + 0.5) or 1
    if factor > 1:
        template = _binned(template, factor)
    x, y = mapping(*_nodes(science.shape, STEP))
    x, y = ((c - (factor - 1) / 2) / factor for c in (x, y))
    image, variance = np.zeros(science.shape, np.float32), np.zeros(science.shape, np.float32)
    mask, depth = np.full(science.shape, int(Mask.NO_DATA), np.int32), np.full(science.shape, -1.0, np.float32)
    warp_into(template, x, y, image, variance, mask, depth)
    return dataclasses.replace(template, image=image, variance=variance, mask=mask)


def _binned(exposure: Exposure, factor: int) -> Exposure:
    """Blocks of pixels as one: their flux, their variance, and any plane that one of them has."""
    ny, nx = (n // factor for n in exposure.shape)

    def blocks(plane: NDArray[Any]) -> NDArray[Any]:
        return plane[: ny * factor, : nx * factor].reshape(ny, factor, nx, factor)

    image, variance = (np.asarray(blocks(p).sum((1, 3))) for p in (exposure.image, exposure.variance))
    mask = np.bitwise_or.reduce(np.bitwise_or.reduce(blocks(exposure.mask), 3), 1)
    return dataclasses.replace(exposure, image=image, variance=variance, mask=mask)


def _cannot(science: Exposure, template: Exposure, paths: tuple[Path, Path], note: str) -> str:
    without = " and ".join(str(p) for e, p in zip((science, template), paths, strict=True) if e.wcs is None)
    return (
        f"{paths[0]} of shape {science.shape} and {paths[1]} of shape {template.shape} cannot be aligned: no WCS in "
        f"{without}, and {note}; accepted: a WCS in both, stars that match, or images of one shape that are aligned "
        "already and show few stars"
    )


def _apart(science: Exposure, template: Exposure, paths: tuple[Path, Path]) -> str:
    return (
        f"{paths[0]} and {paths[1]} do not overlap on the sky: their middles (RA, Dec) are "
        f"{_middle(science)} and {_middle(template)}"
    )


def _middle(exposure: Exposure) -> str:
    if exposure.wcs is None:
        return "unknown"
    ra, dec = exposure.wcs.pixel_to_sky(exposure.shape[1] / 2, exposure.shape[0] / 2)
    return f"({float(ra):.4f}, {float(dec):+.4f})"
