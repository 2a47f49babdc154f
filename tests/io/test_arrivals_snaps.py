"""One of two snaps is better than none: the whole graph with a snap that never came (D7)."""

from __future__ import annotations

import os
from pathlib import Path

from apflow.graphs import alert_production
from apflow.io.arrivals import Ingestor
from apflow.io.ppdb import open_ppdb
from apflow.model.ledger import State
from apflow.operate.prepare import simulation_pool
from apflow.run import EagerRunner
from apflow.simulate.player import raw_name
from apflow.simulate.scenario import Scenario
from tests.field import make_field

#: Which snaps of each detector land.
LANDING = {3: (0, 1), 4: (0,), 5: (1,)}


def test_a_visit_with_one_snap_of_two_is_processed_and_flagged(tmp_path: Path) -> None:
    scenario = Scenario(camera="comcam", seed=5, nvisits=1, nsnaps=2, detectors=tuple(LANDING))
    with simulation_pool(2) as pool:
        field = make_field(tmp_path / "butler", scenario, pool, image_timeout_s=2.0)
    (visit,) = field.visits
    with open_ppdb(field.config.ppdb_url, create=True), Ingestor(field.root, field.player.landing):
        for detector, snaps in LANDING.items():
            for snap in snaps:
                name = raw_name(scenario, visit, snap, detector)
                os.replace(field.player.staging / name, field.player.landing / name)
        outcomes = EagerRunner().run(alert_production.visit, visit, list(LANDING), field.config)
    ended = {outcome.detector: outcome for outcome in outcomes}
    assert {outcome.state for outcome in outcomes} == {State.DONE}, [(o.detector, o.cause) for o in outcomes]
    assert {d: outcome.metrics["n_snaps_missing"] for d, outcome in ended.items()} == {3: 0.0, 4: 1.0, 5: 1.0}
    # Half the light: half the signal, and noise that is less by the root of two.
    assert 0.2 < ended[3].metrics["depth_mag"] - ended[4].metrics["depth_mag"] < 0.6
    sources = field.table("DiaSource")
    assert set(sources["visit"]) == {visit.visit} and set(sources["detector"]) == set(LANDING)
