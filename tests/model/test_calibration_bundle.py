"""The metrics of a calibration exposure: lists that never shrink, nulls for what is not known, spreads of what is."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from apflow.model.calibration import CalibrationExposure, CalibrationResult, Checks, Intent
from apflow.model.calibration_bundle import EXPOSURE, catalogue, detector_values, exposure_values
from apflow.model.calibration_metrics import AMPLIFIER, AMPLIFIER_ACTION, DETECTOR, DETECTOR_ACTION
from apflow.model.camera import Detector, load_camera
from apflow.model.verdict import Verdict

CAMERA = load_camera("lsstcam", 512)
EXPOSED = CalibrationExposure("LSSTCam", 2025042000001, "", Intent.BIAS, "", 0.0, "MC_O_20250420_000001")


def result_of(detector: Detector, noise: float, verdicts: dict[str, Verdict]) -> CalibrationResult:
    amplifiers = {a.name: {m.name: math.nan for m in AMPLIFIER} for a in detector.amplifiers}
    for number, values in enumerate(amplifiers.values()):
        values["read_noise_electron"] = noise + number
    whole = {m.name: math.nan for m in DETECTOR} | {"n_spots": 3.0, "median_read_noise_electron": noise + 7.5}
    checks = Checks(amplifiers, whole, np.zeros((2, 2), np.float32))
    return CalibrationResult(EXPOSED, detector.id, checks, verdicts, (), (), 0.0, 60785.0)


def test_names_are_unique_and_such_as_sasquatch_takes() -> None:
    for metrics in (*catalogue(CAMERA).values(), EXPOSURE):
        names = [metric.name for metric in metrics]
        assert len(set(names)) == len(names)
        assert all(
            re.fullmatch(r"[A-Za-z_]\w*", name) and metric.description
            for name, metric in zip(names, metrics, strict=True)
        )


def test_detectors_with_fewer_amplifiers_have_the_same_list() -> None:
    half = min(CAMERA.detectors, key=lambda d: len(d.amplifiers))
    whole = CAMERA.detector("R22_S11")
    assert len(half.amplifiers) < len(whole.amplifiers)
    few, many = (detector_values(result_of(d, 5.0, {}), CAMERA) for d in (half, whole))
    assert [list(v) for v in few.values()] == [list(v) for v in many.values()]
    known = {name for name, value in few[AMPLIFIER_ACTION].items() if value is not None}
    assert known == {f"read_noise_electron_{a.name}" for a in half.amplifiers}


def test_what_is_not_known_is_none_and_verdicts_are_numbers() -> None:
    ccd = CAMERA.detector("R22_S11")
    verdicts = {a.name: Verdict.ACCEPTABLE for a in ccd.amplifiers[1:]} | {
        "C17": Verdict.ALERT,
        "detector": Verdict.ALERT,
    }
    found = detector_values(result_of(ccd, 5.0, verdicts), CAMERA)
    amplifiers, whole = found[AMPLIFIER_ACTION], found[DETECTOR_ACTION]
    first = ccd.amplifiers[0].name
    assert (amplifiers[f"verdict_{first}"], amplifiers["verdict_C17"]) == (None, 2.0)
    assert amplifiers[f"flat_level_electron_{first}"] is None
    assert (whole["verdict"], whole["n_acceptable"], whole["n_warning"], whole["n_alert"]) == (2.0, 14.0, 0.0, 1.0)
    assert (whole["min_read_noise_electron"], whole["max_read_noise_electron"]) == (5.0, 20.0)
    assert whole["max_flat_level_electron"] is None and whole["n_spots"] == 3.0


def test_an_exposure_is_the_spread_of_its_detectors() -> None:
    ccds = [CAMERA.detector(name) for name in ("R22_S00", "R22_S01", "R22_S02")]
    verdicts = [Verdict.ACCEPTABLE, Verdict.WARNING, None]
    of = [
        detector_values(result_of(d, 5.0 + n, {} if v is None else {"detector": v}), CAMERA)[DETECTOR_ACTION]
        for n, (d, v) in enumerate(zip(ccds, verdicts, strict=True))
    ]
    found = exposure_values(4, [{k: v for k, v in values.items() if v is not None} for values in of])
    assert list(found) == [metric.name for metric in EXPOSURE]
    assert (found["n_detectors"], found["n_detectors_done"], found["verdict"]) == (4.0, 3.0, 1.0)
    assert (found["n_acceptable"], found["n_warning"], found["n_alert"]) == (1.0, 1.0, 0.0)
    noises = [found[f"{kind}_read_noise_electron"] for kind in ("min", "median", "max")]
    assert noises == [5.0, 13.5, 22.0]
    assert found["median_n_spots"] == 3.0 and found["max_flat_level_electron"] is None


@pytest.mark.parametrize("n", [0, 9])
def test_an_exposure_of_which_nothing_is_known(n: int) -> None:
    found = exposure_values(n, [])
    counts = {"n_detectors", "n_detectors_done", "n_acceptable", "n_warning", "n_alert"}
    assert {name for name, value in found.items() if value is not None} == counts
