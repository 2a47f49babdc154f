"""Levels and noise of the serial overscan."""

import dataclasses

import numpy as np
import pytest

from apflow.pixels.segments import first_overscan, overscan_noise, row_levels
from tests.pixels.calibration_frames import CCD

AMP = CCD.amplifiers[0]
FIRST = first_overscan(AMP)


def segment(seed=1):
    return np.rint(np.random.default_rng(seed).normal(1000, 4, AMP.raw_shape)).astype(np.uint16)


def interquartile_mean(row):
    n = row.size // 4
    return np.sort(row)[n : row.size - n].mean()


def test_level_is_the_interquartile_mean_however_it_is_found():
    integers = segment()
    integers[3, -10:] = 60_000  # a range that is not counted by value
    fractions = integers.astype(np.float32) + np.float32(0.25)
    expected = [interquartile_mean(row[FIRST:].astype(float)) for row in integers[: AMP.ny]]
    assert row_levels(integers, AMP.ny, FIRST) == pytest.approx(expected, abs=1e-4)
    assert row_levels(integers.astype(np.float32), AMP.ny, FIRST) == pytest.approx(expected, abs=1e-4)
    assert row_levels(fractions, AMP.ny, FIRST) == pytest.approx(np.array(expected) + 0.25, abs=1e-3)


def test_rows_without_data_have_no_level():
    spoilt = segment().astype(np.float32)
    spoilt[5, FIRST:], spoilt[6, FIRST : FIRST + 20] = np.nan, np.nan
    levels = row_levels(spoilt, AMP.ny, FIRST)
    assert np.isnan(levels).sum() == 1 and np.isnan(levels[5])
    assert levels[6] == pytest.approx(interquartile_mean(spoilt[6, FIRST + 20 :]), abs=1e-3)


def test_ccd_without_overscan_has_level_zero_and_no_noise():
    bare = dataclasses.replace(AMP, overscan_x=0)
    pixels = np.ascontiguousarray(segment()[:, : AMP.prescan + AMP.nx])
    levels = row_levels(pixels, AMP.ny, first_overscan(bare))
    assert (levels == 0).all()
    noise, n = overscan_noise(pixels, levels, bare)
    assert np.isnan(noise) and n == 0


def test_noise_follows_no_level():
    flat = segment()
    sloped = flat + (50 * np.sin(np.arange(AMP.raw_shape[0]) / 9)).astype(np.int64)[:, None]
    found = [overscan_noise(s, row_levels(s, AMP.ny, FIRST), AMP) for s in (flat, sloped.astype(np.uint16))]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0][0] == pytest.approx(np.hypot(4, 1 / np.sqrt(12)), rel=4 / np.sqrt(2 * found[0][1]))
