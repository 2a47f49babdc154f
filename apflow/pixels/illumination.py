"""How evenly a flat is lit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from apflow.model.camera import Amplifier, Detector
from apflow.pixels.survey import Survey


@dataclass(frozen=True)
class Light:
    """A flat's level, and its relative change across the detector along x and along y; NaN where nothing is lit."""

    level: float
    across: float
    up: float

    @classmethod
    def of(cls, surveys: Mapping[str, Survey], detector: Detector) -> Light:
        """Fit of a plane to the blocks within each amplifier, so that the amplifiers' gains have no say in it."""
        means = np.array([survey.mean for survey in surveys.values()])
        level = float(np.nanmedian(means)) if np.isfinite(means).any() else np.nan
        if not level > 0:
            return cls(np.nan, np.nan, np.nan)
        places, values = [], []
        for amp in detector.amplifiers:
            blocks = surveys[amp.name].blocks
            y, x = ((axis + 0.5) / n for axis, n in zip(np.indices(blocks.shape), blocks.shape, strict=True))
            good = np.isfinite(blocks)
            if good.any() and surveys[amp.name].mean > 0:
                place = np.stack([x[good] * amp.nx / detector.nx, y[good] * amp.ny / detector.ny], -1)
                places.append(place - place.mean(0))
                values.append(blocks[good] / blocks[good].mean() - 1)
        across, up = np.linalg.lstsq(np.concatenate(places), np.concatenate(values))[0]
        return cls(level, float(across), float(up))

    def at(self, amp: Amplifier, detector: Detector) -> float:
        """The light at the centre of an amplifier, over that at the detector's centre."""
        x, y = (amp.x0 + amp.nx / 2) / detector.nx - 0.5, (amp.y0 + amp.ny / 2) / detector.ny - 0.5
        return 1 + self.across * x + self.up * y
