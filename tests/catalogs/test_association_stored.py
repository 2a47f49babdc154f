"""Association and the store together: one owner, one version for each source, and no race that nobody ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apflow.catalogs.associate import associate
from apflow.config import Config
from apflow.io.alerts.archive import read_night
from apflow.io.metrics import read_bundle
from apflow.io.ppdb import Ppdb, StoreReport, open_ppdb
from apflow.io.ppdb.interface import Wanted
from apflow.io.tables import read_table
from apflow.model import schema
from apflow.model.ap_metrics import by_stage
from apflow.model.camera import load_camera
from apflow.model.ids import source_id
from apflow.model.ledger import Ended, State
from apflow.model.products import Archived, DetectorResult, OutputFile
from apflow.model.region import Region
from apflow.model.visit import Visit
from apflow.steps.batches import archive_packets, write_ppdb
from apflow.steps.package import packets_of, write_catalogues
from tests.catalogs.sky import CENTRE, place, table

FIRST = 2025042000100
#: Two detectors side by side: each reads the 20 arcsec of the other that lie along their common border at x = 0.
REGIONS = {
    d: Region(np.stack([*place(x, [-50.0, -50.0, 50.0, 50.0]).values()], -1))
    for d, x in ((0, [-100.0, 0.0, 0.0, -100.0]), (1, [0.0, 100.0, 100.0, 0.0]))
}


#: As if packets had been trimmed before the race.
METRICS = {"zero_point_mag": 31.5, "n_new_objects": 2.0, "n_alerts_trimmed": 1.0}


def mjd(k: int) -> float:
    return 60785.3 + 0.01 * k


def visit(k: int) -> Visit:
    return Visit("LSSTCam", FIRST + k, f"group{k}", *CENTRE, 0.0, "r_57", "r", 30.0, (f"MC_O_20250420_{100 + k:06d}",))


def process(ppdb: Ppdb, k: int, detector: int, x: Sequence[float], ss: pd.DataFrame | None = None) -> DetectorResult:
    """Read and associate: sources of a detector-visit at x, arcsec from the border."""
    ids = [source_id(FIRST + k, detector, n + 1) for n in range(len(x))]
    given = {"diaSourceId": ids, "visit": FIRST + k, "detector": detector, "midpointMjdTai": mjd(k)}
    new = table("DiaSource", x, np.zeros(len(x)), psfFlux=100.0 + k, psfFluxErr=5.0, **given)
    wanted = Wanted(REGIONS[detector], new["ra"].to_numpy(), new["dec"].to_numpy(), mjd(k))
    (history,) = ppdb.getHistory([wanted], margin_arcsec=20.0, radius_arcsec=1.0)
    out = associate(new, history, radius_arcsec=1.0, position_floor_arcsec=0.05, max_new_objects=100, ss_objects=ss)
    forced = schema.empty("DiaForcedSource")
    return DetectorResult(
        visit(k), detector, out.sources, out.objects, forced, out.guard, (), (), 1.0, mjd(k), 20250420,
        matches=out.matches, ss_sources=out.ss_sources, ss_objects=ss,
    )  # fmt: skip


def store(ppdb: Ppdb, *results: DetectorResult) -> StoreReport:
    return ppdb.storeBatch(results, [], 60785.5)


@pytest.fixture
def ppdb(tmp_path: Path) -> Iterator[Ppdb]:
    with open_ppdb(f"duckdb://{tmp_path}/ppdb.duckdb", create=True) as opened:
        yield opened


def check(ppdb: Ppdb, n_objects: int) -> pd.DataFrame:
    """One current version an object, one version a source; gives the current ones."""
    objects, sources = ppdb.table("DiaObject"), ppdb.table("DiaSource")
    current = objects[objects["validityEndMjdTai"].isna()].set_index("diaObjectId")
    assert len(current) == n_objects == objects["diaObjectId"].nunique()
    count = sources["diaObjectId"].value_counts()
    assert objects["diaObjectId"].value_counts().to_dict() == count.to_dict() == current["nDiaSources"].to_dict()
    assert (current["r_psfFluxNdata"] == current["nDiaSources"]).all()
    return current


def test_an_object_in_both_read_margins_has_one_owner_and_one_new_version(ppdb: Ppdb) -> None:
    assert store(ppdb, process(ppdb, 0, 0, [-0.3, -40.0]), process(ppdb, 0, 1, [40.0])).stored
    left, right = process(ppdb, 1, 0, [-0.3, -40.0]), process(ppdb, 1, 1, [2.0, 40.0])
    edge = source_id(FIRST, 0, 1)
    assert all(edge in set(ppdb.getDiaObjects(region, 20.0)["diaObjectId"]) for region in REGIONS.values())
    assert edge in set(left.objects["diaObjectId"]) and edge not in set(right.objects["diaObjectId"])
    assert edge not in right.guard and len(right.guard) == 1
    report = store(ppdb, right, left)
    assert set(report.stored) == {(FIRST + 1, 0), (FIRST + 1, 1)} and not report.lost_race
    assert check(ppdb, 4).loc[edge, "nDiaSources"] == 2


def test_a_source_just_across_the_border_belongs_to_the_object(ppdb: Ppdb) -> None:
    """Pointing errors move a thing from one detector to the other: no second DiaObject."""
    store(ppdb, process(ppdb, 0, 0, [-0.2]))
    for k, (detector, x) in enumerate([(1, 0.2), (0, -0.1), (1, 0.3)], 1):
        assert store(ppdb, process(ppdb, k, detector, [x])).stored
    assert check(ppdb, 1)["nDiaSources"].tolist() == [4]


def test_both_detectors_with_a_source_of_one_object_make_a_version_each(ppdb: Ppdb) -> None:
    store(ppdb, process(ppdb, 0, 0, [-0.2]))
    left, right = process(ppdb, 1, 0, [-0.2]), process(ppdb, 1, 1, [0.1])
    report = store(ppdb, left, right)
    assert report.stored == ((FIRST + 1, 0),) and report.lost_race == ((FIRST + 1, 1),)
    assert store(ppdb, process(ppdb, 1, 1, [0.1])).stored
    current = check(ppdb, 1).iloc[0]
    assert current["nDiaSources"] == 3
    sources = ppdb.table("DiaSource")
    assert current["r_psfFluxMean"] == pytest.approx(sources["psfFlux"].mean())
    starts = ppdb.table("DiaObject")["validityStartMjdTai"].sort_values()
    assert (starts.diff()[1:] > 0).all() and starts.iloc[-1] < mjd(1) + 1e-6


def test_both_detectors_with_a_source_of_a_new_thing_make_one_object(ppdb: Ppdb) -> None:
    left, right = process(ppdb, 0, 0, [-0.2]), process(ppdb, 0, 1, [0.1])
    report = store(ppdb, left, right)
    assert report.stored == ((FIRST, 0),) and report.lost_race == ((FIRST, 1),)
    assert store(ppdb, process(ppdb, 0, 1, [0.1])).stored
    assert check(ppdb, 1)["nDiaSources"].tolist() == [2]


def test_what_happens_elsewhere_on_the_detector_and_in_its_margin_is_no_race(ppdb: Ppdb) -> None:
    store(ppdb, process(ppdb, 0, 0, [-5.0, -40.0]), process(ppdb, 0, 1, [5.0, 40.0]))
    waiting = process(ppdb, 2, 0, [-40.0])  # read the objects at -5 and 5 too
    assert store(ppdb, process(ppdb, 1, 0, [-5.0, -30.0]), process(ppdb, 1, 1, [5.0])).stored
    assert store(ppdb, waiting).stored
    check(ppdb, 5)


def test_sources_at_the_radius_to_the_last_digit_are_stored(ppdb: Ppdb) -> None:
    """Whatever the store calls within the radius, the guard knows."""
    offsets = 1.0 + np.array([-1e-4, -3e-5, -1e-6, -1e-9, 0.0, 1e-9, 1e-6, 1e-5, 2e-5, 3e-5, 5e-5, 1e-4, 2e-4])
    x = -8.0 * np.arange(1, len(offsets) + 1)
    store(ppdb, process(ppdb, 0, 0, x))
    report = store(ppdb, process(ppdb, 1, 0, x + offsets))
    assert report.stored == ((FIRST + 1, 0),)


def test_a_source_of_an_asteroid_over_a_known_object_is_stored_without_touching_it(ppdb: Ppdb) -> None:
    store(ppdb, process(ppdb, 0, 0, [-20.0]))
    ss = pd.DataFrame({"ssObjectId": [77], **place([-20.5], [0.0]), "raErr": 1e-5, "decErr": 1e-5})
    assert store(ppdb, process(ppdb, 1, 0, [-20.4], ss)).stored
    rows = ppdb.table("DiaSource").sort_values("visit", ignore_index=True)
    assert rows["ssObjectId"].tolist() == [pd.NA, 77] and rows["diaObjectId"].isna().tolist() == [False, True]
    check(ppdb, 1)


def test_a_detector_that_lost_a_race_is_associated_again_and_tells_so_in_its_alerts(tmp_path: Path) -> None:
    """The step that stores: a later visit came first, with its DiaObject for the same thing."""
    config = Config(camera="lsstcam", size=512, butler=str(tmp_path))
    camera = load_camera(config.camera, config.size)
    region = camera.region(camera.detector(94), *CENTRE, 0.0)
    x, y = np.array([-10.0, 15.0, 30.0]), np.array([5.0, -8.0, 0.0])
    asteroid = place(x[2:], y[2:], region.centre)
    ss = pd.DataFrame({"ssObjectId": [77], "designation": "2008 AB", **asteroid, "raErr": 1e-5, "decErr": 1e-5})

    def result(k: int, some: slice) -> DetectorResult:
        """What a detector makes of an empty history."""
        ids = [source_id(FIRST + k, 94, n + 1) for n in range(len(x[some]))]
        given = {"diaSourceId": ids, "visit": FIRST + k, "detector": 94, "midpointMjdTai": mjd(k)}
        new = table("DiaSource", x[some], y[some], region.centre, psfFlux=100.0 + k, psfFluxErr=5.0, **given)
        wanted = Wanted(region, np.empty(0), np.empty(0), mjd(k))
        (history,) = ppdb.getHistory([wanted], margin_arcsec=20.0, radius_arcsec=1.0)
        out = associate(new, history, radius_arcsec=1.0, position_floor_arcsec=0.05, max_new_objects=10, ss_objects=ss)
        forced = out.objects[["diaObjectId", "ra", "dec"]].assign(
            diaForcedSourceId=ids[: len(out.objects)],
            visit=FIRST + k,
            detector=94,
            band="r",
            midpointMjdTai=mjd(k),
            psfFlux=1.0,
            psfFluxErr=1.0,
        )
        forced = schema.conform(forced, "DiaForcedSource")
        packets = packets_of(out, history, forced, {}, config)
        files = tuple(OutputFile(name, str(tmp_path / f"{name}-{k}")) for name in ("dia_source_detector", "ap_metrics"))
        made = DetectorResult(
            visit(k), 94, out.sources, out.objects, forced, out.guard, packets, files, 1.0, mjd(k), 20250420, METRICS,
            ss_sources=out.ss_sources, ss_objects=ss,
        )  # fmt: skip
        write_catalogues(made)
        return made

    with open_ppdb(config.ppdb_url, create=True) as ppdb:
        early, late = result(0, slice(0, 3)), result(1, slice(0, 1))
        for one in (late, early):
            archived = archive_packets(one.visit, (Ended(94, one),), config)
            assert isinstance(archived, Archived)
            (outcome,) = write_ppdb(archived, config).outcomes
            assert outcome.state is State.DONE, outcome.cause
        current = check(ppdb, 2)
        shared = source_id(FIRST + 1, 94, 1)
        assert current["nDiaSources"].to_dict() == {shared: 2, source_id(FIRST, 94, 2): 1}
        # The forced flux of its own new object stays, that of the object it did not make goes.
        forced = ppdb.table("DiaForcedSource")
        assert set(forced["diaObjectId"]) == {shared, source_id(FIRST, 94, 2)}
        assert current.loc[source_id(FIRST, 94, 2), "r_fpFluxMean"] == 1.0
        # Its asteroid is one still.
        assert ppdb.table("SSSource")["diaSourceId"].tolist() == [source_id(FIRST, 94, 3)]
        # Its files tell of the DiaObjects that are stored; what does not follow from them is as it was.
        stored = ppdb.table("DiaSource").query(f"visit == {FIRST}").set_index("diaSourceId")["diaObjectId"]
        filed = read_table(early.outputs[0].path).set_index("diaSourceId")["diaObjectId"]
        assert filed.dropna().to_dict() == stored.dropna().to_dict() and len(filed) == len(stored) == 3
        assert early.sources["diaObjectId"].iloc[0] != filed.iloc[0] == shared
        pending = {row.alert_id: row for row in ppdb.pendingAlerts()}
    changed = {"n_sources": 3.0, "n_new_objects": 1.0, "n_ss_sources": 1.0, "n_forced": 1.0, "n_alerts_trimmed": 0.0}
    assert METRICS | changed == {name: outcome.metrics[name] for name in METRICS | changed}
    assert read_bundle(early.outputs[1].path) == by_stage(outcome.metrics)
    assert read_bundle(late.outputs[1].path) == by_stage(METRICS)  # it lost nothing
    assert pending[source_id(FIRST, 94, 3)].object_id == 77
    assert {i: row.object_id for i, row in pending.items()}[source_id(FIRST, 94, 1)] == shared
    written = [a for a in read_night(config.alerts_url, 20250420) if a["diaSourceId"] == source_id(FIRST, 94, 1)]
    assert written[-1]["diaObject"]["diaObjectId"] == shared and written[-1]["diaObject"]["nDiaSources"] == 2
