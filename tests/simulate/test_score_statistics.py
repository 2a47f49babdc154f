"""Shares, their errors, and the half point of a completeness curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from apflow.simulate.score_statistics import half_point, interval, share


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_the_limits_hold_the_share_and_stay_within_0_and_1(hits: list[bool]) -> None:
    low, high = interval(np.array(hits))
    assert 0.0 <= low <= share(np.array(hits)) <= high <= 1.0
    assert high > low


def test_the_limits_are_of_one_sigma() -> None:
    rng = np.random.default_rng(4)
    trials = rng.random((3000, 60)) < 0.9
    inside = [low <= 0.9 <= high for low, high in map(interval, trials)]
    assert np.mean(inside) == pytest.approx(0.683, abs=0.05)
    assert interval(np.ones(10, bool))[0] == pytest.approx(10 / 11)


def test_without_trials_nothing_is_known() -> None:
    assert np.isnan(share(np.zeros(0, bool))) and np.isnan(interval(np.zeros(0, bool))).all()


@pytest.mark.parametrize("lost", [0.0, 0.1])
def test_the_half_point_of_a_threshold_is_found(lost: float) -> None:
    rng = np.random.default_rng(1)
    snr = rng.uniform(2, 15, 4000)
    hits = (rng.random(4000) < ndtr((snr - 5.1) / 0.9)) & (rng.random(4000) >= lost)
    # Where a part is lost anyway, half is reached a little further up.
    assert half_point(snr, hits) == pytest.approx(5.1 + 0.9 * 0.14 * (lost > 0), abs=0.1)


def test_the_half_point_of_a_step_is_at_the_step() -> None:
    values = np.linspace(0, 10, 201)
    assert half_point(values, values > 6.02) == pytest.approx(6.02, abs=0.06)


def test_what_says_nothing_has_no_half_point() -> None:
    values = np.linspace(0, 10, 100)
    assert np.isnan(half_point(values, np.ones(100, bool)))
    assert np.isnan(half_point(values, np.zeros(100, bool)))
    assert np.isnan(half_point(values[:10], values[:10] > 0.5))
    assert np.isnan(half_point(np.full(100, np.nan), values > 5))
    # One in five is found, whatever the value: a half nowhere.
    assert np.isnan(half_point(values, np.arange(100) % 5 == 0))
