"""Streaks are found where they are, and nothing else is one; glints lie in rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apflow.model.exposure import Mask
from apflow.model.products import Difference
from apflow.pixels.detect import detect
from apflow.pixels.glints import glint_trails
from apflow.pixels.measure import measure
from apflow.pixels.streaks import find_streaks, mark_streaks
from tests.pixels.differences import difference, points

N = 512


def band(angle: float, height: float, fwhm: float = 5.0, half_length: float = np.inf) -> np.ndarray:
    """A straight band of light through (230, 281)."""
    v, u = np.mgrid[:N, :N]
    along = (u - 230) * np.cos(angle) + (v - 281) * np.sin(angle)
    across = -(u - 230) * np.sin(angle) + (v - 281) * np.cos(angle)
    return height * np.exp(-0.5 * (across / (fwhm / 2.3548)) ** 2) * (np.abs(along) < half_length)


def crowd(snr: float = 300.0) -> np.ndarray:
    """Thirty bright sources of both signs."""
    rng = np.random.default_rng(4)
    x, y = rng.uniform(10, N - 10, (2, 30)).tolist()
    return points(N, x, y, (snr * np.where(rng.random(30) < 0.5, 1, -1)).tolist())


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 4, 1.2, np.pi / 2, 2.0, 2.8])
@pytest.mark.parametrize("height", [0.7, 3.0, 100.0])
def test_a_streak_is_masked_and_little_else(angle: float, height: float) -> None:
    d, _ = difference(band(angle, height) + crowd())
    masked = (mark_streaks(d).exposure.mask & Mask.STREAK) != 0
    light = band(angle, height)
    core = light > 0.5 * light.max()
    assert masked[core].mean() > 0.97
    # Nothing of it that shows is left, and the mask is no wider than that.
    assert light[~masked].mean() < 0.02
    assert masked.mean() < 26 * 1.5 * N / N**2
    assert not (d.exposure.mask & Mask.STREAK).any()


def test_both_signs_and_two_at_once() -> None:
    d, _ = difference(band(0.4, 5.0), band(1.9, 3.0))
    streaks = find_streaks(d)
    assert sorted(np.sign(s.snr) for s in streaks) == [-1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_noise_stars_and_background_are_no_streaks(seed: int) -> None:
    v, u = np.mgrid[:N, :N] / N
    d, _ = difference(crowd(1000.0) + 0.5 * np.sin(3 * u + 2 * v) + 0.3 * u, seed=seed)
    assert find_streaks(d) == ()
    assert mark_streaks(d) is d


def test_a_streak_that_ends_is_masked_to_its_end() -> None:
    d, _ = difference(band(0.7, 3.0, half_length=120))
    (s,) = find_streaks(d)
    assert np.hypot(s.x1 - s.x0, s.y1 - s.y0) == pytest.approx(240, abs=30)


def test_bad_columns_and_values_that_are_no_numbers_are_no_streaks() -> None:
    d, _ = difference(np.zeros((N, N)))
    image, mask = d.exposure.image.copy(), d.exposure.mask.copy()
    image[:, 100:103], mask[:, 100:103] = 1e5, Mask.SAT
    image[200], mask[200] = np.nan, Mask.NO_DATA
    image[300, 300] = np.nan
    d = dataclasses.replace(d, exposure=dataclasses.replace(d.exposure, image=image, mask=mask))
    assert find_streaks(d) == ()


def test_sources_on_a_streak_are_flagged() -> None:
    d, science = difference(band(0.3, 3.0) + points(N, [60.0], [450.0], [40.0]))
    d = mark_streaks(d)
    m = measure(d, science, detect(d, 5.0))
    lone = np.hypot(m["x"] - 60, m["y"] - 450) < 2
    assert lone.sum() == 1 and not m["pixelFlags_streak"][lone].any()
    assert m["pixelFlags_streakCenter"][~lone].mean() > 0.9


def glints(d: Difference, science: object) -> np.ndarray:
    m = measure(d, science, detect(d, 5.0))
    return m.loc[m["glint_trail"], ["x", "y"]].to_numpy()


def test_a_row_of_flashes_is_a_glint_trail() -> None:
    row = 40 + 25.0 * np.arange(7)
    x, y = [*row, 100.0, 300.0, 440.0], [*(60 + 0.7 * row), 400.0, 300.0, 90.0]
    d, science = difference(points(N, x, y, [30.0] * 10))
    found = glints(d, science)
    assert len(found) == 7 and (found[:, 1] - 60 - 0.7 * found[:, 0]).max() < 1
    # Stars in a row that vary are none: the template has them, too.
    d, science = difference(points(N, x, y, [130.0] * 10), points(N, x, y, [100.0] * 10))
    assert len(glints(d, science)) == 0


def test_chance_makes_no_glint_trails() -> None:
    wrong = 0
    for seed in range(20):
        x, y = np.random.default_rng(seed).uniform(0, 4096, (2, 400))
        wrong += glint_trails(x, y, np.ones(400, bool), 0.2, 4096.0**2).any()
    assert wrong == 0
    assert not glint_trails(x, y, np.zeros(400, bool), 0.2, 4096.0**2).any()
    assert not glint_trails(x[:0], y[:0], np.ones(0, bool), 0.2, 4096.0**2).any()
