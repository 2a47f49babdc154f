"""What a detector that is late leaves undone, and what it does not."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from apflow.config_tables import Fleet
from apflow.graphs import alert_production
from apflow.io.arrivals import Ingestor
from apflow.io.butler import Repository
from apflow.io.ppdb import open_ppdb
from apflow.io.records import night_folder, read_records
from apflow.model.ids import day_obs_of
from apflow.model.ledger import Outcome, State
from apflow.operate.night.recorder import Recorder
from apflow.operate.prepare import simulation_pool
from apflow.run import EagerRunner
from apflow.simulate.scenario import Scenario
from tests.field import Field, land, make_field

SCENARIO = Scenario(camera="comcam", nvisits=3, detectors=(4,), cadence_s=0.0)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    with simulation_pool(2) as pool:
        return make_field(tmp_path_factory.mktemp("shed") / "butler", SCENARIO, pool)


def run(field: Field, index: int, shed_after_s: float) -> Outcome:
    """One visit, here."""
    visit = field.visits[index]
    config = dataclasses.replace(field.config, fleet=Fleet(shed_after_s=shed_after_s))
    with open_ppdb(config.ppdb_url, create=True), Ingestor(config.butler, field.player.landing):
        land(field, visit)
        [outcome] = EagerRunner().run(alert_production.visit, visit, [4], config)
    assert outcome.state == State.DONE, outcome.cause
    return outcome


def has_image(field: Field, index: int) -> bool:
    visit = field.visits[index].visit
    with Repository(field.config.butler) as repository:
        found = repository.butler.registry.queryDatasets(
            "difference_image", collections="*", where=f"instrument='LSSTComCam' AND visit={visit}", findFirst=False
        )
        return bool(list(found))


def test_alerts_come_before_what_is_optional(field: Field, tmp_path: Path) -> None:
    in_time, late = run(field, 0, 3600.0), run(field, 1, 1e-3)
    again = run(field, 2, 0.0)  # never
    for index, (outcome, shed) in enumerate(((in_time, False), (late, True), (again, False))):
        assert outcome.n_alerts > 0
        assert outcome.n_sources > 0
        assert math.isnan(outcome.metrics["n_forced"]) is shed
        assert has_image(field, index) is not shed
    forced = field.table("DiaForcedSource")
    assert set(forced["visit"]) == {field.visits[0].visit, field.visits[2].visit}
    assert len(field.table("DiaSource")["visit"].unique()) == 3

    with Recorder(tmp_path) as recorder:
        for outcome in (in_time, late):
            recorder.started(next(v for v in field.visits if v.visit == outcome.visit), [4])
            recorder.ended(outcome.visit, [outcome])
    records, _ = read_records(night_folder(tmp_path, day_obs_of(late.visit)))
    assert [(r.visit, r.detector, r.step) for r in records if r.kind == "shed"] == [(late.visit, 4, "force_photometry")]
