"""A sheet of stamps for the eye: science, template and difference of the most significant sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from apflow.model.exposure import Exposure
from apflow.model.products import Difference
from apflow.pixels.cutouts import cut

_SIZE, _ZOOM, _GAP = 41, 4, 4
_COLUMNS, _MARGIN, _TEXT = 3, 12, 18
#: Side of the whole images shown where there is no source, pixels.
_OVERVIEW = 360
#: Grey of pixels that are not on the image.
_NOWHERE = 200
_TITLES = ("science", "template", "difference")


def write_sheet(path: Path, difference: Difference, science: Exposure, sources: pd.DataFrame, most: int = 30) -> None:
    """Write a PNG of triplets, most significant first, each with its position and S/N.

    Science and template share one scale, asinh; the difference runs from -8
    sigma (black) to +8 sigma (white), and small marks point at the source.
    Where there is no source the whole images are shown, with a line that says so.
    """
    chosen = sources.sort_values("snr", ascending=False, kind="stable").head(most)
    font = ImageFont.load_default(13)
    if chosen.empty:
        _overview(difference, science, font).save(path)
        return
    side = _SIZE * _ZOOM
    width, height = 3 * (side + _GAP) + _MARGIN, side + _TEXT + 2 * _GAP
    columns, top = min(_COLUMNS, len(chosen)), 2 * _TEXT + _GAP
    rows = -(-len(chosen) // columns)
    sheet = Image.new("L", (_MARGIN + columns * width, top + rows * height), 255)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _GAP), _summary(len(chosen), sources), 0, font)
    for c in range(columns):
        for k, title in enumerate(_TITLES):
            draw.text((_MARGIN + c * width + k * (side + _GAP), _TEXT + _GAP), title, 90, font)
    for n, (x, y, label) in enumerate(zip(chosen["x"], chosen["y"], _labels(chosen), strict=True)):
        left, above = _MARGIN + (n % columns) * width, top + (n // columns) * height
        draw.text((left, above), label, 0, font)
        for k, picture in enumerate(_triplet(difference, science, float(x), float(y))):
            tile = Image.fromarray(picture[::-1]).resize((side, side), Image.Resampling.NEAREST)
            _mark(tile)
            sheet.paste(tile, (left + k * (side + _GAP), above + _TEXT))
    sheet.save(path)


def _summary(shown: int, sources: pd.DataFrame) -> str:
    negative = int(sources["isNegative"].sum())
    which = "" if shown == len(sources) else f" ({shown} most significant shown)"
    plural = "" if len(sources) == 1 else "s"
    return f"{len(sources)} source{plural}, {negative} negative{which}; difference from -8 to +8 sigma"


def _labels(sources: pd.DataFrame) -> list[str]:
    columns = (sources[c] for c in ("diaSourceId", "x", "y", "snr", "isNegative", "isDipole"))
    return [
        f"{i}   x {x:.1f}  y {y:.1f}   S/N {'-' if negative else ''}{snr:.1f}{'   dipole' if dipole else ''}"
        for i, x, y, snr, negative, dipole in zip(*columns, strict=True)
    ]


def _mark(tile: Image.Image) -> None:
    """Marks left of and below the middle that leave the source free."""
    draw, half = ImageDraw.Draw(tile), tile.width // 2
    near, far = half - 7 * _ZOOM, half - 11 * _ZOOM
    for offset, grey in ((0, 255), (1, 0)):
        draw.line((far, half + offset, near, half + offset), grey)
        draw.line((half + offset, tile.height - far, half + offset, tile.height - near), grey)


def _triplet(difference: Difference, science: Exposure, x: float, y: float) -> list[NDArray[np.uint8]]:
    d, s, t = (cut(e, x, y, _SIZE) for e in (difference.exposure, science, difference.matched))
    noise = float(np.sqrt(np.nanmedian(s.variance))) or 1.0
    sigma = float(np.sqrt(np.nanmedian(d.variance))) or 1.0
    return _pictures(s.image, t.image, d.image, noise, sigma)


def _pictures(
    science: NDArray[np.float32],
    template: NDArray[np.float32],
    difference: NDArray[np.float32],
    noise: float,
    sigma: float,
) -> list[NDArray[np.uint8]]:
    """Greys of the three images for given noises of science image and difference."""
    top = max(float(np.nanpercentile(np.fmax(science, template), 99.5)), 10 * noise)
    planes = [0.1 + 0.9 * np.arcsinh(p / (2 * noise)) / np.arcsinh(top / (2 * noise)) for p in (science, template)]
    planes.append(0.5 + difference / sigma / 16)
    return [np.where(np.isnan(p), _NOWHERE, 255 * np.clip(np.nan_to_num(p), 0, 1)).astype(np.uint8) for p in planes]


def _overview(
    difference: Difference, science: Exposure, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    """The three whole images, for a run without a source."""
    step = max(1, max(science.shape) // _OVERVIEW)
    part = np.s_[::step, ::step]
    planes = [e.image[part] for e in (science, difference.matched, difference.exposure)]
    noise, sigma = (float(np.sqrt(np.nanmedian(e.variance[part]))) or 1.0 for e in (science, difference.exposure))
    ny, nx = planes[0].shape
    size = (max(1, nx * _OVERVIEW // max(nx, ny)), max(1, ny * _OVERVIEW // max(nx, ny)))
    top = 2 * _TEXT + _GAP
    sheet = Image.new("L", (3 * (size[0] + _GAP) + 2 * _MARGIN, top + size[1] + _MARGIN), 255)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _GAP), "no source; the whole images, difference from -8 to +8 sigma", 0, font)
    for k, picture in enumerate(_pictures(planes[0], planes[1], planes[2], noise, sigma)):
        left = _MARGIN + k * (size[0] + _GAP)
        draw.text((left, _TEXT + _GAP), _TITLES[k], 90, font)
        sheet.paste(Image.fromarray(picture[::-1]).resize(size), (left, top))
    return sheet
