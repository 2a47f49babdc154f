"""Verdicts on amplifiers and detectors."""

import math

import numpy as np
import pytest

from apflow.errors import BadRequest
from apflow.model.calibration import Checks
from apflow.model.calibration_metrics import AMPLIFIER, DETECTOR, default_ranges, read_ranges, verdicts_of
from apflow.model.verdict import Range, Verdict

AMPS = [f"C1{n}" for n in range(8)]
RANGES = {
    "calibration_amplifier": {"read_noise_ratio": Range((0.7, 1.3), (0.4, 2.0)), "peak_ratio": Range((0, 1))},
    "calibration_detector": {"n_new_bad_pixels": Range((0, 10), (0, 100))},
}


def checks(read_noise=None, detector=None, dead=(), amps=AMPS):
    """Checks of a detector on which all but what is given is fine."""
    values = {m.name: math.nan for m in AMPLIFIER} | {"is_dead": 0.0, "read_noise_ratio": 1.0}
    found = {a: values | {"is_dead": float(a in dead)} for a in amps}
    for amp, value in (read_noise or {}).items():
        found[amp]["read_noise_ratio"] = value
    whole = {m.name: math.nan for m in DETECTOR} | (detector or {})
    return Checks(found, whole, np.zeros((2, 2), np.float32))


def test_names_are_unique_and_end_in_their_unit():
    for metrics in (AMPLIFIER, DETECTOR):
        assert len({m.name for m in metrics}) == len(metrics)
        for m in metrics:
            ending = m.unit.replace(" / ", "_per_")
            assert m.name.endswith(ending) and m.description and "\n" not in m.description, m
            assert m.unit or m.name.endswith(("_ratio", "_fraction")) or m.name.startswith(("n_", "is_")), m


def test_all_well():
    verdicts, reasons = verdicts_of(checks(detector={"n_new_bad_pixels": 3.0}), RANGES)
    assert verdicts == dict.fromkeys([*AMPS, "detector"], Verdict.ACCEPTABLE) and reasons == ()


def test_one_warning_stays_with_its_amplifier_and_two_are_the_detectors():
    verdicts, reasons = verdicts_of(checks({"C13": 1.5}), RANGES)
    assert verdicts["C13"] is Verdict.WARNING and verdicts["detector"] is Verdict.ACCEPTABLE
    assert reasons == ("C13 read_noise_ratio 1.5: Warning",)
    verdicts, _ = verdicts_of(checks({"C13": 1.5, "C15": 0.5}), RANGES)
    assert verdicts["detector"] is Verdict.WARNING
    verdicts, _ = verdicts_of(checks({"C10": 1.5}, amps=["C10"]), RANGES)
    assert verdicts["detector"] is Verdict.WARNING


def test_one_alert_is_the_detectors():
    verdicts, reasons = verdicts_of(checks({"C11": 1.5, "C13": 3.0}), RANGES)
    assert verdicts["C13"] is verdicts["detector"] is Verdict.ALERT and verdicts["C11"] is Verdict.WARNING
    assert reasons == ("C13 read_noise_ratio 3: Alert", "C11 read_noise_ratio 1.5: Warning")


def test_the_detectors_own_metrics_count():
    verdicts, reasons = verdicts_of(checks({"C13": 1.5}, {"n_new_bad_pixels": 1234.0}), RANGES)
    assert verdicts["detector"] is Verdict.ALERT and verdicts["C12"] is Verdict.ACCEPTABLE
    assert reasons[0] == "detector n_new_bad_pixels 1234: Alert"


def test_dead_amplifier_is_an_alert_whatever_the_ranges():
    for ranges in (RANGES, {}):
        verdicts, reasons = verdicts_of(checks(dead=["C16"]), ranges)
        assert verdicts["C16"] is verdicts["detector"] is Verdict.ALERT
        assert reasons == ("C16 is_dead 1: Alert",)


def test_unknown_has_no_verdict():
    verdicts, reasons = verdicts_of(checks(dict.fromkeys(AMPS, math.nan)), RANGES)
    assert verdicts == {} and reasons == ()
    verdicts, _ = verdicts_of(checks(dict.fromkeys(AMPS[1:], math.nan)), RANGES)
    assert verdicts == {"C10": Verdict.ACCEPTABLE, "detector": Verdict.ACCEPTABLE}


def test_default_ranges_are_of_known_metrics_and_alerts_are_wider():
    ranges = default_ranges()
    for action in ("calibration_amplifier", "calibration_detector"):
        assert ranges[action]
        for name, r in ranges[action].items():
            assert r.alert[0] <= r.warning[0] < r.warning[1] <= r.alert[1], name


def test_unknown_metric_is_refused_with_its_key(tmp_path):
    path = tmp_path / "ranges.toml"
    path.write_text("[calibration_amplifier]\nread_noise = {warning = [0, 9]}\n")
    with pytest.raises(BadRequest, match=r"calibration_amplifier\.read_noise is no metric; accepted: .*read_noise_ele"):
        read_ranges(path)
    path.write_text("[calibrate]\nanything = {warning = [0, 9]}\n")
    assert set(read_ranges(path)) == {"calibrate"}
