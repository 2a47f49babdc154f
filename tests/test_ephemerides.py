"""Movers through the whole graph: predicted by the simulator, by files and by a service, and not predicted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apflow.config import config_from
from apflow.config_tables import SolarSystem
from apflow.errors import BadRequest
from apflow.graphs import alert_production
from apflow.io.alerts.archive import read_night
from apflow.io.arrivals import Ingestor
from apflow.io.butler import Repository
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.operations_check import check
from apflow.model.ledger import Outcome, State
from apflow.model.sky import separation_arcsec
from apflow.operate.ephemerides import ingest_ephemerides, ingest_simulated
from apflow.operate.prepare import simulation_pool
from apflow.run import EagerRunner
from apflow.simulate.scenario import Scenario
from apflow.simulate.score import score
from tests.ephemeris_service import Service, serving
from tests.field import Field, land, make_field

DETECTOR = 4
DAY = 20250420


@dataclasses.dataclass(frozen=True)
class Seen:
    """Four visits: with predictions of the simulator, of a service, of one that hangs, and of a file."""

    field: Field
    outcomes: list[Outcome]
    sources: pd.DataFrame
    service: Service
    given: pd.DataFrame


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("movers")
    with simulation_pool(2) as pool:
        scenario = Scenario(camera="comcam", seed=17, nvisits=4, detectors=(DETECTOR,), size=448)
        field = make_field(folder / "butler", scenario, pool)
    four = field.visits[3]
    ingest_simulated(field.root, dataclasses.replace(scenario, nvisits=1))
    given = movers(field, 3).iloc[:2]
    given.assign(group=four.group).to_parquet(folder / "tonight.parquet")
    ingest_ephemerides(field.root, [folder / "tonight.parquet"])
    outcomes = []
    with (
        serving() as service,
        open_ppdb(field.config.ppdb_url, create=True),
        Ingestor(field.config.butler, field.player.landing),
    ):
        asking = SolarSystem(service=service.url, timeout_s=0.5)
        for number, visit in enumerate(field.visits):
            config = field.config
            if number in (1, 2):
                service.answer = 200, json.dumps(movers(field, number).to_dict("records")).encode()
                service.delay_s = 0.0 if number == 1 else 2.0
                config = dataclasses.replace(config, solar_system=asking)
            land(field, visit)
            outcomes += EagerRunner().run(alert_production.visit, visit, [DETECTOR], config)
        yield Seen(field, outcomes, field.table("DiaSource"), service, given)


def movers(field: Field, number: int) -> pd.DataFrame:
    """The true movers of a visit as somebody predicts them, 0.2 arcsec off, for a time some minutes before."""
    visit = field.visits[number]
    truth = field.truth[(field.truth["visit"] == visit.visit) & (field.truth["kind"] == "mover") & field.truth["good"]]
    truth = truth[truth["snr"] > 10]
    open_s, early_d = field.scenario.exposure_time_s, 5.0 / 1440.0
    rate = truth["trail_length_arcsec"] / open_s * 86400.0 / 3600.0
    angle = np.radians(truth["trail_angle_deg"])
    mid = field.scenario.start_mjd_tai + (number * 37.0 + open_s / 2) / 86400.0
    return pd.DataFrame(
        {
            "designation": [f"M{i}" for i in truth["truth_id"]],
            "ra": truth["ra"] - rate * np.sin(angle) * early_d / np.cos(np.radians(truth["dec"])),
            "dec": truth["dec"] - rate * np.cos(angle) * early_d + 0.2 / 3600.0,
            "Err(arcsec)": 0.3,
            "ephRateRa": rate * np.sin(angle),
            "ephRateDec": rate * np.cos(angle),
            "midpointMjdTai": mid - early_d,
        }
    )


def of_visit(seen: Seen, number: int) -> pd.DataFrame:
    return seen.sources[seen.sources["visit"] == seen.field.visits[number].visit]


def test_every_visit_is_done_whatever_the_service_does(seen: Seen) -> None:
    assert [o.state for o in seen.outcomes] == [State.DONE] * 4
    down = [o.metrics["is_ss_service_down"] for o in seen.outcomes]
    assert np.isnan(down[0]) and down[1:3] == [0.0, 1.0] and np.isnan(down[3])
    assert [o.metrics["n_ss_sources"] > 0 for o in seen.outcomes] == [True, True, False, True]
    assert of_visit(seen, 2)["ssObjectId"].isna().all()
    assert len(seen.service.asked) == 2
    with open_ppdb(seen.field.config.ppdb_url) as ppdb:
        assert check(ppdb) == []


def test_simulated_movers_are_attributed_and_none_wrongly(seen: Seen) -> None:
    visit = seen.field.visits[0].visit
    found = score(seen.field.truth, seen.sources, [(visit, DETECTOR)])
    assert found["n_ss_found"] >= 2 and found["ss_attributed"] >= 0.9 and found["n_ss_wrong"] == 0
    # Others are predicted that nobody can see.
    assert seen.outcomes[0].metrics["n_ss_predicted"] >= 2 * found["n_ss_found"]


def test_movers_that_nobody_predicted_make_objects(seen: Seen) -> None:
    truth = seen.field.truth[seen.field.truth["visit"] == seen.field.visits[0].visit]
    moving = truth[truth["kind"].isin(["mover", "trail"]) & truth["good"] & (truth["snr"] > 10)]
    unknown = moving[moving["ssObjectId"].isna()]
    assert len(unknown)
    mine = of_visit(seen, 0)
    found = 0
    for mover in unknown.to_dict("records"):
        away = separation_arcsec(mine["ra"], mine["dec"], mover["ra"], mover["dec"])
        if away.min() < 0.5:
            source = mine.iloc[int(away.argmin())]
            assert pd.isna(source["ssObjectId"]) and source["diaObjectId"] == source["diaSourceId"]
            found += 1
    assert found


@pytest.mark.parametrize("number", [1, 3])
def test_positions_are_carried_on_to_the_exposure(seen: Seen, number: int) -> None:
    """Five minutes are some 5 arcsec: without the rates none would be within the radius."""
    mine = of_visit(seen, number)
    mine = mine[mine["ssObjectId"].notna()]
    expected = len(movers(seen.field, number)) if number == 1 else len(seen.given)
    assert expected >= 2 and 0.6 * expected <= len(mine) <= expected
    assert mine["diaObjectId"].isna().all()
    rows = seen.field.table("SSSource")
    rows = rows[rows["diaSourceId"].isin(mine["diaSourceId"])]
    assert len(rows) == len(mine) and rows["designation"].str.startswith("M").all()
    assert rows["ephOffset"].max() < 0.6


def test_their_alerts_have_no_object(seen: Seen) -> None:
    alerts = {a["diaSourceId"]: a for a in read_night(seen.field.config.alerts_url, DAY)}
    for source in seen.sources[seen.sources["ssObjectId"].notna()].to_dict("records"):
        alert = alerts[source["diaSourceId"]]
        assert alert["diaObject"] is None and alert["ssSource"]["ssObjectId"] == source["ssObjectId"]


def test_files_that_do_not_say_their_visit_or_say_it_twice_are_refused(seen: Seen, tmp_path: Path) -> None:
    seen.given.to_parquet(tmp_path / "a.parquet")
    seen.given.assign(group="g").to_parquet(tmp_path / "b.parquet")
    with pytest.raises(BadRequest, match="has no column 'group', and --group or --visit was not given"):
        ingest_ephemerides(seen.field.root, [tmp_path / "a.parquet"])
    with pytest.raises(BadRequest, match="has column 'group', and --group or --visit was given"):
        ingest_ephemerides(seen.field.root, [tmp_path / "b.parquet"], group="g")
    with pytest.raises(BadRequest, match="one of them"):
        ingest_ephemerides(seen.field.root, [tmp_path / "a.parquet"], group="g", visit=1)
    with pytest.raises(BadRequest, match="visit 5 is not registered"):
        ingest_ephemerides(seen.field.root, [tmp_path / "a.parquet"], visit=5)
    with pytest.raises(BadRequest, match="comes twice for group g"):
        ingest_ephemerides(seen.field.root, [tmp_path / "a.parquet"] * 2, group="g")
    visit = seen.field.visits[2]
    assert ingest_ephemerides(seen.field.root, [tmp_path / "a.parquet"], visit=visit.visit) == {visit.group: 2}
    with Repository(seen.field.root) as repository:
        inputs = repository.find_inputs(visit, [DETECTOR])
        assert inputs[DETECTOR].ss_objects is not None
        stored = pd.read_parquet(inputs[DETECTOR].ss_objects)
    assert stored["designation"].tolist() == seen.given["designation"].tolist()


@pytest.mark.parametrize(("key", "value"), [("service", "skybot"), ("timeout_s", 0.0)])
def test_a_service_that_is_none_is_refused(key: str, value: object) -> None:
    with pytest.raises(BadRequest, match=f"solar_system.{key}"):
        config_from({"solar_system": {key: value}})
