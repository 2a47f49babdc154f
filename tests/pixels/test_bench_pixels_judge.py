"""The judgement of the pixel benchmark on differences of which everything is known."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apflow.model.exposure import Exposure, Mask

from .scenes import gaussian_psf, stars_image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from pixel_judge import Ground, Judgement, judge
from pixel_pairs import simulated_pair
from pixel_sky import ideal_snr

N, FWHM, SIGMA = 512, 4.0, 3.0
PSF = gaussian_psf(FWHM, N)
#: Flux of S/N 1 under this PSF.
UNIT = SIGMA / np.sqrt((PSF.centre() ** 2).sum())
NOWHERE = np.zeros((N, N), bool)
OPEN = Ground(NOWHERE, ~NOWHERE, np.empty((0, 2)))


def changes(*rows: tuple[float, float, float]) -> pd.DataFrame:
    """x, y and signed S/N, as truth."""
    x, y, snr = np.array(rows).T
    return pd.DataFrame({"x": x, "y": y, "flux": snr * UNIT, "snr": np.abs(snr), "asked": np.abs(snr)})


def picture(points: pd.DataFrame, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, SIGMA, (N, N))
    light = stars_image((N, N), *(points[c].to_numpy() for c in ("x", "y", "flux")), FWHM)
    return (noise + light).astype(np.float32)


def judged(image: np.ndarray, truth: pd.DataFrame, ground: Ground = OPEN, own: np.ndarray = NOWHERE) -> Judgement:
    return judge(image, np.full((N, N), SIGMA**2, np.float32), PSF, own, ground, truth)


TENS = [(40.0 + 50 * (k % 9), 40.0 + 50 * (k // 9), 10.0) for k in range(81)]


def test_a_clean_difference_has_no_false_detection_and_true_fluxes() -> None:
    truth = changes(*TENS)
    found = judged(picture(truth), truth)
    assert found.n_false == found.n_near_star == 0
    assert found.completeness[10.0] == (81, 81)
    assert abs(found.flux_bias) < 3 * found.flux_bias_err
    assert found.flux_bias_err == pytest.approx(1 / (10 * 9), rel=0.1)
    assert found.mad == pytest.approx(1.0, abs=0.06)
    assert found.masked == 0.0


def test_half_of_the_changes_at_the_threshold_are_found() -> None:
    truth = changes(*[(x, y, 5.0) for x, y, _ in TENS])
    found, whole = judged(picture(truth), truth).completeness[5.0]
    assert 0.4 * whole < found < 0.75 * whole  # the highest of neighbouring pixels is a little above the middle


def test_what_is_no_change_is_false_and_near_a_saturated_star_counted_apart() -> None:
    truth = changes(*TENS)
    more = changes((65.0, 65.0, 9.0), (215.0, 165.0, -12.0), (315.0, 315.0, 20.0))
    star = dataclasses.replace(OPEN, saturated=np.array([[325.0, 330.0]]))
    found = judged(picture(pd.concat([truth, more])), truth, star)
    assert (found.n_false, found.n_near_star) == (2, 1)
    near = found.false[found.false["near_star"]]
    assert np.hypot(near["x"] - 315, near["y"] - 315).max() <= 2
    assert sorted(np.sign(found.false[~found.false["near_star"]]["snr"])) == [-1, 1]


def test_a_known_variable_is_real_and_counts_for_nothing_else() -> None:
    truth = changes((100.0, 100.0, 10.0), (300.0, 200.0, -30.0)).assign(asked=[10.0, 0.0])
    found = judged(picture(truth), truth)
    assert found.n_false == 0
    assert found.completeness == {5.0: (0, 0), 7.0: (0, 0), 10.0: (1, 1)}


def test_a_change_must_come_back_with_its_own_sign() -> None:
    truth = changes((100.0, 100.0, 10.0), (300.0, 200.0, 10.0))
    upside_down = truth.assign(flux=[1, -1] * truth["flux"])
    assert judged(picture(upside_down), truth).completeness[10.0] == (1, 2)


def test_masked_pixels_are_not_judged_but_what_a_code_gives_up_is_missed() -> None:
    truth = changes(*TENS)
    spoiled = picture(pd.concat([truth, changes((65.0, 65.0, 90.0))]))
    hole = NOWHERE.copy()
    hole[50:81, 50:81] = True
    assert judged(spoiled, truth).n_false > 0
    assert judged(spoiled, truth, dataclasses.replace(OPEN, bad=hole)).n_false == 0
    all_left = NOWHERE.copy()
    all_left[:, :256] = True
    shy = judged(picture(truth), truth, own=all_left)
    assert shy.completeness[10.0][0] <= 5 * 9
    assert shy.completeness[10.0][1] == 81
    assert shy.masked == pytest.approx(0.5)


def test_neither_a_background_nor_a_wrong_variance_changes_what_is_found() -> None:
    truth = changes(*TENS)
    image = picture(truth)
    sky = np.linspace(20, 25, N, dtype=np.float32)
    plain, with_sky = judged(image, truth), judged(image + sky, truth)
    assert with_sky.completeness[10.0][0] >= 80
    assert with_sky.n_false == 0
    assert with_sky.mad == pytest.approx(plain.mad, rel=0.05)
    quarter = judge(image, np.full((N, N), SIGMA**2 / 4, np.float32), PSF, NOWHERE, OPEN, truth)
    assert quarter.mad == pytest.approx(2 * plain.mad, rel=1e-3)
    assert len(quarter.false) == len(plain.false)
    assert quarter.completeness == plain.completeness


def test_the_ideal_difference_of_two_like_images_has_twice_the_noise() -> None:
    psf = PSF.centre()
    assert ideal_snr(psf, psf, SIGMA**2, SIGMA**2) == pytest.approx(1 / (UNIT * np.sqrt(2)), rel=1e-6)
    assert ideal_snr(psf, psf, SIGMA**2, 1e-9) == pytest.approx(1 / UNIT, rel=1e-6)


def test_a_simulated_pair_is_what_it_says() -> None:
    pair, again = (simulated_pair("saturated", 7, 512) for _ in range(2))
    for one, other in ((pair.science, again.science), (pair.template, again.template)):
        assert np.array_equal(one.image, other.image)
    assert pair.truth.equals(again.truth)
    assert {"transient", "hosted"} <= set(pair.truth["kind"])
    assert (pair.science.mask & Mask.SAT).any()
    # Errors of pixels as the variance says, in both images.
    for exposure in (pair.science, pair.template):
        assert _noise(exposure) == pytest.approx(1.0, abs=0.08)
    assert pair.science.psf is not None
    assert pair.template.psf is not None
    assert pair.template.psf.fwhm_px() == pytest.approx(0.8 * pair.science.psf.fwhm_px(), rel=0.05)
    away = np.hypot(*(pair.truth[c].to_numpy()[:, None] - pair.constant[c].to_numpy() for c in "xy"))
    assert away.min() > 16


def _noise(exposure: Exposure) -> float:
    """Robust scatter of every eighth pixel's difference from its neighbour but seven, in units of the variance."""
    scaled = exposure.image / np.sqrt(exposure.variance)
    far = (scaled[::8, 8::8] - scaled[::8, :-8:8]) / np.sqrt(2)
    return float(1.4826 * np.median(np.abs(far)))
