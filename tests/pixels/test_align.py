"""Registration by stars: what is put in comes back, and what is no match is not taken for one."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apflow.errors import DataError
from apflow.pixels.align import Mapping, align, describe
from apflow.pixels.asterisms import similarities

SIZE = 1000


class Field(NamedTuple):
    """Two lists of stars and the truth between them."""

    science: pd.DataFrame
    template: pd.DataFrame
    shapes: tuple[tuple[int, int], tuple[int, int]]
    truth: Mapping


def field(
    seed: int = 0,
    *,
    n: int = 150,
    kept: float = 0.7,
    alien: float = 0.3,
    noise: float = 0.08,
    rotation_deg: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    mirrored: bool = False,
    bend: float = 0.0,
) -> Field:
    """Stars of which each image has a part, others that only one has, and positions with errors."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, SIZE, (2, n))
    flux = (rng.random(n) + 1e-3) ** -1.2
    side, middle, t = int(SIZE * scale), (SIZE - 1) / 2, np.radians(rotation_deg)

    def truth(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dx, dy = x - middle, y - middle
        u, v = np.cos(t) * dx - np.sin(t) * dy, np.sin(t) * dx + np.cos(t) * dy
        u, v = u + bend * (dx / middle) ** 2, v + bend * dx * dy / middle**2
        return scale * (-u if mirrored else u) + side / 2 + shift[0], scale * v + side / 2 + shift[1]

    tables = []
    for px, py, length in ((x, y, SIZE), (*truth(x, y), side)):
        here = (rng.random(n) < kept) & (px > 0) & (py > 0) & (px < length) & (py < length)
        extra = int(alien * here.sum())
        columns = [
            np.concatenate([p[here] + rng.normal(0, noise, here.sum()), rng.uniform(0, length, extra)])
            for p in (px, py)
        ]
        bright = np.concatenate([flux[here] * rng.lognormal(0, 0.3, here.sum()), (rng.random(extra) + 1e-3) ** -1.2])
        tables.append(pd.DataFrame({"x": columns[0], "y": columns[1], "flux": bright}))
    return Field(tables[0], tables[1], ((SIZE, SIZE), (side, side)), truth)


def same(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x, y


def error(mapping: Mapping, f: Field) -> float:
    """Largest error of a mapping over the part of the science image that is on the template."""
    x, y = (c.ravel() for c in np.meshgrid(*[np.linspace(50, SIZE - 50, 12)] * 2))
    u, v = f.truth(x, y)
    on = (u > 0) & (v > 0) & (u < f.shapes[1][1]) & (v < f.shapes[1][0])
    a, b = mapping(x, y)
    return float(np.hypot(a - u, b - v)[on].max())


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rotation_deg=st.floats(-180, 180),
    scale=st.floats(0.4, 2.5),
    mirrored=st.booleans(),
    shift=st.tuples(st.floats(-150, 150), st.floats(-150, 150)),
    seed=st.integers(0, 50),
)
def test_any_similarity_comes_back(
    rotation_deg: float, scale: float, mirrored: bool, shift: tuple[float, float], seed: int
) -> None:
    f = field(seed, n=100, rotation_deg=rotation_deg, scale=scale, mirrored=mirrored, shift=shift)
    found = align(f.science, f.template, f.shapes)
    assert error(found, f) < 0.3
    said, true = describe(found, f.shapes[0]), describe(f.truth, f.shapes[0])
    assert said == {
        k: pytest.approx(v, abs=0.1 if k.startswith("shift") else 0.02) for k, v in true.items() if k != "rotation_deg"
    } | {"rotation_deg": said["rotation_deg"]}
    assert abs((said["rotation_deg"] - true["rotation_deg"] + 180) % 360 - 180) < 0.02
    assert found.matched <= min(found.stars)


def test_distortion_is_fitted_by_a_polynomial() -> None:
    f = field(n=600, kept=0.9, noise=0.03, rotation_deg=30, bend=5.0)
    found = align(f.science, f.template, f.shapes)
    assert error(found, f) < 0.15
    assert found.rms_px < 0.06


@pytest.mark.parametrize("shift", [(0.3, -0.2), (12.0, -7.0), (-25.0, 25.0)])
def test_wrong_first_idea_is_corrected(shift: tuple[float, float]) -> None:
    f = field(shift=shift, rotation_deg=0.05, noise=0.02)
    found = align(f.science, f.template, f.shapes, same)
    assert error(found, f) < 0.05
    assert found.start is same


def test_first_idea_that_is_hopeless_is_dropped() -> None:
    f = field(rotation_deg=77.0, shift=(60.0, 0.0))
    assert error(align(f.science, f.template, f.shapes, same), f) < 0.3


def test_few_stars_do() -> None:
    done = 0
    for seed in range(10):
        f = field(seed, n=7, kept=1.0, alien=0.0, noise=0.05, rotation_deg=120.0, scale=0.8)
        with contextlib.suppress(DataError):
            done += error(align(f.science, f.template, f.shapes), f) < 0.8
    assert done >= 8


def test_other_fields_do_not_match_and_the_message_counts() -> None:
    for seed in range(4):
        first, second = field(seed, n=80), field(seed + 50, n=80)
        for start in (None, same):
            with pytest.raises(DataError, match=r"\d+ of \d+ stars of the science image and \d+ of the template"):
                align(first.science, second.template, first.shapes, start)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_too_few_stars_are_an_error(n: int) -> None:
    f = field()
    with pytest.raises(DataError, match=r"needed: 4 or more"):
        align(f.science[:n], f.template, f.shapes)


def test_input_is_left_alone_and_output_is_the_same() -> None:
    f = field(rotation_deg=10.0)
    before = f.science.copy(), f.template.copy()
    x = np.linspace(0, 999, 7)
    first, second = (align(f.science, f.template, f.shapes)(x, x) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    pd.testing.assert_frame_equal(f.science, before[0])
    pd.testing.assert_frame_equal(f.template, before[1])


def test_similarities_come_best_first() -> None:
    f = field(rotation_deg=45.0, mirrored=True)
    order = [t.sort_values("flux", ascending=False)[["x", "y"]].to_numpy() for t in (f.science, f.template)]
    best, *others = similarities(order[0], order[1])
    assert best.mirrored and error(best, f) < 5
    assert len(others) <= 3
    assert similarities(order[0][:2], order[1]) == []
