"""Checks of one detector of a calibration exposure against its masters and the camera."""

from __future__ import annotations

import math

import numpy as np

from apflow.model.calibration import Checks, Intent, Masters
from apflow.model.calibration_metrics import AMPLIFIER, DETECTOR
from apflow.model.camera import Detector
from apflow.model.exposure import Raw
from apflow.pixels.calibration_isr import correct


def check(raw: Raw, detector: Detector, masters: Masters, intent: Intent, *, partner: Raw | None = None) -> Checks:
    """Measure one detector of a calibration exposure."""
    corrected = correct(raw, detector, masters, intent)
    amplifiers = {}
    for amp in detector.amplifiers:
        values = {metric.name: math.nan for metric in AMPLIFIER}
        values["is_dead"] = float(amp.name in corrected.dead)
        values["overscan_level_adu"] = float(np.nanmedian(corrected.overscan[amp.name]))
        amplifiers[amp.name] = values
    whole = {metric.name: math.nan for metric in DETECTOR}
    whole["n_dead_amplifiers"] = float(len(corrected.dead))
    step = -(-max(detector.shape) // 128)
    return Checks(amplifiers, whole, np.ascontiguousarray(corrected.image[::step, ::step]))
