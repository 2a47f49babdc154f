"""Simulated exposures under the default ranges: healthy CCDs are acceptable, each fault is found and named."""

import pytest

from apflow.model.calibration import Intent, Masters
from apflow.model.calibration_metrics import default_ranges, verdicts_of
from apflow.model.verdict import Verdict
from apflow.pixels.calibration_checks import check
from apflow.simulate.calibration import Faults, render_calibration
from apflow.simulate.calibs import render_calibs
from apflow.simulate.scenario import Scenario

TIMES_S = {Intent.BIAS: 0.0, Intent.DARK: 15.0, Intent.FLAT: 5.0, Intent.CBP: 1.0}
RANGES = default_ranges()
NONE = Faults()


def judged(intent, faults=NONE, camera="lsstcam", size=512, detector=94, n=1):
    scenario = Scenario(camera=camera, size=size)
    calibs = render_calibs(scenario, detector)
    lit = intent in (Intent.FLAT, Intent.CBP)
    raws = [
        render_calibration(
            scenario, intent, seq, detector, exposure_time_s=TIMES_S[intent], physical_filter="r" if lit else "",
            faults=faults,
        )
        for seq in range(1, n + 1)
    ]  # fmt: skip
    masters = Masters(calibs.bias, calibs.dark, calibs.flat, calibs.defects)
    partner = raws[1] if n > 1 else None
    return verdicts_of(check(raws[0], scenario.load_camera().detector(detector), masters, intent, partner), RANGES)


@pytest.mark.parametrize(
    ("camera", "size", "detector"),
    [("lsstcam", 512, 94), ("lsstcam", 512, 0), ("lsstcam", 512, 191), ("lsstcam", 256, 94), ("decam", 512, 20)],
)
@pytest.mark.parametrize(("intent", "n"), [(Intent.BIAS, 1), (Intent.DARK, 1), (Intent.FLAT, 2), (Intent.CBP, 1)])
def test_healthy_ccds_are_acceptable(intent, n, camera, size, detector):
    verdicts, reasons = judged(intent, camera=camera, size=size, detector=detector, n=n)
    assert reasons == () and set(verdicts.values()) == {Verdict.ACCEPTABLE}


@pytest.mark.parametrize(
    ("intent", "faults", "verdict", "reasons"),
    [
        (Intent.BIAS, Faults(read_noise={"C03": 1.5, "C04": 1.5}), Verdict.WARNING,
         ["C03 read_noise_ratio", "C04 read_noise_ratio"]),
        (Intent.BIAS, Faults(read_noise={"C03": 3.0}), Verdict.ALERT, ["C03 read_noise_ratio"]),
        (Intent.BIAS, Faults(bias_adu={"C11": 4.0}), Verdict.ACCEPTABLE, ["C11 bias_residual_adu"]),
        (Intent.BIAS, Faults(bias_adu={"C11": 40.0}), Verdict.ALERT, ["C11 bias_residual_adu"]),
        (Intent.BIAS, Faults(level_adu={"C11": 20_000.0}), Verdict.ACCEPTABLE, ["C11 overscan_level_adu"]),
        (Intent.DARK, Faults(dead=("C07",)), Verdict.ALERT, ["C07 is_dead", "C07 read_noise_ratio"]),
        (Intent.DARK, Faults(hot_pixels=3000), Verdict.WARNING, ["detector n_new_bad_pixels"]),
        (Intent.FLAT, Faults(gain={"C03": 1.05}), Verdict.ACCEPTABLE, ["C03 gain_drift_ratio"]),
        (Intent.FLAT, Faults(gain={"C03": 1.3}), Verdict.ALERT, ["C03 gain_drift_ratio", "C03 ptc_gain_ratio"]),
        (Intent.FLAT, Faults(lamp_tilt=0.1), Verdict.WARNING, ["detector illumination_slope_ratio"]),
    ],
)  # fmt: skip
def test_faults_are_found_and_named(intent, faults, verdict, reasons):
    verdicts, found = judged(intent, faults, n=2 if intent is Intent.FLAT else 1)
    assert verdicts["detector"] is verdict
    assert sorted(" ".join(reason.split()[:2]) for reason in found) == reasons


def test_hot_pixels_are_counted_exactly():
    scenario = Scenario(camera="lsstcam", size=512)
    calibs = render_calibs(scenario, 94)
    masters = Masters(calibs.bias, calibs.dark, calibs.flat, calibs.defects)
    for faults, n in ((Faults(hot_pixels=50), 50), (NONE, 0)):
        raw = render_calibration(scenario, Intent.DARK, 1, 94, exposure_time_s=15.0, faults=faults)
        checks = check(raw, scenario.load_camera().detector(94), masters, Intent.DARK)
        assert checks.detector["n_new_bad_pixels"] == n
