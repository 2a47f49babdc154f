"""A sheet of stamps for the eye: science, template and difference of the most significant sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from apflow.model.exposure import Exposure
from apflow.model.products import Difference
from apflow.pixels.cutouts import cut

_SIZE, _ZOOM, _GAP, _TEXT = 41, 3, 4, 14
_COLUMNS = 3


def write_sheet(path: Path, difference: Difference, science: Exposure, sources: pd.DataFrame, most: int = 30) -> None:
    """Write a PNG of triplets, most significant first, each with its position and S/N.

    Science and template share one scale; the difference runs from -8 sigma (black) to +8 sigma (white).
    """
    chosen = sources.sort_values("snr", ascending=False, kind="stable").head(most)
    side = _SIZE * _ZOOM
    width, height = 3 * (side + _GAP), side + _TEXT + _GAP
    rows = max(1, -(-len(chosen) // _COLUMNS))
    sheet = Image.new("L", (_COLUMNS * (width + 3 * _GAP), rows * height), 255)
    draw = ImageDraw.Draw(sheet)
    for n, s in enumerate(zip(chosen["x"], chosen["y"], chosen["snr"], chosen["isNegative"], strict=True)):
        x, y, snr, negative = s
        left, top = (n % _COLUMNS) * (width + 3 * _GAP), (n // _COLUMNS) * height
        draw.text((left, top), f"x {x:.1f}  y {y:.1f}  S/N {'-' if negative else ''}{snr:.1f}", fill=0)
        for k, picture in enumerate(_triplet(difference, science, float(x), float(y))):
            tile = Image.fromarray(picture[::-1]).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + k * (side + _GAP), top + _TEXT))
    if chosen.empty:
        draw.text((8, 8), "no source", fill=0)
    sheet.save(path)


def _triplet(difference: Difference, science: Exposure, x: float, y: float) -> list[NDArray[np.uint8]]:
    d, s, t = (cut(e, x, y, _SIZE) for e in (difference.exposure, science, difference.matched))
    noise = float(np.sqrt(np.nanmedian(s.variance))) or 1.0
    top = max(float(np.nanpercentile(np.maximum(s.image, t.image), 99.5)), 10 * noise)
    pictures = [np.arcsinh(c.image / (2 * noise)) / np.arcsinh(top / (2 * noise)) for c in (s, t)]
    sigma = np.sqrt(np.nanmedian(d.variance)) or 1.0
    pictures.append(0.5 + d.image / sigma / 16)
    return [(255 * np.clip(np.nan_to_num(p), 0, 1)).astype(np.uint8) for p in pictures]
