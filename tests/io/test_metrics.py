"""Metrics in the form of CONTRACT.md: MetricMeasurementBundle."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.io.metrics import bundle, read_bundle, write_bundle

DATA_ID: dict[str, str | int] = {"instrument": "LSSTCam", "visit": 2025042000123, "detector": 94}
METRICS: dict[str, float | None] = {
    "nDiaSources": 21,
    "psf_fwhm_arcsec": float(np.float32(0.75)),
    "zeropoint": float("nan"),
    "depth": None,
}


def test_the_form_of_a_bundle() -> None:
    """D10: value for value."""
    tree = json.loads(bundle("ap", METRICS, {"psf_fwhm_arcsec": "arcsec"}, DATA_ID))
    assert set(tree) == {
        "ap",
        "__reference_package",
        "__timestamp_version",
        "__dataset_identifier",
        "__metricNamePrefix",
    }
    assert [m["metric"] for m in tree["ap"]] == list(METRICS)
    assert [m["value"] for m in tree["ap"]] == [21.0, 0.75, None, None]
    assert [m["unit"] for m in tree["ap"]] == ["", "arcsec", "", ""]
    for measurement in tree["ap"]:
        assert set(measurement) == {"metric", "identifier", "value", "unit", "blob_refs"}
        assert re.fullmatch("[0-9a-f]{32}", measurement["identifier"])
        assert measurement["blob_refs"] == []


def test_identifiers_repeat_for_a_data_id_and_differ_between_them() -> None:
    def identifiers(data_id: dict[str, str | int]) -> list[str]:
        return [m["identifier"] for m in json.loads(bundle("ap", METRICS, {}, data_id))["ap"]]

    first = identifiers(DATA_ID)
    assert first == identifiers(dict(reversed(DATA_ID.items())))
    assert not set(first) & set(identifiers(DATA_ID | {"detector": 95}))
    assert len(set(first)) == len(METRICS)


def test_infinity_is_null_and_the_list_never_shrinks(tmp_path: Path) -> None:
    write_bundle(tmp_path / "m.json", "ap", {"a": float("inf"), "b": 2.0}, {}, DATA_ID)
    assert read_bundle(tmp_path / "m.json") == {"ap": {"a": None, "b": 2.0}}


@pytest.mark.parametrize("text", ["", "[1]", '{"ap": [{"value": 1}]}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match=r"m\.json is not a MetricMeasurementBundle"):
        read_bundle(tmp_path / "m.json")
