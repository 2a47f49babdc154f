"""Ranges of the night: those that come with apflow, and a file of one's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow.errors import BadRequest
from apflow.model.ap_metrics import DELIVERY, STAGES, VISIT
from apflow.operate.night.ranges import BANDS, PLAIN, load_ranges, metric_choices

RANGES = load_ranges()


def test_metrics_are_known_by_their_names_alone():
    names = [m.name for metrics in PLAIN.values() for m in metrics]
    assert len(set(names)) == len(names)
    offered = [c.name for c in metric_choices()]
    assert offered == [m.name for table in (STAGES, DELIVERY) for metrics in table.values() for m in metrics]


def test_every_alert_range_holds_its_warning_range():
    tables = [RANGES.by_action, *RANGES.by_band.values()]
    found = [(name, r) for table in tables for metrics in table.values() for name, r in metrics.items()]
    assert len(found) > 60
    for name, r in found:
        inside = r.alert[0] <= max(r.warning[0], r.alert[0]) <= min(r.warning[1], r.alert[1]) <= r.alert[1]
        assert inside and (r.warning[0] >= r.alert[0] or r.warning == (-math.inf, math.inf)), name


def test_verdicts_of_one_metric():
    assert [RANGES.verdict("psf_fwhm_arcsec", v) for v in (0.8, 1.5, 1.6, 3.1)] == [
        "acceptable",
        "acceptable",
        "warning",
        "alert",
    ]
    assert RANGES.verdict("psf_fwhm_arcsec", math.inf) == "alert"
    assert RANGES.verdict("psf_fwhm_arcsec", math.nan) == RANGES.verdict("psf_fwhm_arcsec", None) == ""
    assert RANGES.verdict("n_sources_on_mars", 1.0) == ""
    assert RANGES.verdict("alert_latency_s", 60.0) == "warning" and RANGES.verdict("alert_latency_s", 60.1) == "alert"


def test_summary_over_a_visit_has_the_range_of_what_it_is_of_unless_it_has_its_own():
    for name in ("psf_fwhm_arcsec", "wcs_scatter_arcsec"):
        assert RANGES.limits(f"median_{name}") == RANGES.limits(name) is not None
    assert RANGES.verdict("max_alert_latency_s", 1e4) == "warning"  # its own: one late detector is no late visit
    summaries = [m.name for m in VISIT["visit"] if m.name.startswith("median_")]
    assert sum(RANGES.limits(name, "r") is not None for name in summaries) >= 8


def test_sky_is_judged_by_band():
    """Dark sky in u is 4.4 mag fainter than in y (SMTN-002): the same value cannot be right in both."""
    dark = {"u": 23.05, "g": 22.25, "r": 21.2, "i": 20.46, "z": 19.61, "y": 18.6}
    for band in BANDS:
        assert RANGES.verdict("sky_mag_arcsec2", dark[band], band) == "acceptable"
        assert RANGES.verdict("median_sky_mag_arcsec2", dark[band] + 2, band) == "alert"
    assert RANGES.verdict("sky_mag_arcsec2", dark["u"], "y") == "alert"
    assert RANGES.verdict("sky_mag_arcsec2", 21.0) == ""


@given(st.floats(allow_nan=False), st.sampled_from([c.name for c in metric_choices()]))
def test_verdict_is_that_of_the_limits(value: float, name: str):
    found = RANGES.limits(name, "r")
    assert RANGES.verdict(name, value, "r") == ("" if found is None else str(found.verdict(value)).lower())


def test_a_file_of_ones_own_stands_before_the_defaults(tmp_path: Path):
    path = tmp_path / "own.toml"
    path.write_text(
        "[calibrate]\npsf_fwhm_arcsec = {alert = [0, 1]}\n[calibrate.u]\nzero_point_mag = {warning = [25, 27]}"
    )
    own = load_ranges(path)
    assert own.verdict("psf_fwhm_arcsec", 1.2) == "alert" and own.verdict("psf_fwhm_arcsec", 0.9) == "acceptable"
    assert own.verdict("zero_point_mag", 24.0, "u") == "warning" and own.verdict("zero_point_mag", 24.0, "g") == ""
    assert own.limits("wcs_scatter_arcsec") == RANGES.limits("wcs_scatter_arcsec")
    path.write_text("[calibrate]\nsky_mag_arcsec2 = {alert = [0, 10]}")
    assert load_ranges(path).verdict("sky_mag_arcsec2", 21.2, "r") == "alert"  # one for all bands


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[calibrat]\n", "calibrat is no action; accepted: inputs, isr, calibrate"),
        ("[calibrate]\nseeing = {alert = [0, 1]}", r"calibrate\.seeing is no metric; accepted: psf_fwhm_arcsec"),
        ("[calibrate.u]\nseeing = {alert = [0, 1]}", r"calibrate\.u\.seeing is no metric"),
        ("[calibrate.w]\npsf_fwhm_arcsec = {alert = [0, 1]}", r"calibrate\.w"),
        ("[calibrate.u]\npsf_fwhm_arcsec = {alert = [2, 1]}", r"calibrate\.u\.psf_fwhm_arcsec\.alert is \[2, 1\]"),
        ("[calibrate]\npsf_fwhm_arcsec = 3", r"calibrate\.psf_fwhm_arcsec is 3; accepted: \{warning"),
        ("calibrate = 3", "calibrate is 3; accepted: a table"),
        ("[calibrate", "own.toml: "),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_full_path(tmp_path: Path, text: str, message: str):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(BadRequest, match=message):
        load_ranges(path)
    with pytest.raises(BadRequest, match="nowhere"):
        load_ranges(tmp_path / "nowhere.toml")
