"""Amplifiers are made linear, each by its own table, and one that is linear is left as it is."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apflow.model.camera import load_camera
from apflow.model.response import LINEARITY_STEP, linearity_tables
from apflow.pixels.isr import remove_signature
from apflow.pixels.linearity import linearise, linearity_table
from tests.pixels.night import make_calibs, make_raw

CCD = load_camera("lsstcam", 512).detector(94)
NAMES = [amp.name for amp in CCD.amplifiers]


@settings(deadline=None)  # the first call compiles
@given(st.floats(-200, 65535), st.floats(-5e-7, 1e-6))
def test_a_table_is_its_polynomial(signal, curvature):
    table = linearity_tables({"C10": {"polynomial": [curvature]}}, ["C10"])[0]
    value = np.array([signal], np.float32)
    linearise(value, table)
    expected = signal + curvature * max(signal, 0.0) ** 2
    assert value[0] == pytest.approx(expected, abs=abs(curvature) * LINEARITY_STEP**2 + 0.01)


def test_beyond_its_ends_a_table_is_constant_and_nan_stays():
    table = linearity_tables({"C10": {"adu": [100, 200, 60000], "correction": [3.0, 5.0, 40.0]}}, ["C10"])[0]
    values = np.array([-50.0, 0.0, 150.0, 64000.0, 1e6, np.nan], np.float32)
    linearise(values, table)
    # The nodes lie between steps of the table, which cut the corner a little.
    assert values[:-1] == pytest.approx([-47.0, 3.0, 154.0, 64040.0, 1e6 + 40], abs=0.2)
    assert np.isnan(values[-1])


def test_a_bent_amplifier_comes_out_straight():
    spec = {"all": {"polynomial": [4e-7]}, "C11": {"adu": [0, 20000, 65535], "correction": [0.0, 300.0, 500.0]}}
    bent = dataclasses.replace(CCD, linearity=linearity_tables(spec, NAMES))
    calibs = make_calibs(CCD, structure=False)
    x = np.broadcast_to(np.linspace(100.0, 70_000.0, CCD.ny)[:, None], CCD.shape)
    raw = make_raw(bent, x, calibs)
    straight, left = (remove_signature(raw, ccd, calibs).image - x for ccd in (bent, CCD))
    noise = CCD.amplifiers[0].read_noise
    assert np.abs(straight).max() < 6.5 * noise
    for amp in CCD.amplifiers:
        assert straight[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx].mean() == pytest.approx(0.0, abs=0.3)
    assert np.abs(left).max() > 100 * noise


def test_without_a_table_nothing_is_looked_up():
    assert CCD.linearity is None and linearity_table(CCD, 3).size == 0
    some = dataclasses.replace(CCD, linearity=linearity_tables({"C10": {"polynomial": [1e-7]}}, NAMES))
    assert linearity_table(some, 0).size and linearity_table(some, 1).size == 0
