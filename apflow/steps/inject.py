"""Fakes in the science image."""

from __future__ import annotations

import numpy as np

from apflow.config import Config
from apflow.graph import node
from apflow.io.tables import read_table
from apflow.model.exposure import Exposure
from apflow.pixels import inject as pixels
from apflow.pixels.photometry import nanojansky_per_electron


@node
def inject_fakes(science: Exposure, config: Config) -> Exposure:
    """The science image with fakes in it, where any are asked for; without them it is the same image.

    They follow from the seed, the visit and the detector. What finds them goes
    into the database with pixelFlags_injected, and never into an alert.
    """
    settings, info = config.injection, science.info
    assert info is not None
    if not settings.per_ccd and not settings.catalog:
        return science
    rng = np.random.default_rng([settings.seed, info.exposure, info.detector])
    if settings.catalog:
        fakes = pixels.catalog_fakes(science, read_table(settings.catalog))
    else:
        fakes = pixels.place_fakes(science, settings.per_ccd, settings.mag_min, settings.mag_max, rng)
    gain = 1.0 / nanojansky_per_electron(science.summary["zero_point_mag"], info.exposure_time_s)
    return pixels.inject(science, fakes, gain, rng)
