"""Postage stamps as PNG images inside the report."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, eq=False)
class Stamp:
    """Cutouts of one DiaSource, (n, n), in nJy; NaN beyond the detector's edge."""

    dia_source_id: int
    visit: int
    detector: int
    snr: float
    label: str
    science: NDArray[Any]
    template: NDArray[Any]
    difference: NDArray[Any]


def stamp_figure(stamp: Stamp, detector_name: str) -> str:
    """Science, template and difference side by side with a caption, as HTML."""
    low, noise, high = _range(stamp.science)
    pictures = [
        _png(_asinh(stamp.science, low, noise, high)),
        _png(_asinh(stamp.template, low, noise, high)),
        _png(_symmetric(stamp.difference)),
    ]
    images = "".join(
        f'<img src="{src}" alt="{name}" title="{name}" width="96" height="96">'
        for src, name in zip(pictures, ("science", "template", "difference"), strict=True)
    )
    return (
        f'<figure class="stamp"><div class="triplet">{images}</div><figcaption><b>{escape(stamp.label)}</b>'
        f"<span>S/N {stamp.snr:.1f}</span><span>{escape(detector_name)}</span>"
        f'<span class="id" title="visit {stamp.visit}">{stamp.dia_source_id}</span></figcaption></figure>'
    )


def _range(image: NDArray[Any]) -> tuple[float, float, float]:
    """Background, noise and peak of an image."""
    good = image[np.isfinite(image)]
    if not good.size:
        return 0.0, 1.0, 1.0
    middle = float(np.median(good))
    noise = 1.4826 * float(np.median(np.abs(good - middle))) or 1.0
    return middle, noise, max(float(good.max()), middle + 10 * noise)


def _asinh(image: NDArray[Any], low: float, noise: float, high: float) -> NDArray[np.float64]:
    """0 to 1: linear about the noise, logarithmic above (Lupton et al. 1999)."""
    scale = 3 * noise
    start, stop = np.arcsinh(-2 * noise / scale), np.arcsinh((high - low) / scale)
    return np.asarray((np.arcsinh((image - low) / scale) - start) / (stop - start))


def _symmetric(image: NDArray[Any]) -> NDArray[np.float64]:
    """0 to 1, linear, with zero in the middle."""
    good = np.abs(image[np.isfinite(image)])
    limit = max(float(good.max(initial=0.0)) * 0.8, 4 * 1.4826 * float(np.median(good)) if good.size else 0.0) or 1.0
    return np.asarray(image / (2 * limit) + 0.5)


def _png(scaled: NDArray[np.float64]) -> str:
    """A data URI; first row at the bottom, NaN transparent."""
    known = np.isfinite(scaled)
    grey = np.round(255 * np.clip(np.where(known, scaled, 0.0), 0.0, 1.0)).astype(np.uint8)
    buffer = io.BytesIO()
    pixels = np.stack([grey, np.where(known, 255, 0).astype(np.uint8)], -1)[::-1]
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
