"""Compile what only some difference images have: blends, dipoles, trails and streaks."""

from __future__ import annotations

import dataclasses

import numpy as np

from apflow.model.exposure import Exposure
from apflow.model.kernel import Kernel
from apflow.model.products import Difference
from apflow.model.psf import Psf
from apflow.model.wcs import Wcs
from apflow.pixels.detect import detect
from apflow.pixels.measure import measure
from apflow.pixels.streaks import mark_streaks

_SIDE = 256


def rare_sources() -> None:
    """Detect and measure one of each."""
    pair, dipole = [(60.0, 60.0, 1.0), (66.0, 62.0, 1.0)], [(150.0, 60.0, 1.0), (145.0, 60.0, -1.0)]
    trail = [(60.0 + t, 130.0 + 0.5 * t, 0.3) for t in range(13)]
    flashes = [(30.0 + 25 * t, 30.0, 1.0) for t in range(6)]
    v, u = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
    change = 500 * sum(f * np.exp(-((u - x) ** 2 + (v - y) ** 2) / 6) for x, y, f in pair + dipole + trail + flashes)
    change += 50 * np.exp(-((v - 225) ** 2) / 6)
    c = np.exp(-np.add.outer(np.arange(-12, 13) ** 2, np.arange(-12, 13) ** 2) / 6)
    wcs = Wcs((0.0, 0.0), (0.0, 0.0), np.diag([-1.0, 1.0]) * 0.2 / 3600)
    shape, ones = (_SIDE, _SIDE), np.ones((_SIDE, _SIDE), np.float32)
    psf, mask = Psf((c / c.sum())[None], shape), np.zeros(shape, np.int32)
    science, template = (
        Exposure(np.maximum(sign * change, 0).astype(np.float32), ones, mask, "nJy", wcs, psf) for sign in (1, -1)
    )
    exposure = dataclasses.replace(science, image=change.astype(np.float32))
    difference = mark_streaks(Difference(exposure, template, Kernel(np.ones((1, 1, 1)), 0, shape)))
    sources = measure(difference, science, detect(difference, 5.0))
    kinds = (sources["parentDiaSourceId"], sources["dipoleMeanFlux"], sources["trailFlux"])
    missing = [k.name for k in kinds if k.isna().all()]
    if missing or not sources["pixelFlags_streak"].any() or not sources["glint_trail"].any():
        raise SystemExit(f"apflow: warming up found no source with {missing or ['a streak or glints']}")
