"""Positions in regions, many at once, against the regions' own word."""

from __future__ import annotations

import numpy as np
import pytest

from apflow.io.ppdb.sky_index import distinct, members
from apflow.model.region import Region
from apflow.model.sky import deproject


def polygons(rng: np.random.Generator, ra: float, dec: float) -> list[Region]:
    """Convex polygons of 3 to 6 corners within a degree of a point, in either sense."""
    made = []
    for _ in range(30):
        corner = np.sort((np.arange(n := rng.integers(3, 7)) + rng.uniform(0, 0.8, n)) * 2 * np.pi / n)
        x, y = rng.uniform(-0.8, 0.8, 2)[:, None] + 0.12 * np.stack([np.cos(corner), np.sin(corner)])
        made.append(Region(np.stack(deproject(x, y, ra, dec), -1)[:: rng.choice([1, -1])]))
    return made


@pytest.mark.parametrize(("ra", "dec"), [(10.0, -30.0), (0.0, 0.0), (359.99, 70.0), (100.0, 90.0), (33.0, -89.9)])
def test_members_are_those_that_each_region_contains(ra: float, dec: float) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1, 1, (2, 5000))
    places = deproject(x, y, ra, dec)
    regions = polygons(rng, ra, dec)
    found = members(*places, regions)
    assert sum(map(len, found)) > 100
    for region, inside in zip(regions, found, strict=True):
        np.testing.assert_array_equal(inside, np.flatnonzero(region.contains(*places)))
    opposite = ((places[0] + 180.0) % 360.0, -places[1])
    assert not any(len(inside) for inside in members(*opposite, regions))
    assert [len(inside) for inside in members(np.empty(0), np.empty(0), regions)] == [0] * len(regions)


def test_distinct_is_what_numpy_gives():
    numbers = np.random.default_rng(3).integers(-50, 50, (40, 8))
    for some in (numbers, numbers[0], np.sort(numbers[0]), numbers[:1, :1], numbers[:0].ravel(), np.zeros(9, np.int64)):
        np.testing.assert_array_equal(distinct(some), np.unique(some))
