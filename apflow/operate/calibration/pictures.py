"""Pictures of a calibration exposure as PNG inside the page: the focal plane's residuals, and strips of amplifiers."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apflow.model.camera import Camera
from apflow.operate.report_map import drawn_sizes

_SIDE = 1200.0  # px of the mosaic's longer side
#: Colours from low to high (viridis), as the other reports have them.
_RAMP = np.array(
    [(68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140), (40, 174, 128), (94, 201, 98),
     (173, 220, 48), (253, 231, 37)], float
)  # fmt: skip


def mosaic(camera: Camera, pictures: Mapping[int, NDArray[np.float32]]) -> tuple[str, float, float]:
    """The pictures of the detectors in their places in the focal plane, +Y up.

    Parameters
    ----------
    camera : `Camera`
    pictures : mapping of `int` to `numpy.ndarray`
        By detector, on the CCD's own axes; NaN shows the page.

    Returns
    -------
    uri : `str`
        The PNG as data.
    low, high : `float`
        Black and white, in the unit of the pictures.
    """
    low, high = limits(np.concatenate([p.ravel() for p in pictures.values()]))
    shown = [d for d in camera.detectors if d.id in pictures]
    every = np.array([(d.x_mm, d.y_mm) for d in camera.detectors])
    mine = np.array([d.id in pictures for d in camera.detectors])
    centres, sizes = every[mine], drawn_sizes(camera, every)[mine]
    corner, end = (centres - sizes / 2).min(0), (centres + sizes / 2).max(0)
    scale = _SIDE / (end - corner).max()
    width, height = np.ceil((end - corner) * scale).astype(int)
    page = Image.new("LA", (int(width), int(height)), (0, 0))
    for d, centre, size in zip(shown, centres, sizes, strict=True):
        upright = np.rot90(pictures[d.id][::-1], round(d.yaw_deg / 90))
        known = np.isfinite(upright)
        grey = 255 * np.clip((np.where(known, upright, low) - low) / (high - low), 0, 1)
        pixels = np.stack([np.round(grey), 255.0 * known], -1).astype(np.uint8)
        box = [max(1, int(side)) for side in np.floor(size * scale)]
        tile = Image.fromarray(pixels).resize((box[0], box[1]), Image.Resampling.NEAREST)
        x, y = (centre[0] - size[0] / 2 - corner[0]) * scale, (end[1] - centre[1] - size[1] / 2) * scale
        page.paste(tile, (round(x), round(y)))
    return _uri(page), low, high


def strip(values: NDArray[np.float64]) -> str:
    """Values of amplifiers, (rows, columns), as a PNG of one pixel each; NaN shows the page."""
    low, high = limits(values)
    known = np.isfinite(values)
    place = np.clip((np.where(known, values, low) - low) / (high - low), 0, 1) * (len(_RAMP) - 1)
    steps = np.arange(len(_RAMP))
    colours = np.stack([np.interp(place, steps, _RAMP[:, c]) for c in range(3)], -1)
    pixels = np.concatenate([colours, 255.0 * known[..., None]], -1).round().astype(np.uint8)
    return _uri(Image.fromarray(pixels))


def limits(values: NDArray[np.floating]) -> tuple[float, float]:
    """Where a scale begins and ends: all but the outermost hundredth on either side, and never nothing."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(known, [1, 99]))
    if low == high:
        low, high = float(known.min()), float(known.max())
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def ramp_css() -> str:
    """The colours of strips, from low to high, as CSS."""
    return ", ".join(f"rgb({int(r)} {int(g)} {int(b)})" for r, g, b in _RAMP)


def rows_of(values: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    """Values by detector and amplifier for `strip`: amplifiers one below the other where there are many detectors."""
    table = np.full((len(values), max(map(len, values))), np.nan)  # wavefront CCDs have fewer
    for row, found in zip(table, values, strict=True):
        row[: len(found)] = [np.nan if v is None else v for v in found]
    return table.T if len(table) > 12 else table.reshape(1, -1)


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
