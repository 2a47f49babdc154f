"""Metrics of delivery and of a visit, kept once and by whoever comes last."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lsst.daf.butler import Butler

from apflow.config import Config
from apflow.io.butler import Repository, create_repository, output_path, output_run
from apflow.io.butler.exposures import register_exposures
from apflow.io.metrics import DataId, values_of, write_bundle
from apflow.io.ppdb import open_ppdb
from apflow.model.ap_metrics import STAGES, by_stage, delivery, known_values, over_visit
from apflow.model.ledger import Failure, Outcome, State
from apflow.model.visit import Visit
from apflow.operate.repository import repository_config
from apflow.steps.metrics import dispatch_metrics, keep_metrics
from apflow.steps.visits import visit_report
from tests.io import builders

MINE = ("ap_metrics", "ap_delivery_metrics", "ap_visit_metrics")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A repository that knows one visit."""
    root = tmp_path / "butler"
    create_repository(root, "comcam", 128)
    with Repository(root, writeable=True) as repository:
        register_exposures(repository.butler, repository.camera, [builders.info()])
    return repository_config(str(root))


def outcome(visit: Visit, detector: int, state: State = State.DONE, **metrics: float) -> Outcome:
    """A detector-visit whose alerts went out, or that failed."""
    ended = Outcome(visit.instrument, visit.visit, detector, state, arrived_unix=10.0, metrics=metrics)
    if state is not State.DONE:
        return ended
    return dataclasses.replace(ended, n_sources=2, n_alerts=2, stored_unix=12.0, published_unix=13.0 + detector)


def kept(config: Config, visit: Visit, detectors: Sequence[int]) -> tuple[list[dict[str, float]], dict[str, object]]:
    """What the Butler has of the delivery of detectors, and of the visit."""
    with Butler.from_config(config.butler, collections=["LSSTComCam/prompt"], instrument="LSSTComCam") as butler:
        each = [
            known_values(values_of(butler.get("ap_delivery_metrics", visit=visit.visit, detector=d))) for d in detectors
        ]
        return each, dict(values_of(butler.get("ap_visit_metrics", visit=visit.visit))["visit"])


def test_detectors_as_jobs_of_their_own_make_one_visit(config: Config) -> None:
    """Nine at a time: whoever writes the visit's metrics last has seen all nine."""
    visit = builders.visit()
    ended = [outcome(visit, d) if d else outcome(visit, d, State.NO_TEMPLATE, depth_mag=24.0) for d in range(9)]
    with Butler.from_config(config.butler, writeable=True) as butler:
        for kind in MINE:  # as a repository is that an earlier version made
            assert butler.registry.removeDatasetType(kind) is None
    keep_metrics(visit, ended[:1], config)
    with ThreadPoolExecutor(8) as jobs:
        list(jobs.map(lambda one: _packaged(visit, one, config), ended[1:]))
    each, whole = kept(config, visit, range(9))
    assert each == [known_values(delivery(one)) for one in ended]
    expected = over_visit(known_values(by_stage(o.metrics) | delivery(o)) for o in ended)["visit"]
    assert whole == expected and whole["n_done"] == 8.0 and whole["max_depth_mag"] == 24.0


def _packaged(visit: Visit, one: Outcome, config: Config) -> None:
    """As a job does: with the metrics that package_alerts wrote."""
    path = output_path(config.butler, "ap_metrics", visit, one.detector, output_run(visit, config))
    where: DataId = {"instrument": visit.instrument, "visit": visit.visit, "detector": one.detector}
    write_bundle(path, STAGES, by_stage(one.metrics), where, 60785.3)
    keep_metrics(visit, [one], config)


def test_what_is_done_stays_and_what_failed_gives_way(config: Config) -> None:
    visit = builders.visit()
    for one in (outcome(visit, 3, State.IMAGE_TIMEOUT), outcome(visit, 4), outcome(visit, 3)):
        _packaged(visit, one, config)
    keep_metrics(visit, [outcome(visit, 4, State.CANCELLED)], config)
    each, whole = kept(config, visit, (3, 4))
    assert [one["is_done"] for one in each] == [1.0, 1.0] and [one["n_alerts"] for one in each] == [2.0, 2.0]
    assert whole["n_done"] == 2.0 and whole["n_cancelled"] == whole["n_image_timeout"] == 0.0


def test_a_visit_without_an_image_has_its_metrics_in_files_alone(config: Config) -> None:
    visit = dataclasses.replace(builders.visit(), visit=builders.visit().visit + 7)
    ended = [outcome(visit, d, State.IMAGE_TIMEOUT) for d in (0, 1)]
    assert dispatch_metrics(visit, (0, 1), [tuple(ended)], config) == 0
    files = {path.name.partition("_LSST")[0] for path in Path(config.butler).rglob(f"*_metrics_*{visit.visit}*.json")}
    assert files == set(MINE)


def test_detectors_of_a_batch_that_broke_have_all_metrics_too(config: Config) -> None:
    visit = builders.visit()
    broken = Failure(State.FAILED, "write_ppdb", "the database is gone")
    assert dispatch_metrics(visit, (0, 1, 2), [(outcome(visit, 0),), broken], config) == 6
    each, whole = kept(config, visit, (0, 1, 2))
    assert [one["is_failed"] for one in each] == [0.0, 1.0, 1.0] and whole["n_failed"] == 2.0


def test_where_no_service_is_configured_nothing_is_sent(config: Config) -> None:
    visit = builders.visit()
    keep_metrics(visit, [outcome(visit, 0)], config)
    assert not (Path(config.butler) / "sasquatch-spool").exists()


def test_metrics_that_fail_are_a_note_and_no_state(config: Config) -> None:
    visit = builders.visit()
    lost = Failure(State.FAILED, "dispatch_metrics", "ServiceError: the disk is full")
    with open_ppdb(config.ppdb_url, create=True):
        done, failed = visit_report(
            visit, (0, 1), [(outcome(visit, 0), outcome(visit, 1, State.BAD_DATA))], [2, lost], config
        )
    assert done.state is State.DONE and failed.state is State.BAD_DATA
    assert "dispatch_metrics: ServiceError: the disk is full" in done.cause
