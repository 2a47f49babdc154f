"""Learning from simulated pairs: trees, calibration, truth, and how good the model that comes with apflow is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from apflow.io.reliability import read_model
from apflow.pixels.reliability import votes
from apflow.pixels.stamp_features import NAMES
from apflow.simulate.boosting import boost, calibrate
from apflow.simulate.impostors import draw_conditions, make_scene
from apflow.simulate.train_reliability import gather, label

NAMES3 = ("log_snr", "misfit", "width")


def test_trees_learn_what_no_line_can_tell() -> None:
    """Exclusive or, with a feature of noise and with missing values."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3000, 3)).astype(np.float32)
    real = (rows[:, 0] > 0) ^ (rows[:, 1] > 0)
    rows[::50, 2] = np.nan
    first, second = (boost(rows, real, NAMES3, "t1", ntrees=60, depth=3, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.leaf, second.leaf)
    new = rng.normal(size=(1000, 3)).astype(np.float32)
    assert ((votes(new, first) > 0) == ((new[:, 0] > 0) ^ (new[:, 1] > 0))).mean() > 0.95


def test_missing_values_are_told_apart() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(2000, 3)).astype(np.float32)
    real = rng.random(2000) < 0.5
    rows[real, 0] = np.nan
    model = boost(rows, real, NAMES3, "t1", ntrees=20, depth=2, seed=1)
    assert ((votes(rows, model) > 0) == real).mean() > 0.95


def test_calibration_finds_the_line() -> None:
    rng = np.random.default_rng(3)
    sums = rng.normal(0, 2, 40000)
    real = rng.random(40000) < 1 / (1 + np.exp(-(0.7 * sums - 0.4)))
    assert calibrate(sums, real) == pytest.approx((0.7, -0.4), abs=0.05)


def test_truth_is_told_by_place_and_brightness() -> None:
    rng = np.random.default_rng(4)
    scene = make_scene(dataclasses.replace(draw_conditions(rng, 256), fwhm_px=4.0, dirt=0.1), rng)
    change = scene.truth.iloc[0]
    place = {"x": change["x"], "y": change["y"], "snr": change["snr"]}
    off = scene.conditions.fwhm_px
    rows = pd.DataFrame(
        [
            place,
            place | {"x": place["x"] + 1.6 * off},  # nobody knows what that is
            place | {"snr": 10 * place["snr"]},  # something brighter is there
            {"x": -90.0, "y": -90.0, "snr": 9.0},
        ]
    )
    real, known = label(rows, scene)
    assert real.tolist() == [True, False, False, False]
    assert known.tolist() == [True, False, False, True]


def test_scenes_follow_from_their_seed() -> None:
    one, two = (make_scene(draw_conditions(rng, 256), rng) for rng in (np.random.default_rng(5) for _ in range(2)))
    np.testing.assert_array_equal(one.science.image, two.science.image)
    np.testing.assert_array_equal(one.template.mask, two.template.mask)
    pd.testing.assert_frame_equal(one.truth, two.truth)


def test_the_model_that_comes_with_apflow_tells_real_from_bogus_and_knows_how_sure_it_is() -> None:
    model = read_model()
    rows, real, _ = gather(91, 10)
    columns = [NAMES.index(name) for name in model.names]
    score = 1 / (1 + np.exp(-(model.slope * votes(rows[:, columns], model) + model.offset)))
    assert len(real) > 600 and 0.2 < real.mean() < 0.8
    # The probability that a real source is rated above a bogus one.
    rank = np.argsort(np.argsort(score))
    n = int(real.sum())
    auc = (rank[real].sum() - n * (n - 1) / 2) / (n * (len(real) - n))
    assert auc > 0.985
    assert score.mean() == pytest.approx(real.mean(), abs=0.03)
    for low, high in ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
        chosen = (score >= low) & (score < high)
        error = 0.5 / np.sqrt(chosen.sum()) if low in (0.1, 0.5) else 0.02
        assert real[chosen].mean() == pytest.approx(score[chosen].mean(), abs=0.03 + 2 * error), (low, chosen.sum())
