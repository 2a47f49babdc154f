"""Metrics in the form of CONTRACT.md: MetricMeasurementBundle."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.io.metrics import bundle, read_bundle, values_of, write_bundle
from apflow.model.metrics import Metric

DATA_ID: dict[str, str | int] = {"instrument": "LSSTCam", "visit": 2025042000123, "detector": 94}
MJD = 60785.25
CATALOGUE = {
    "calibrate": (
        Metric("psf_fwhm_arcsec", "arcsec", "FWHM."),
        Metric("zero_point_mag", "mag", "Zero point."),
        Metric("depth_mag", "mag", "Depth."),
        Metric("sky_electron", "electron", "Sky."),
    ),
    "detect": (Metric("n_sources", "", "Sources."),),
}
VALUES: dict[str, dict[str, float | None]] = {
    "detect": {"n_sources": 21},
    "calibrate": {"psf_fwhm_arcsec": float(np.float32(0.75)), "zero_point_mag": float("nan"), "depth_mag": None},
}


def test_the_form_of_a_bundle() -> None:
    """D10: value for value."""
    tree = json.loads(bundle(CATALOGUE, VALUES, DATA_ID, MJD))
    tail = {"__reference_package", "__timestamp_version", "__dataset_identifier", "__metricNamePrefix"}
    assert set(tree) == {"calibrate", "detect"} | tail
    assert [m["metric"] for m in tree["calibrate"]] == [metric.name for metric in CATALOGUE["calibrate"]]
    assert [m["value"] for m in tree["calibrate"] + tree["detect"]] == [0.75, None, None, None, 21.0]
    assert [m["unit"] for m in tree["calibrate"] + tree["detect"]] == ["arcsec", "mag", "mag", "electron", ""]
    for measurement in tree["calibrate"] + tree["detect"]:
        assert set(measurement) == {"metric", "identifier", "value", "unit", "blob_refs"}
        assert re.fullmatch("[0-9a-f]{32}", measurement["identifier"])
        assert measurement["blob_refs"] == []


def test_the_time_of_a_point_is_the_midpoint_as_lsst_analysis_tools_reads_it() -> None:
    """Its dispatcher splits at the one colon, and reads what follows by this format."""
    kind, text = json.loads(bundle(CATALOGUE, VALUES, DATA_ID, MJD))["__timestamp_version"].split(":")
    assert kind == "explicit_timestamp"
    # TAI is 37 s ahead of UTC.
    assert datetime.strptime(text, "%Y%m%dT%H%M%S%z") == datetime(2025, 4, 20, 5, 59, 23, tzinfo=UTC)


def test_identifiers_repeat_for_a_data_id_and_differ_between_them() -> None:
    def identifiers(data_id: dict[str, str | int]) -> list[str]:
        tree = json.loads(bundle(CATALOGUE, VALUES, data_id, MJD))
        return [m["identifier"] for action in CATALOGUE for m in tree[action]]

    first = identifiers(DATA_ID)
    assert first == identifiers(dict(reversed(DATA_ID.items())))
    assert not set(first) & set(identifiers(DATA_ID | {"detector": 95}))
    assert len(set(first)) == 5


def test_infinity_is_null_and_the_list_never_shrinks(tmp_path: Path) -> None:
    """Nor does it grow: a topic's columns are those of the catalogue."""
    write_bundle(tmp_path / "m.json", CATALOGUE, {"detect": {"n_sources": float("inf"), "other": 1.0}}, DATA_ID, MJD)
    empty = {action: {metric.name: None for metric in metrics} for action, metrics in CATALOGUE.items()}
    assert read_bundle(tmp_path / "m.json") == empty
    assert values_of(json.loads(bundle(CATALOGUE, {}, DATA_ID, MJD))) == empty


@pytest.mark.parametrize("text", ["", "[1]", '{"ap": [{"value": 1}]}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match=r"m\.json is not a MetricMeasurementBundle"):
        read_bundle(tmp_path / "m.json")
