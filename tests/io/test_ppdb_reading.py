"""What any PPDB reads for association (D8), wherever on the sky."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from apflow.errors import DataError
from apflow.io.ppdb import Ppdb
from apflow.io.ppdb.interface import Wanted
from apflow.model.products import History
from apflow.model.sky import deproject
from tests.io import ppdb_night as night


def history(ppdb: Ppdb, *wanted: Wanted, **options: float) -> list[History]:
    return ppdb.getHistory(wanted, **{"margin_arcsec": 20.0, "radius_arcsec": 1.0, **options})


def wanted(k: int, detector: int) -> Wanted:
    new = night.sources(k, detector)
    return Wanted(night.regions()[detector], new["ra"].to_numpy(), new["dec"].to_numpy(), night.mjd(k))


@pytest.fixture
def three_visits(ppdb: Ppdb) -> Ppdb:
    """Three detectors of three visits."""
    for k in range(3):
        night.store(ppdb, [night.process(ppdb, k, d) for d in range(3)])
    return ppdb


def test_a_history_is_what_the_single_requests_give(three_visits: Ppdb) -> None:
    (found,) = history(three_visits, wanted(3, 1))
    objects = three_visits.getDiaObjects(night.regions()[1], 20.0)
    pd.testing.assert_frame_equal(found.objects, objects)
    arguments = (night.regions()[1], objects["diaObjectId"].tolist(), night.mjd(3))
    pd.testing.assert_frame_equal(found.sources, three_visits.getDiaSources(*arguments))
    pd.testing.assert_frame_equal(found.forced, three_visits.getDiaForcedSources(*arguments))
    assert (len(found.objects), len(found.sources), len(found.forced)) == (10, 30, 30)
    assert found.sources.attrs["unit"]["psfFlux"] == "nJy"


def test_many_detectors_at_once_read_what_each_reads_alone(three_visits: Ppdb) -> None:
    ra, dec = night.places(1)
    shifted = dataclasses.replace(wanted(1, 1), ra=ra[:3], dec=dec[:3])  # an earlier time, and fewer sources
    asked = [wanted(3, 0), shifted, wanted(3, 1), wanted(3, 2)]
    for together, one in zip(history(three_visits, *asked), asked, strict=True):
        (alone,) = history(three_visits, one)
        for name in ("objects", "sources", "forced", "drp"):
            pd.testing.assert_frame_equal(getattr(together, name), getattr(alone, name))
    assert history(three_visits) == []


def test_only_objects_near_a_source_have_their_past_read(three_visits: Ppdb) -> None:
    ra, dec = night.places(0)
    some = dataclasses.replace(wanted(3, 0), ra=ra[:2], dec=dec[:2])
    (found,) = history(three_visits, some)
    assert len(found.objects) == 10 and found.sources["diaObjectId"].nunique() == 2
    none = dataclasses.replace(wanted(3, 0), ra=np.empty(0), dec=np.empty(0))
    (found,) = history(three_visits, none)
    assert len(found.objects) == 10 and found.sources.empty and found.forced.empty


def test_a_history_ends_after_its_days_and_at_its_time(three_visits: Ppdb) -> None:
    (found,) = history(three_visits, wanted(2, 0), days=0.015)
    assert sorted(found.sources["midpointMjdTai"].unique()) == [night.mjd(1), night.mjd(2)]
    (found,) = history(three_visits, wanted(1, 0))
    assert found.sources["midpointMjdTai"].max() == night.mjd(1)
    ids = three_visits.getDiaObjects(night.square())["diaObjectId"].tolist()
    assert len(three_visits.getDiaSources(night.square(), ids, night.mjd(2), days=1.0)) == 30
    assert len(three_visits.getDiaSources(night.square(), ids, night.mjd(2), days=0.015)) == 20
    assert three_visits.getDiaSources(night.square(), [], night.mjd(2)).empty


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 12.0), (359.999, -75.0), (200.0, 90.0), (10.0, -89.99)])
def test_regions_across_ra_zero_and_around_the_poles(ppdb: Ppdb, ra: float, dec: float) -> None:
    region = night.square(ra, dec, 50.0)
    ring = night.square(ra, dec, 49.0).vertices
    beyond = night.square(ra, dec, 65.0).vertices
    inside = night.sources(0, 0, (ring[:, 0], ring[:, 1]))
    outside = night.sources(0, 1, (beyond[:, 0], beyond[:, 1]))
    empty = night.read(ppdb, 0, region, inside)
    night.store(ppdb, [night.result(inside, 0, 0, empty), night.result(outside, 0, 1, empty)])
    ids = set(inside["diaSourceId"])
    assert set(ppdb.getDiaObjects(region)["diaObjectId"]) == ids
    assert len(ppdb.getDiaObjects(region, 20.0)) == 8
    assert set(ppdb.getDiaSources(region, None, night.mjd(0))["diaSourceId"]) == ids
    assert ppdb.getDiaObjects(night.square((ra + 180.0) % 360.0, -dec)).empty
    again = night.result(night.sources(1, 0, (ring[:, 0], ring[:, 1])), 1, 0, night.read(ppdb, 1, region, inside))
    assert set(again.sources["diaObjectId"]) == ids and night.store(ppdb, [again]).stored


def drp(n: int = 5, **changes: object) -> pd.DataFrame:
    ra, dec = deproject(np.arange(n) * 30.0 / 3600, np.zeros(n), night.RA, night.DEC)
    extendedness = np.array([0.0, 1.0, np.nan, 0.0, 1.0])[:n].astype(np.float32)
    given = {"objectId": np.arange(n) + 10**17, "ra": ra, "dec": dec, "extendedness": extendedness}
    return pd.DataFrame({**given, **changes})


def test_drp_objects_about_a_region(ppdb: Ppdb) -> None:
    assert ppdb.loadDrpObjects(drp()) == 5
    pd.testing.assert_frame_equal(ppdb.getDrpObjects(night.square()), drp().iloc[:4])  # 50" and 60" beyond
    assert ppdb.getDrpObjects(night.square(), 0.0)["objectId"].tolist() == [10**17, 10**17 + 1]
    (found,) = history(ppdb, wanted(0, 0))
    pd.testing.assert_frame_equal(found.drp, drp().iloc[:4])
    assert ppdb.loadDrpObjects(drp(1, extendedness=[1.0])) == 1  # the next Data Release
    assert ppdb.getDrpObjects(night.square())["extendedness"].tolist()[:2] == [1.0, 1.0]


def test_matches_with_drp_objects_are_stored(ppdb: Ppdb) -> None:
    ra, dec = night.places(0)
    near = drp(3, ra=ra[:3], dec=dec[:3])
    ppdb.loadDrpObjects(near)
    result = night.process(ppdb, 0, 0)
    assert len(result.matches)
    night.store(ppdb, [result])
    night.store(ppdb, [result])
    stored = ppdb.table("DiaObject_To_Object_Match")
    columns = ["diaObjectId", "objectId"]
    assert set(stored[columns].itertuples(index=False)) == set(result.matches[columns].itertuples(index=False))
    night.store(ppdb, [night.process(ppdb, 1, 0)])  # no new objects, no matches
    assert len(ppdb.table("DiaObject_To_Object_Match")) == len(stored)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"ra": [400.0]}, "DrpObject.ra is 400"),
        ({"objectId": [1.5]}, "DrpObject.objectId"),
        ({"extendedness": [2.0]}, "DrpObject.extendedness is 2"),
        ({"flux": [1.0]}, "'flux' is unknown"),
    ],
)
def test_bad_drp_objects_are_refused(ppdb: Ppdb, bad: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ppdb.loadDrpObjects(drp(1, **bad))
    assert ppdb.getDrpObjects(night.square()).empty


def test_withdrawn_sources_are_gone_from_history_and_outbox(three_visits: Ppdb) -> None:
    ids = night.sources(2, 0)["diaSourceId"].tolist()
    assert three_visits.withdraw(ids[:4], 60786.0) == 4
    assert three_visits.withdraw([*ids[:5], 1], 60787.0) == 1
    (found,) = history(three_visits, wanted(3, 0))
    assert len(found.sources) == 25 and not set(ids[:5]) & set(found.sources["diaSourceId"])
    assert not set(ids[:5]) & {a.alert_id for a in three_visits.pendingAlerts()}
    rows = three_visits.table("DiaSource").set_index("diaSourceId").loc[ids[:6], "timeWithdrawnMjdTai"]
    np.testing.assert_array_equal(rows, [60786.0] * 4 + [60787.0, np.nan])


def test_rows_of_a_table_by_values_of_columns(three_visits: Ppdb) -> None:
    found = three_visits.table("DiaSource", {"visit": range(night.FIRST, night.FIRST + 2), "detector": [0, 2]})
    assert len(found) == 40 and set(found["detector"]) == {0, 2} and night.FIRST + 2 not in set(found["visit"])
    one = int(found["diaObjectId"].iloc[0])
    versions = three_visits.table("DiaObject", {"diaObjectId": [one]})
    assert len(versions) == 3 and versions["validityEndMjdTai"].isna().tolist() == [False, False, True]
    last = three_visits.table("DiaObjectLast", {"diaObjectId": [one]})
    assert last["validityStartMjdTai"].tolist() == versions["validityStartMjdTai"].tolist()[-1:]
    assert three_visits.table("DiaSource", {"visit": []}).empty
