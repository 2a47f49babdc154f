"""Association: the best match of all, new objects for the rest."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from apflow.catalogs.associate import associate
from apflow.errors import DataError
from apflow.model import schema
from apflow.model.products import Associated, History
from apflow.model.region import Region
from apflow.model.sky import deproject

RADIUS, FLOOR = 1.0, 0.05


def square(ra: float, dec: float, half_arcsec: float = 60.0) -> Region:
    h = half_arcsec / 3600.0
    return Region(np.stack(deproject(np.array([h, -h, -h, h]), np.array([-h, -h, h, h]), ra, dec), -1))


def sources(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], err: np.ndarray | float) -> pd.DataFrame:
    """DiaSources at tangent-plane offsets, arcsec."""
    ra, dec = deproject(np.asarray(x) / 3600.0, np.asarray(y) / 3600.0, *centre)
    given = {"diaSourceId": 1000 + np.arange(len(ra)), "visit": 2025042000123, "detector": 1, "ra": ra, "dec": dec}
    given |= {"raErr": np.asarray(err) / 3600.0, "decErr": np.asarray(err) / 3600.0, "midpointMjdTai": 60000.5}
    return schema.conform(pd.DataFrame(given | {"x": 0.0, "y": 0.0, "band": "r"}), "DiaSource")


def objects(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], err: np.ndarray | float) -> pd.DataFrame:
    ra, dec = deproject(np.asarray(x) / 3600.0, np.asarray(y) / 3600.0, *centre)
    given = {"diaObjectId": 1 + np.arange(len(ra)), "validityStartMjdTai": 59990.0 + np.arange(len(ra)), "ra": ra}
    given |= {"dec": dec, "raErr": np.asarray(err) / 3600.0, "decErr": np.asarray(err) / 3600.0, "nDiaSources": 3}
    return schema.conform(pd.DataFrame(given), "DiaObject")


def history(known: pd.DataFrame) -> History:
    return History(known, schema.empty("DiaSource"), schema.empty("DiaForcedSource"))


def run(new: pd.DataFrame, known: pd.DataFrame, limit: int = 1000) -> Associated:
    return associate(
        new,
        history(known),
        radius_arcsec=RADIUS,
        position_floor_arcsec=FLOOR,
        max_new_objects=limit,
    )


def brute_force(sx: np.ndarray, ox: np.ndarray, s_err: np.ndarray, o_err: np.ndarray) -> float:
    """Least total cost over every possible assignment."""
    alone = 0.5 * (RADIUS / FLOOR) ** 2 + math.log(FLOOR**2)
    variance = s_err[:, None] ** 2 + o_err[None, :] ** 2 + FLOOR**2
    r2 = ((sx[:, None, :] - ox[None, :, :]) ** 2).sum(-1)
    cost = np.where(r2 <= RADIUS**2, 0.5 * r2 / variance + np.log(variance), np.inf)
    best = np.inf
    slots = [*range(len(ox)), *([-1] * len(sx))]
    for choice in set(itertools.permutations(slots, len(sx))):
        best = min(best, sum(alone if j < 0 else cost[i, j] for i, j in enumerate(choice)))
    return best


def total_cost(ids: np.ndarray, sx: np.ndarray, ox: np.ndarray, s_err: np.ndarray, o_err: np.ndarray) -> float:
    alone = 0.5 * (RADIUS / FLOOR) ** 2 + math.log(FLOOR**2)
    total = 0.0
    for i, k in enumerate(ids):
        if k >= 1000:
            total += alone
            continue
        variance = s_err[i] ** 2 + o_err[k - 1] ** 2 + FLOOR**2
        total += 0.5 * ((sx[i] - ox[k - 1]) ** 2).sum() / variance + math.log(variance)
    return total


@pytest.mark.parametrize("seed", range(12))
def test_match_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = rng.integers(2, 5), rng.integers(1, 4)
    sx, ox = rng.uniform(-0.8, 0.8, (n, 2)), rng.uniform(-0.8, 0.8, (m, 2))
    s_err, o_err = rng.uniform(0.02, 0.3, n), rng.uniform(0.01, 0.2, m)
    centre = (359.9999, -42.0)
    out = run(sources(*sx.T, centre, s_err), objects(*ox.T, centre, o_err))
    ids = out.sources["diaObjectId"].to_numpy(np.int64)
    assert len(set(ids)) == n
    assert total_cost(ids, sx, ox, s_err, o_err) == pytest.approx(brute_force(sx, ox, s_err, o_err), rel=1e-4)


@pytest.mark.parametrize("centre", [(0.0, 0.0), (359.99995, -30.0), (123.0, 90.0), (10.0, -89.9999)])
def test_known_objects_are_found_anywhere_on_the_sky(centre: tuple[float, float]) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.uniform(-50, 50, (2, 30))
    known = objects(x, y, centre, 0.03)
    new = sources(x + rng.normal(0, 0.05, 30), y + rng.normal(0, 0.05, 30), centre, 0.05)
    out = run(new, known)
    assert out.sources["diaObjectId"].tolist() == known["diaObjectId"].tolist()
    assert out.guard == dict(zip(known["diaObjectId"], known["validityStartMjdTai"], strict=True))
    assert (out.objects["nDiaSources"] == 4).all()


def test_a_closer_source_is_not_pushed_away() -> None:
    # Pairing all would move the exact match to the far object.
    out = run(
        sources(np.array([0.0, 0.9]), np.zeros(2), (10.0, -30.0), 0.02),
        objects(np.array([0.0, -0.9]), np.zeros(2), (10.0, -30.0), 0.02),
    )
    assert out.sources["diaObjectId"].tolist() == [1, 1001]


def test_order_of_the_input_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    centre = (50.0, -20.0)
    new = sources(*rng.uniform(-5, 5, (2, 40)), centre, 0.1)
    known = objects(*rng.uniform(-5, 5, (2, 40)), centre, 0.1)
    first = run(new, known)
    shuffled = new.sample(frac=1, random_state=1)
    second = run(shuffled, known.sample(frac=1, random_state=2))
    assert second.sources["diaSourceId"].tolist() == shuffled["diaSourceId"].tolist()
    by_id = second.sources.sort_values("diaSourceId", ignore_index=True)
    pd.testing.assert_frame_equal(first.sources, by_id)
    pd.testing.assert_frame_equal(first.objects, second.objects)


def test_new_objects_take_the_id_of_their_source() -> None:
    new = sources(np.array([0.0, 10.0]), np.zeros(2), (10.0, -30.0), 0.05)
    before = new.copy()
    out = run(new, schema.empty("DiaObject"))
    assert out.sources["diaObjectId"].tolist() == [1000, 1001]
    assert out.objects["diaObjectId"].tolist() == [1000, 1001]
    assert (out.objects["nDiaSources"] == 1).all() and out.guard == {}
    pd.testing.assert_frame_equal(new, before)


def test_the_guard_names_objects_of_the_detector_and_those_near_its_sources() -> None:
    centre = (10.0, -30.0)
    known = objects(np.array([0.0, 60.5, 75.0]), np.zeros(3), centre, 0.05)
    out = run(sources(np.array([59.9]), np.zeros(1), centre, 0.05), known)
    assert out.guard == {1: 59990.0, 2: 59991.0}


def test_too_many_new_objects_are_refused() -> None:
    new = sources(np.arange(6) * 5.0, np.zeros(6), (10.0, -30.0), 0.05)
    with pytest.raises(DataError, match=r"6 DiaSources.*at most 5"):
        run(new, schema.empty("DiaObject"), limit=5)


def test_no_sources_no_versions() -> None:
    known = objects(np.zeros(1), np.zeros(1), (10.0, -30.0), 0.05)
    out = run(schema.empty("DiaSource"), known)
    assert out.sources.empty and out.objects.empty and out.guard == {1: 59990.0}
