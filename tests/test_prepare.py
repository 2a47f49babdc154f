"""Preparation before the shutter, and what the workers keep: the real graphs on a real cluster."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pandas as pd
import pytest
from distributed import Client

from apflow.cluster.local import local_cluster
from apflow.config import Config
from apflow.graphs import alert_production
from apflow.io import input_cache
from apflow.io.ppdb import open_ppdb
from apflow.model.ledger import State
from apflow.model.products import Preparation
from apflow.model.visit import Visit
from apflow.operate.prepare import simulation_pool
from apflow.run import EagerRunner
from apflow.run.on_dask import DaskRunner
from apflow.simulate.scenario import Scenario
from apflow.steps.fetch import fetch_calibs, fetch_template
from apflow.steps.visits import detector_region, resolve_inputs
from tests.field import Field, make_field, play

DETECTORS = (0, 1, 2, 3)  # two workers with two chains each: all are admitted at once


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    scenario = Scenario(camera="comcam", size=256, seed=5, nvisits=2, cadence_s=0.0, detectors=DETECTORS)
    with simulation_pool(2) as pool:
        return make_field(tmp_path_factory.mktemp("prepare") / "butler", scenario, pool, gather_after_s=1.0)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        local_cluster(2, warm_up=["apflow.graphs.alert_production"]) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(3, timeout=60)
        yield client


def announced(field: Field, sequence: int = 90_000) -> Visit:
    """The first visit as nextVisit tells it: of the exposure id only the night."""
    first = field.visits[0]
    return dataclasses.replace(first, visit=first.visit // 100_000 * 100_000 + sequence)


def reads(metrics: list[dict[str, float]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in metrics:
        total.update({name: int(one[f"n_inputs_{name}"]) for name in ("memory", "fast", "main", "failed_over")})
    return total


def prepare(field: Field, client: Client, sequence: int) -> Preparation:
    with open_ppdb(field.config.ppdb_url, create=True), DaskRunner(client) as runner:
        visit = announced(field, sequence)
        prepared = runner.start(alert_production.prepare, visit, list(DETECTORS), field.config).result(60)
    assert isinstance(prepared, Preparation)
    return prepared


def test_a_prepared_visit_finds_everything_in_the_memory_of_its_workers(field: Field, client: Client) -> None:
    prepared = prepare(field, client, 90_000)
    assert prepared.detectors == DETECTORS and not prepared.causes
    assert prepared.counts["n_inputs_main"] >= 4 * len(DETECTORS)
    with open_ppdb(field.config.ppdb_url) as ppdb:
        assert ppdb.ledger().empty  # nothing was announced
    outcomes = play(field, client, field.visits)
    for visit in field.visits:
        assert {o.state for o in outcomes[visit.visit]} == {State.DONE}
        found = reads([dict(o.metrics) for o in outcomes[visit.visit]])
        assert found["memory"] > 4 * len(DETECTORS) and found["fast"] == found["failed_over"] == 0
        # A detector whose worker was busy just then is admitted elsewhere, and read there.
        assert found["memory"] > 3 * found["main"]


def test_preparation_goes_on_after_a_worker_is_killed(field: Field, client: Client) -> None:
    prepare(field, client, 90_001)
    info = client.scheduler_info(n_workers=-1)["workers"]
    victim = next(address for address, worker in info.items() if "gather" not in worker["resources"])
    os.kill(client.run(os.getpid, workers=[victim])[victim], signal.SIGKILL)
    prepared = prepare(field, client, 90_002)
    assert prepared.detectors == DETECTORS
    deadline = time.monotonic() + 30
    while len(client.scheduler_info(n_workers=-1)["workers"]) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert prepare(field, client, 90_003).detectors == DETECTORS


def test_what_is_missing_is_named_and_the_others_are_ready(field: Field) -> None:
    input_cache.forget()
    visit = dataclasses.replace(announced(field), physical_filter="g_01", band="g")
    with open_ppdb(field.config.ppdb_url, create=True):
        nothing = EagerRunner().run(alert_production.prepare, visit, DETECTORS, field.config)
        assert nothing.detectors == () and set(nothing.causes) == set(DETECTORS)
        assert all("no flat" in cause for cause in nothing.causes.values())
        ready = alert_production.prepare(announced(field), DETECTORS, field.config)
    assert ready.detectors == DETECTORS
    assert ready.group == field.visits[0].group and ready.seconds > 0 and ready.core_s > 0


def test_what_memory_holds_is_what_is_on_disk_after_visits_used_it(field: Field) -> None:
    """Steps do not change what they are given: the next visit gets the same arrays."""
    input_cache.forget()
    config = dataclasses.replace(field.config, ppdb="")
    off = dataclasses.replace(config, inputs=dataclasses.replace(config.inputs, memory_mib=0.0))
    visit, config_of = announced(field), {"cached": config, "read anew": off}
    plan = resolve_inputs(visit, DETECTORS, config)
    used = play_here(field, config)
    assert used is State.DONE and input_cache.held_bytes() > 0
    held = {name: everything(plan, visit, c) for name, c in config_of.items()}
    for one, two in zip(held["cached"], held["read anew"], strict=True):
        assert one == two


def play_here(field: Field, config: Config) -> State:
    from apflow.io.arrivals import Ingestor

    visit = field.visits[0]
    with open_ppdb(config.ppdb_url, create=True), Ingestor(config.butler, field.player.landing):
        field.player.land(visit, 0)
        (outcome,) = EagerRunner().run(alert_production.visit, visit, [0], config)
    state: State = outcome.state
    return state


def everything(plan: object, visit: Visit, config: Config) -> list[bytes]:
    calibs = fetch_calibs(plan, 0, detector_region(visit, 0, config), config)  # type: ignore[arg-type]
    template = fetch_template(plan, 0, config)  # type: ignore[arg-type]
    arrays = [calibs.bias, calibs.dark, calibs.flat, calibs.defects]
    arrays += [plane for _, cell in template.cells for plane in (cell.image, cell.variance, cell.mask)]
    return [array.tobytes() for array in arrays] + [pd.util.hash_pandas_object(calibs.reference).to_numpy().tobytes()]
