"""Pictures of science image, template and difference, for a simulated and a real pair.

``python benchmarks/pixel_figure.py [FOLDER] [--data DIR]`` writes pixels_simulated.png and, with a folder of real
pairs, pixels_real.png. Circles are the DiaSources, red where the difference is negative.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pixel_pairs import simulated_pair
from pixel_real import prepared, real_pairs

from apflow.model.exposure import Exposure
from apflow.pixels.detect import detect
from apflow.pixels.subtract import subtract

F4 = NDArray[np.float32]

#: Sides of the pictures' panels and the gap between them, pixels; grey levels, few for small files.
_SIDE, _GAP, _LEVELS = 256, 6, 48
_THRESHOLD = 5.0
#: Brightness from black to white in sigma of the sky: of the images by a logarithmic scale, of the difference.
_IMAGE, _DIFFERENCE = (-2.5, 100.0), 8.0
_POSITIVE, _NEGATIVE = (40, 200, 90), (235, 70, 50)
#: Middles (x, y) of what is shown, and the real pair.
_SIMULATED, _REAL, _REAL_NAME = (512, 512), (128, 128), "decam_minis"


def picture(science: Exposure, template: Exposure, middle: tuple[int, int]) -> Image.Image:
    """Three panels about a place: science image, template and difference with its sources."""
    difference = subtract(science, template)
    found = detect(difference, _THRESHOLD)
    half = _SIDE // 2
    x0, y0 = (max(0, min(m - half, n - _SIDE)) for m, n in zip(middle, science.shape[::-1], strict=True))
    box = np.s_[y0 : y0 + _SIDE, x0 : x0 + _SIDE]
    planes = [_image(e.image[box], e.variance[box]) for e in (science, template)]
    sigma = np.sqrt(np.median(difference.exposure.variance[box]))
    planes.append(np.clip(difference.exposure.image[box] / sigma / (2 * _DIFFERENCE) + 0.5, 0, 1))
    sheet = np.ones((_SIDE, 3 * _SIDE + 2 * _GAP), np.float32)
    for k, plane in enumerate(planes):
        sheet[:, k * (_SIDE + _GAP) : k * (_SIDE + _GAP) + _SIDE] = plane[::-1]  # y upwards
    grey = np.rint(np.rint(sheet * (_LEVELS - 1)) * (255 / (_LEVELS - 1))).astype(np.uint8)
    out = Image.fromarray(grey).convert("RGB")
    pen = ImageDraw.Draw(out)
    for x, y, negative in zip(found["x"] - x0, found["y"] - y0, found["isNegative"], strict=True):
        if 0 <= x < _SIDE and 0 <= y < _SIDE:
            u, v = x + 2 * (_SIDE + _GAP), _SIDE - 1 - y
            pen.ellipse((u - 8, v - 8, u + 8, v + 8), outline=_NEGATIVE if negative else _POSITIVE)
    return out.quantize(_LEVELS + 4, dither=Image.Dither.NONE)


def _image(image: F4, variance: F4) -> F4:
    low, high = _IMAGE
    bright = np.clip(image / np.sqrt(np.median(variance)), low, high)
    return np.asarray(np.log1p((bright - low) / 3) / np.log1p((high - low) / 3), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "figures")
    parser.add_argument("--data", type=Path, help="folder of real pairs")
    given = parser.parse_args()
    given.folder.mkdir(exist_ok=True)
    pair = simulated_pair("galactic", 1)
    picture(pair.science, pair.template, _SIMULATED).save(given.folder / "pixels_simulated.png", optimize=True)
    if given.data is not None:
        real = [p for p in real_pairs(given.data) if p.name == _REAL_NAME]
        science, template = prepared(real[2])
        picture(science, template, _REAL).save(given.folder / "pixels_real.png", optimize=True)


if __name__ == "__main__":
    main()
