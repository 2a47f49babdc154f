"""Association: the best match of all, Solar System objects first, new objects for the rest."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apflow.catalogs.associate import associate
from apflow.errors import DataError
from apflow.model import schema
from apflow.model.products import Associated
from tests.catalogs.sky import CENTRE, errors, history, place, table

RADIUS, FLOOR = 1.0, 0.05
ALONE = 12.5 + math.log(0.2**2)  # a pair at the radius that is 5 sigma apart


def run(new: pd.DataFrame, known: pd.DataFrame, limit: int = 1000, ss: pd.DataFrame | None = None) -> Associated:
    return associate(
        new,
        history(known),
        radius_arcsec=RADIUS,
        position_floor_arcsec=FLOOR,
        max_new_objects=limit,
        ss_objects=ss,
    )


def gains(new: np.ndarray, known: np.ndarray) -> np.ndarray:
    """What each pair of rows (x, y, east, north, correlation) is worth, one by one; 0 beyond the radius."""

    def covariance(row: np.ndarray) -> np.ndarray:
        _, _, e, n, r = row
        return np.array([[e * e, r * e * n], [r * e * n, n * n]])

    out = np.zeros((len(new), len(known)))
    for i, j in np.ndindex(*out.shape):
        d = new[i, :2] - known[j, :2]
        total = covariance(new[i]) + covariance(known[j]) + FLOOR**2 * np.eye(2)
        cost = 0.5 * d @ np.linalg.inv(total) @ d + 0.5 * math.log(np.linalg.det(total))
        if np.hypot(*d) <= RADIUS:
            out[i, j] = ALONE - cost if cost < ALONE - 1 else 1 / (2 + cost - ALONE)
    return out


def greatest_total(gain: np.ndarray) -> float:
    """The greatest total gain over every possible assignment."""
    n, m = gain.shape
    choices = set(itertools.permutations([*range(m), *([-1] * n)], n))
    return max(sum(gain[i, j] for i, j in enumerate(c) if j >= 0) for c in choices)


def rows(n: int) -> st.SearchStrategy[np.ndarray]:
    """Rows (x, y, east, north, correlation); on a grid of 0.05 arcsec, so that ties occur."""
    step = st.integers(-20, 20).map(lambda k: 0.05 * k)
    error = st.floats(0.005, 0.4)
    one = st.tuples(step, step, error, error, st.floats(-0.95, 0.95))
    return st.lists(one, min_size=1, max_size=n).map(np.array)


def tables(new: np.ndarray, known: np.ndarray, centre: tuple[float, float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    return (
        table("DiaSource", *new[:, :2].T, centre, **errors(*new[:, 2:].T)),
        table("DiaObject", *known[:, :2].T, centre, **errors(*known[:, 2:].T)),
    )


@settings(max_examples=120, deadline=None)
@given(rows(5), rows(4))
def test_the_match_is_the_best_of_all(new: np.ndarray, known: np.ndarray) -> None:
    out = run(*tables(new, known, (359.9999, -42.0)))
    gain = gains(new, known)
    ids = out.sources["diaObjectId"].to_numpy(np.int64)
    assert len(set(ids)) == len(new)
    # Pairs that are 1 arcsec apart to the last digit may fall on either side.
    if (np.abs(np.hypot(*(new[:, None, :2] - known[None, :, :2]).T) - RADIUS) > 1e-6).all():
        total = sum(gain[i, k - 1] for i, k in enumerate(ids) if k < 1000)
        assert total == pytest.approx(greatest_total(gain), rel=1e-4, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(rows(6), rows(6), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(new: np.ndarray, known: np.ndarray, random: object) -> None:
    first_new, first_known = tables(new, known, CENTRE)
    first = run(first_new, first_known)
    order_new, order_known = (random.sample(range(len(t)), len(t)) for t in (new, known))  # type: ignore[attr-defined]
    second = run(first_new.iloc[order_new], first_known.iloc[order_known])
    pd.testing.assert_frame_equal(second.sources, first.sources.iloc[order_new].reset_index(drop=True))
    pd.testing.assert_frame_equal(second.objects, first.objects)
    assert second.guard == first.guard


def test_a_crowd_is_solved_as_a_whole() -> None:
    """One connected group of 300: the same total as one dense assignment of all."""
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(3)
    new, known = (np.c_[rng.uniform(-5, 5, (n, 2)), rng.uniform(0.02, 0.3, (n, 2)), np.zeros(n)] for n in (300, 250))
    out = run(*tables(new, known, CENTRE))
    gain = gains(new, known)
    ids = out.sources["diaObjectId"].to_numpy(np.int64)
    assert len(set(ids)) == 300 and 200 < (ids < 1000).sum() <= 250
    total = sum(gain[i, k - 1] for i, k in enumerate(ids) if k < 1000)
    assert total == pytest.approx(gain[linear_sum_assignment(gain, maximize=True)].sum(), rel=1e-5)


@pytest.mark.parametrize("centre", [(0.0, 0.0), (359.99995, -30.0), (123.0, 90.0), (10.0, -89.9999)])
def test_known_objects_are_found_anywhere_on_the_sky(centre: tuple[float, float]) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.uniform(-50, 50, (2, 30))
    known = table("DiaObject", x, y, centre)
    out = run(table("DiaSource", x + rng.normal(0, 0.05, 30), y + rng.normal(0, 0.05, 30), centre), known)
    assert out.sources["diaObjectId"].tolist() == known["diaObjectId"].tolist()
    assert out.guard == dict(zip(known["diaObjectId"], known["validityStartMjdTai"], strict=True))
    assert (out.objects["nDiaSources"] == 4).all()


@pytest.mark.parametrize("error", [0.01, 0.05, 0.1])
def test_a_perfect_pair_is_not_torn_apart(error: float) -> None:
    # Pairing all would move the exact match to the far object, many sigma away.
    sigma = errors(error, error)
    new, known = table("DiaSource", [0.0, 0.9], [0.0] * 2, **sigma), table("DiaObject", [0.0, -0.9], [0.0] * 2, **sigma)
    assert run(new, known).sources["diaObjectId"].tolist() == [1, 1001]


def test_a_likely_pair_beats_an_unlikely_one_of_smaller_errors() -> None:
    new = table("DiaSource", [0.9, 0.05], [0.0] * 2, **errors([0.03, 0.3], [0.03, 0.3]))
    assert run(new, table("DiaObject", [0.0], [0.0])).sources["diaObjectId"].tolist() == [1000, 1]


def test_correlated_errors_decide_between_two_objects() -> None:
    # The source's error ellipse points to the North-East, where the farther of the two lies.
    new = table("DiaSource", [0.0], [0.0], **errors(0.3, 0.3, 0.95))
    assert run(new, table("DiaObject", [0.35, 0.28], [0.35, -0.28])).sources["diaObjectId"][0] == 1
    round_errors = table("DiaSource", [0.0], [0.0], **errors(0.3, 0.3))
    assert run(round_errors, table("DiaObject", [0.35, 0.28], [0.35, -0.28])).sources["diaObjectId"][0] == 2


@pytest.mark.parametrize(("offset", "found"), [(0.999, True), (1.001, False)])
def test_within_the_radius_an_object_that_nobody_else_wants_is_taken(offset: float, found: bool) -> None:
    out = run(table("DiaSource", [offset], [0.0], **errors(1e-3, 1e-3)), table("DiaObject", [0.0], [0.0]))
    assert (out.sources["diaObjectId"][0] == 1) == found


def test_new_objects_take_the_id_of_their_source() -> None:
    new = table("DiaSource", [0.0, 10.0], [0.0, 0.0])
    before = new.copy()
    out = run(new, schema.empty("DiaObject"))
    assert out.sources["diaObjectId"].tolist() == [1000, 1001]
    assert out.objects["diaObjectId"].tolist() == [1000, 1001]
    assert (out.objects["nDiaSources"] == 1).all() and out.guard == {}
    pd.testing.assert_frame_equal(new, before)


def test_the_guard_names_objects_near_a_source_and_no_others() -> None:
    # Matched; competing for the same source; on the detector but near nothing; in the read margin.
    known = table("DiaObject", [0.0, 0.8, 5.0, 60.0], [0.0] * 4)
    out = run(table("DiaSource", [0.1], [0.0]), known)
    assert out.guard == {1: 59990.0, 2: 59991.0}
    assert out.objects["diaObjectId"].tolist() == [1]


def test_too_many_new_objects_are_refused() -> None:
    new = table("DiaSource", np.arange(6) * 5.0, np.zeros(6))
    with pytest.raises(DataError, match=r"6 DiaSources.*at most 5"):
        run(new, schema.empty("DiaObject"), limit=5)
    assert len(run(new, table("DiaObject", [0.0], [0.0]), limit=5).objects) == 6


def test_no_sources_no_versions() -> None:
    out = run(schema.empty("DiaSource"), table("DiaObject", [0.0], [0.0]))
    assert out.sources.empty and out.objects.empty and out.guard == {} and out.matches.empty
    assert out.objects.dtypes.equals(schema.empty("DiaObject").dtypes)


def test_solar_system_objects_go_first() -> None:
    """A moving object over a known DiaObject: its source makes no version, but the store must know the object."""
    new = table("DiaSource", [0.0, 20.0, 40.0], [0.0] * 3)
    known = table("DiaObject", [0.1, 20.1], [0.0] * 2)
    ss = pd.DataFrame({"ssObjectId": [77, 78], **place([0.2, 300.0], [0.0] * 2), "raErr": 1e-4, "decErr": 1e-4})
    out = run(new, known, ss=ss)
    assert out.sources["ssObjectId"].tolist() == [77, pd.NA, pd.NA]
    assert out.sources["diaObjectId"].tolist() == [pd.NA, 2, 1002]
    assert out.objects["diaObjectId"].tolist() == [2, 1002]
    assert set(out.guard) == {1, 2}
    nowhere = run(new, known, ss=ss.iloc[:0])
    assert nowhere.sources["diaObjectId"].tolist() == [1, 2, 1002] and nowhere.sources["ssObjectId"].isna().all()
    # A known asteroid is no new object for the circuit breaker.
    assert len(run(new, known, limit=1, ss=ss).objects) == 2
    with pytest.raises(DataError, match="SSObject positions lack column 'raErr'"):
        run(new, known, ss=ss.drop(columns="raErr"))


def test_two_sources_share_no_solar_system_object() -> None:
    new = table("DiaSource", [0.0, 0.3], [0.0] * 2)
    ss = pd.DataFrame({"ssObjectId": [77], **place([0.25], [0.0]), "raErr": 1e-5, "decErr": 1e-5})
    out = run(new, schema.empty("DiaObject"), ss=ss)
    assert out.sources["ssObjectId"].tolist() == [pd.NA, 77] and out.objects["diaObjectId"].tolist() == [1000]
