"""The step that removes the signature: what the configuration switches off, and what the header says of the shutter."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from apflow.config import Config
from apflow.config_tables import Signature
from apflow.errors import DataError
from apflow.io.fits import write_raw
from apflow.model.products import RawRef, Snaps
from apflow.simulate.calibs import render_calibs
from apflow.simulate.raws import render_raw
from apflow.simulate.scenario import Scenario, visits
from apflow.steps.calibrate import remove_signature

SCENARIO = Scenario(camera="comcam", size=256, nvisits=1, detectors=(4,))
VISIT = visits(SCENARIO)[0]
CONFIG = Config(camera="comcam", size=256)


def reduced(folder: Path, config: Config = CONFIG, **header: float):
    raw, _ = render_raw(SCENARIO, VISIT, 0, 4)
    write_raw(folder / "raw.fits", dataclasses.replace(raw, header=dict(raw.header) | header))
    ref = RawRef(str(folder / "raw.fits"), VISIT.visit, 0, 0.0)
    return remove_signature(Snaps((ref,)), render_calibs(SCENARIO, 4), VISIT, 4, config)


def test_crosstalk_is_left_where_nobody_wants_it_removed(tmp_path: Path):
    removed = reduced(tmp_path)
    left = reduced(tmp_path, dataclasses.replace(CONFIG, signature=Signature(crosstalk=False)))
    # The sky's own ghost: some 6e-4 of it.
    assert np.median(left.image - removed.image) == pytest.approx(5e-4 * np.median(left.image), rel=0.4)


def test_a_shutter_that_disagrees_with_the_plan_is_used_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        asked = reduced(tmp_path)
        assert abs(asked.summary["shutter_offset_s"]) < 0.06 and not caplog.records
        short = reduced(tmp_path, SHUTTIME=21.5)
    assert short.info.exposure_time_s == short.summary["exposure_time_s"] == 21.5
    assert short.summary["shutter_offset_s"] == pytest.approx(-8.5)
    (record,) = caplog.records
    assert "detector 4" in record.getMessage() and "-8.50 s more than planned; 21.50 s are used" in record.getMessage()


def test_another_filter_than_announced_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="filter is 'g_01', announced was 'r_03'"):
        reduced(tmp_path, FILTER="g_01")
