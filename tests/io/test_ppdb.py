"""What any PPDB does: what is stored, once, who waits for whom, and what the ledger and the outbox say."""

from __future__ import annotations

import dataclasses
import threading
import time

import pandas as pd
import pytest

from apflow.errors import BadRequest
from apflow.io.ppdb import Ppdb
from apflow.model import schema
from apflow.model.ledger import Outcome, State, StepRecord
from apflow.model.region import Region
from tests.io import ppdb_night as night


def announce(ppdb: Ppdb, k: int, regions: dict[int, Region] | None = None, wait_s: float = 30.0) -> None:
    ppdb.openVisit(night.visit(k), night.regions() if regions is None else regions, time.time() + wait_s)


def test_rows_come_back_as_they_went(ppdb: Ppdb) -> None:
    announce(ppdb, 0)
    done = [night.process(ppdb, 0, d) for d in range(3)]
    report = night.store(ppdb, done)
    assert report.stored == tuple((night.FIRST, d) for d in range(3))
    region = night.regions()[1]
    sources = ppdb.getDiaSources(region, done[1].objects["diaObjectId"].tolist(), night.mjd(1))
    assert (sources.pop("timeProcessedMjdTai") == 60785.5).all()
    pd.testing.assert_frame_equal(sources, done[1].sources.drop(columns="timeProcessedMjdTai"))
    objects = ppdb.getDiaObjects(region)
    pd.testing.assert_frame_equal(objects, done[1].objects)
    assert objects.attrs["unit"]["r_psfFluxMean"] == "nJy"
    forced = ppdb.getDiaForcedSources(region, objects["diaObjectId"].tolist(), night.mjd(1))
    assert forced["diaForcedSourceId"].tolist() == done[1].forced["diaForcedSourceId"].tolist()
    night.check(ppdb)


def test_second_visit_finds_the_objects_of_the_first(ppdb: Ppdb) -> None:
    for k in range(3):
        night.store(ppdb, [night.process(ppdb, k, d) for d in range(3)])
    objects = ppdb.table("DiaObject")
    assert objects["diaObjectId"].nunique() == 30 and len(objects) == 90
    current = ppdb.getDiaObjects(night.regions()[0])
    assert len(current) == 10 and (current["nDiaSources"] == 3).all()
    closed = objects[objects["validityEndMjdTai"].notna()]
    assert len(closed) == 60 and (closed["validityEndMjdTai"] > closed["validityStartMjdTai"]).all()
    night.check(ppdb)


def test_storing_twice_is_storing_once(ppdb: Ppdb) -> None:
    results = [night.process(ppdb, 0, d) for d in range(3)]
    night.store(ppdb, results[:2])
    before = {t: ppdb.table(t) for t in ("DiaSource", "DiaObject", "DiaForcedSource", "outbox")}
    report = night.store(ppdb, results[:2])
    assert report.already == ((night.FIRST, 0), (night.FIRST, 1)) and not report.stored
    for name, rows in before.items():
        pd.testing.assert_frame_equal(ppdb.table(name), rows)
    report = night.store(ppdb, [*results, results[2]])
    assert report.stored == ((night.FIRST, 2),) and len(report.already) == 3
    assert ppdb.containsVisitDetector(night.FIRST, 2)
    assert not ppdb.containsVisitDetector(night.FIRST, 3)
    night.check(ppdb)


def test_a_detector_without_sources_is_stored_too(ppdb: Ppdb) -> None:
    nothing = (schema.empty("DiaSource"), schema.empty("DiaObject"), schema.empty("DiaForcedSource"))
    result = dataclasses.replace(night.process(ppdb, 0, 0), sources=nothing[0], objects=nothing[1], forced=nothing[2])
    assert night.store(ppdb, [result]).stored == ((night.FIRST, 0),)
    assert ppdb.containsVisitDetector(night.FIRST, 0)


def test_two_visits_that_race_make_one_object_for_one_thing(ppdb: Ppdb) -> None:
    first, second = night.process(ppdb, 0, 0), night.process(ppdb, 1, 0)  # both read an empty history
    assert night.store(ppdb, [second]).stored
    report = night.store(ppdb, [first, night.process(ppdb, 0, 1)])
    assert report.lost_race == ((night.FIRST, 0),) and report.stored == ((night.FIRST, 1),)
    assert not ppdb.containsVisitDetector(night.FIRST, 0)
    again = night.process(ppdb, 0, 0)
    assert set(again.sources["diaObjectId"]) == set(second.sources["diaObjectId"])
    assert night.store(ppdb, [again]).stored
    assert ppdb.table("DiaObject")["diaObjectId"].nunique() == 20
    night.check(ppdb)


def test_a_known_object_that_changed_is_a_lost_race(ppdb: Ppdb) -> None:
    night.store(ppdb, [night.process(ppdb, 0, 0)])
    first, second = night.process(ppdb, 1, 0), night.process(ppdb, 2, 0)
    assert night.store(ppdb, [first, second]).lost_race == ((night.FIRST + 2, 0),)
    assert night.store(ppdb, [night.process(ppdb, 2, 0)]).stored
    night.check(ppdb)


def test_new_objects_elsewhere_are_no_race(ppdb: Ppdb) -> None:
    ra, dec = night.places(0)
    region = night.regions()[0]
    parts = [(k, night.sources(k, 0, (ra[part], dec[part]))) for k, part in ((0, slice(0, 5)), (1, slice(5, 10)))]
    first, second = (night.result(new, k, 0, night.read(ppdb, k, region, new)) for k, new in parts)
    assert night.store(ppdb, [first]).stored and night.store(ppdb, [second]).stored
    night.check(ppdb)


def test_the_outbox_keeps_alerts_until_they_are_published(ppdb: Ppdb) -> None:
    results = [night.process(ppdb, 0, d) for d in range(2)]
    night.store(ppdb, results)
    pending = ppdb.pendingAlerts()
    assert pending == sorted(night.alerts(results), key=lambda a: (a.detector, a.alert_id))
    assert ppdb.pendingAlerts(3) == pending[:3]
    ppdb.markPublished([a.alert_id for a in pending[:12]], 100.0)
    ppdb.markPublished([pending[0].alert_id], 200.0)
    assert ppdb.pendingAlerts() == pending[12:]
    assert set(ppdb.table("outbox")["published_unix"].dropna()) == {100.0}


def test_two_publishers_never_hold_one_alert(ppdb: Ppdb) -> None:
    results = [night.process(ppdb, 0, d) for d in range(2)]
    night.store(ppdb, results)
    first = ppdb.claimAlerts("first", 60.0, 12)
    second = ppdb.claimAlerts("second", -1.0, 100)
    assert [a.alert_id for a in first + second] == [a.alert_id for a in ppdb.pendingAlerts()]
    assert len(first) == 12 and {a.arrived_unix for a in first} == {1.0}
    assert ppdb.claimAlerts("first", 60.0, 5) == first and not ppdb.claimAlerts("third", 60.0, 100)
    left = {c.name: c.left_s for c in ppdb.claims()}
    assert left["second"] < 0.0 < left["first"] <= 60.0
    ppdb.markPublished([a.alert_id for a in first], 50.0)
    ppdb.refuseAlerts({second[0].alert_id: "too large"})
    assert [c.alert_ids for c in ppdb.claims()] == [tuple(a.alert_id for a in second[1:])]
    ppdb.releaseAlerts("second")
    assert ppdb.claimAlerts("third", 60.0, 100, night.FIRST, [0]) == []
    assert ppdb.claimAlerts("third", 60.0, 100, night.FIRST, [1]) == second[1:]
    ppdb.markPublished([a.alert_id for a in second], 70.0)
    assert not ppdb.claims() and not ppdb.pendingAlerts()
    assert ppdb.ledger()["published_unix"].tolist() == [50.0, 70.0]


def test_settled_states_and_steps(ppdb: Ppdb) -> None:
    announce(ppdb, 0)
    night.store(ppdb, [night.process(ppdb, 0, 0)])
    step = StepRecord("subtract", 1.0, 2.0, 0.5, "worker-1")
    done = Outcome("LSSTCam", night.FIRST, 0, State.DONE, n_sources=10, arrived_unix=5.0, steps=(step,))
    late = Outcome("LSSTCam", night.FIRST, 1, State.IMAGE_TIMEOUT, "snap 0 never came", "await_science_images")
    for _ in range(2):
        ppdb.settle([done, late])
    for when_unix in (9.0, 10.0):  # a second run of the gather does not publish later
        ppdb.settle([dataclasses.replace(done, published_unix=when_unix)])
    ppdb.settle([dataclasses.replace(done, state=State.FAILED)])
    ledger = ppdb.ledger().set_index("detector")
    assert ledger["state"].tolist() == ["done", "image_timeout", "expected"]
    assert ledger.loc[1, "cause"] == "snap 0 never came" and ledger.loc[2, "cause"] == ""
    assert ledger.loc[0, "published_unix"] == 9.0 and ledger.loc[0, "arrived_unix"] == 5.0
    assert ledger.loc[0, "n_sources"] == 10 and ledger.loc[0, "n_alerts"] == 10
    assert ppdb.table("step_record")["core_s"].tolist() == [0.5]


def test_announcing_again_reopens_only_what_is_past_and_not_stored(ppdb: Ppdb) -> None:
    announce(ppdb, 0)
    night.store(ppdb, [night.process(ppdb, 0, 0)])
    ppdb.settle([Outcome("LSSTCam", night.FIRST, 1, State.FAILED, "worker lost")])
    announce(ppdb, 0)
    assert ppdb.ledger()["state"].tolist() == ["stored", "failed", "expected"]
    ppdb.settle([Outcome("LSSTCam", night.FIRST, 2, State.FAILED, "worker lost")])
    announce(ppdb, 1, wait_s=0.0)
    ppdb.settle([Outcome("LSSTCam", night.FIRST + 1, 0, State.FAILED, "worker lost")])
    announce(ppdb, 1)
    assert ppdb.ledger()["state"].tolist() == ["stored", "failed", "failed", "expected", "expected", "expected"]


def test_a_later_visit_waits_its_turn_on_the_same_sky_only(ppdb: Ppdb) -> None:
    announce(ppdb, 0, {0: night.square(), 1: night.square(x_arcsec=500.0)})
    announce(ppdb, 1, {5: night.square(x_arcsec=30.0), 6: night.square(x_arcsec=5000.0)})
    assert ppdb.awaitTurn(night.FIRST, 0, 5.0)
    assert ppdb.awaitTurn(night.FIRST + 1, 6, 5.0)
    start = time.monotonic()
    assert not ppdb.awaitTurn(night.FIRST + 1, 5, 0.2)
    assert 0.2 <= time.monotonic() - start < 2.0
    waited: list[bool] = []
    thread = threading.Thread(target=lambda: waited.append(ppdb.awaitTurn(night.FIRST + 1, 5, 20.0)))
    thread.start()
    result = night.process(ppdb, 0, 0)  # others are not held up
    assert thread.is_alive()
    night.store(ppdb, [result])
    thread.join(5.0)
    assert waited == [True]


def test_waiting_ends_with_settling_and_with_the_deadline(ppdb: Ppdb) -> None:
    announce(ppdb, 0, {0: night.square()})
    announce(ppdb, 1, {0: night.square()}, wait_s=0.5)
    announce(ppdb, 2, {0: night.square()})
    ppdb.settle([Outcome("LSSTCam", night.FIRST, 0, State.NO_TEMPLATE)])
    assert ppdb.awaitTurn(night.FIRST + 1, 0, 5.0)
    start = time.monotonic()
    assert ppdb.awaitTurn(night.FIRST + 2, 0, 20.0)  # visit 1 never comes
    assert time.monotonic() - start < 5.0
    with pytest.raises(BadRequest, match="detector 9 is not announced"):
        ppdb.awaitTurn(night.FIRST, 9, 1.0)
