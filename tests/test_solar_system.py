"""A known asteroid through the whole graph: predicted, attributed, stored and told of, without any DiaObject."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from apflow.graphs import alert_production
from apflow.io.alerts.archive import read_night
from apflow.io.arrivals import Ingestor
from apflow.io.butler import Repository
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.operations_check import check
from apflow.io.ppdb.operations_orbits import load_orbits
from apflow.model.ledger import State
from apflow.model.sky import separation_arcsec
from apflow.operate.prepare import simulation_pool
from apflow.run import EagerRunner
from apflow.simulate.scenario import Scenario
from tests.field import Field, land, make_field

DETECTOR = 4
ORBIT = {"id": 1, "designation": "2008 AB", "a": 2.5, "epoch_mjd": 60800.0} | {
    f"{kind}_primary_provisional_designation": name for kind, name in (("packed", "K08A00B"), ("unpacked", "2008 AB"))
}


@dataclasses.dataclass(frozen=True)
class Seen:
    """A field of two visits whose first came with predictions: one on a transient, one where nothing is."""

    field: Field
    transient: pd.Series  # its row of the truth, first visit
    source: int  # its DiaSource there
    alerts: dict[int, dict[str, Any]]
    metrics: tuple[dict[str, float], dict[str, float]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("asteroid")
    with simulation_pool(2) as pool:
        field = make(folder / "butler", pool)
    one, two = field.visits
    truth = field.truth[(field.truth["kind"] == "transient") & field.truth["good"]]
    bright = truth[truth["visit"] == one.visit].nlargest(1, "snr").iloc[0]
    given = pd.DataFrame(
        {
            "ssObjectId": [5, 6],
            "designation": ["2008 AB", "2009 CD"],
            "ra": [bright["ra"], bright["ra"] + 0.002],
            "dec": [bright["dec"] + 0.3 / 3600, bright["dec"]],
            "raErr": 0.1 / 3600,
            "decErr": 0.1 / 3600,
            "ephRateRa": 0.0,
            "ephRateDec": -0.2,
            "topoRange": 1.5,
        }
    )
    with Repository(field.root, writeable=True) as repository:
        assert repository.ingest_ss_objects(one.group, {DETECTOR: given}) == 1
    pd.DataFrame([ORBIT]).to_parquet(folder / "orbits.parquet")
    metrics = []
    with open_ppdb(field.config.ppdb_url, create=True) as ppdb, Ingestor(field.config.butler, field.player.landing):
        load_orbits(ppdb, folder / "orbits.parquet")
        for visit in (one, two):
            land(field, visit)
            (outcome,) = EagerRunner().run(alert_production.visit, visit, [DETECTOR], field.config)
            assert outcome.state is State.DONE, outcome.cause
            metrics.append(dict(outcome.metrics))
    alerts = {a["diaSourceId"]: a for a in read_night(field.config.alerts_url, 20250421 - 1)}
    sources = field.table("DiaSource")
    sources = sources[sources["visit"] == one.visit]
    away = separation_arcsec(sources["ra"], sources["dec"], bright["ra"], bright["dec"])
    source = int(sources["diaSourceId"].iloc[int(away.argmin())])
    return Seen(field, bright, source, alerts, (metrics[0], metrics[1]))


def make(root: Path, pool: ProcessPoolExecutor) -> Field:
    scenario = Scenario(camera="comcam", seed=5, nvisits=2, detectors=(DETECTOR,), size=256)
    return make_field(root, scenario, pool)


def test_the_source_is_the_asteroids_and_makes_no_object(seen: Seen) -> None:
    sources = seen.field.table("DiaSource").set_index("diaSourceId")
    mine = sources.loc[seen.source]
    assert mine["ssObjectId"] == 5 and pd.isna(mine["diaObjectId"])
    assert sources["ssObjectId"].notna().sum() == 1
    assert seen.source not in set(seen.field.table("DiaObject")["diaObjectId"])
    assert [m["n_ss_sources"] for m in seen.metrics] == [1.0, 0.0]


def test_its_ss_source_is_stored(seen: Seen) -> None:
    (row,) = seen.field.table("SSSource").to_dict("records")
    assert (row["diaSourceId"], row["ssObjectId"], row["designation"]) == (seen.source, 5, "2008 AB")
    # Predicted 0.3 arcsec to the North of it, moving South: it is ahead.
    assert row["ephOffsetAlongTrack"] == pytest.approx(0.3, abs=0.15) and row["topoRange"] == 1.5
    assert row["ephOffset"] < 0.5 and row["diaDistanceRank"] == 1
    with open_ppdb(seen.field.config.ppdb_url) as ppdb:
        assert not check(ppdb)


def test_its_alert_says_so_and_is_sent_under_its_id(seen: Seen) -> None:
    alert = seen.alerts[seen.source]
    assert alert["diaObject"] is None and alert["prvDiaSources"] is None
    assert alert["diaSource"]["ssObjectId"] == 5 and alert["diaSource"]["diaObjectId"] is None
    assert alert["ssSource"]["ssObjectId"] == 5 and alert["ssSource"]["ephRateDec"] == pytest.approx(-0.2)
    assert alert["mpc_orbits"]["designation"] == "2008 AB" and alert["mpc_orbits"]["a"] == 2.5
    others = [a for i, a in seen.alerts.items() if i != seen.source]
    assert len(others) > 5
    assert all(a["ssSource"] is None and a["mpc_orbits"] is None and a["diaObject"] for a in others)
    outbox = seen.field.table("outbox").set_index("alert_id")["object_id"]
    assert outbox[seen.source] == 5
    assert all(outbox[a["diaSourceId"]] == a["diaSource"]["diaObjectId"] for a in others)


def test_where_nothing_is_predicted_the_same_spot_makes_an_object(seen: Seen) -> None:
    sources = seen.field.table("DiaSource")
    later = sources[sources["visit"] == seen.field.visits[1].visit]
    away = separation_arcsec(later["ra"], later["dec"], seen.transient["ra"], seen.transient["dec"])
    (again,) = later[away < 0.5].to_dict("records")
    assert again["diaObjectId"] == again["diaSourceId"] and pd.isna(again["ssObjectId"])
