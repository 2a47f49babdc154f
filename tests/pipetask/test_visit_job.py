"""``cluster/visit.sh`` (D1, D2): one CCD by pipetask, and the same products as by `apflow detector` and on Dask."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from lsst.daf.butler import Butler, Timespan
from lsst.pipe.base import Pipeline

from apflow.cluster.local import local_cluster
from apflow.config import Config
from apflow.errors import BadRequest
from apflow.io.alerts.archive import read_night
from apflow.io.arrivals import Ingestor
from apflow.io.butler import create_repository, output_path, output_run
from apflow.io.butler.create import DATASET_TYPES
from apflow.io.butler.paths import CHECKS, DELIVERED
from apflow.io.fits import read_exposure
from apflow.io.ppdb import open_ppdb
from apflow.model.ids import day_obs_of
from apflow.model.ledger import State
from apflow.model.visit import Visit
from apflow.operate.detector import check_request, process_detector
from apflow.operate.prepare import simulation_pool
from apflow.operate.repository import repository_config
from apflow.operate.services.postgres import PostgresServer
from apflow.pipetask.job import prepare_run, request_of
from apflow.simulate.scenario import Scenario
from tests.field import PROCESSING_TIMES, Field, land, make_field, play, products

SCRIPT = str(resources.files("apflow.cluster") / "visit.sh")
PIPELINE = str(resources.files("apflow.graphs") / "alert_production.yaml")
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
DETECTOR = 4
IMAGE = "CC_O_20250420_000001"


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    """Two visits that have not landed."""
    scenario = Scenario(camera="comcam", seed=5, nvisits=2, detectors=(DETECTOR,), size=256)
    with simulation_pool(2) as pool:
        return make_field(tmp_path_factory.mktemp("visit job") / "butler", scenario, pool)


def copy_of(field: Field, folder: Path) -> Field:
    """The same field in another folder."""
    shutil.copytree(field.root, folder / "butler")
    root = folder / "butler"
    player = dataclasses.replace(field.player, staging=root / "staged", landing=root / "landing")
    return dataclasses.replace(field, root=root, player=player, config=repository_config(str(root)))


def words(field: Field, visit: Visit, physical_filter: str = "none") -> list[str]:
    shared = [str(visit.ra_deg), str(visit.dec_deg), physical_filter, str(visit.exposure_time_s)]
    return [str(DETECTOR), *shared, str(field.root), *visit.images]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = ["bash", SCRIPT, *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(job: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, what was printed, what was complained of."""
    out, err = job.communicate(timeout=180)
    return job.returncode, out, err


def ledger(field: Field) -> pd.DataFrame:
    with open_ppdb(field.config.ppdb_url) as ppdb:
        return ppdb.ledger()


@pytest.fixture(scope="module")
def by_pipetask(field: Field, tmp_path_factory: pytest.TempPathFactory) -> Field:
    """Both visits by visit.sh: the first job waits for its image, the second starts when its is there for long."""
    mine = copy_of(field, tmp_path_factory.mktemp("pipetask"))
    first, second = mine.visits
    with Ingestor(mine.config.butler, mine.player.landing, settle_s=0.05):
        job = start(*words(mine, first), "--timeout", "120")
        deadline = time.monotonic() + 60
        while not (mine.root / "ppdb.duckdb").exists():  # its arguments are checked
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.05)
        land(mine, first)
        code, out, err = end(job)
        assert (code, err) == (0, "")
        assert out.startswith(f"visit {first.visit} detector {DETECTOR}: done, ")
        land(mine, second)
        while any(mine.player.landing.rglob("*.fits")):
            time.sleep(0.05)
    code, out, err = end(start(*words(mine, second, "r"), "--timeout", "0"))
    assert (code, err) == (0, "")
    return mine


@pytest.fixture(scope="module")
def by_hand(field: Field, tmp_path_factory: pytest.TempPathFactory) -> Field:
    mine = copy_of(field, tmp_path_factory.mktemp("by hand"))
    with Ingestor(mine.config.butler, mine.player.landing, settle_s=0.05):
        for visit in mine.visits:
            land(mine, visit)
            arguments = (str(DETECTOR), visit.ra_deg, visit.dec_deg, visit.exposure_time_s, "none", str(mine.root))
            outcome = process_detector(check_request(*arguments, visit.images, timeout_s=30.0))
            assert outcome.state is State.DONE
    return mine


@pytest.fixture(scope="module")
def by_dask(field: Field, tmp_path_factory: pytest.TempPathFactory) -> Field:
    mine = copy_of(field, tmp_path_factory.mktemp("dask"))
    with (
        local_cluster(1, warm_up=["apflow.graphs.alert_production"]) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=120)
        ended = play(mine, client, mine.visits)
    assert {o.state for of in ended.values() for o in of} == {State.DONE}
    return mine


def alerts(field: Field) -> dict[int, Any]:
    """Alerts by id, without the times of processing."""
    night = day_obs_of(field.visits[0].visit)
    return {a["diaSourceId"]: _timeless(a) for a in read_night(field.config.alerts_url, night)}


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in PROCESSING_TIMES}
    if isinstance(value, list):
        return [_timeless(v) for v in value]
    return "nan" if isinstance(value, float) and value != value else value


@pytest.mark.parametrize("other", ["by_hand", "by_dask"])
def test_products_are_those_of_the_other_roads(by_pipetask: Field, other: str, request: pytest.FixtureRequest):
    theirs: Field = request.getfixturevalue(other)
    mine, expected = products(by_pipetask), products(theirs)
    assert len(mine["DiaSource"]) > 0
    for name, table in expected.items():
        pd.testing.assert_frame_equal(mine[name], table, check_exact=True)
    assert alerts(by_pipetask) == alerts(theirs)
    for visit in theirs.visits:
        files = [
            output_path(f.root, "difference_image", visit, DETECTOR, output_run(visit, f.config))
            for f in (by_pipetask, theirs)
        ]
        ours, same = (read_exposure(path) for path in files)
        for plane in ("image", "variance", "mask"):
            np.testing.assert_array_equal(getattr(ours, plane), getattr(same, plane))


def test_outputs_are_in_the_run_as_on_a_cluster(by_pipetask: Field, by_dask: Field):
    """The same datasets with the same ids; besides, what pipetask itself leaves."""
    found = []
    for field in (by_pipetask, by_dask):
        run = output_run(field.visits[0], field.config)
        with Butler.from_config(str(field.root)) as butler:
            refs = butler.query_all_datasets(run)
            assert run in butler.collections.get_info("LSSTComCam/prompt").children
        found.append({(r.datasetType.name, r.id) for r in refs})
    more = {name for name, _ in found[0] - found[1]}
    assert not found[1] - found[0]
    assert more == {"alertProduction_config", "alertProduction_metadata", "packages"}


def test_a_job_that_runs_again_doubles_nothing(by_pipetask: Field):
    visit = by_pipetask.visits[0]
    before, archived = products(by_pipetask), alerts(by_pipetask)
    code, out, _ = end(start(*words(by_pipetask, visit)))
    assert code == 0 and out.startswith(f"visit {visit.visit} detector {DETECTOR}: done, ")
    for name, table in products(by_pipetask).items():
        pd.testing.assert_frame_equal(table, before[name])
    assert alerts(by_pipetask) == archived
    assert list(ledger(by_pipetask)["state"]) == ["done", "done"]


def test_an_image_that_never_comes(field: Field, tmp_path: Path):
    mine = copy_of(field, tmp_path)
    code, _, err = end(start(*words(mine, mine.visits[0]), "--timeout", "0.5"))
    assert code == 75 and f"{IMAGE} of detector {DETECTOR} did not arrive within 0.5 s" in err
    assert list(ledger(mine)["state"]) == ["image_timeout"]


def test_what_goes_wrong_within_pipetask_is_the_exit_code(field: Field, tmp_path: Path):
    """No bias is valid any more: pipetask itself only says that a quantum failed."""
    mine = copy_of(field, tmp_path)
    with Ingestor(mine.config.butler, mine.player.landing, settle_s=0.05):
        land(mine, mine.visits[0])
        while any(mine.player.landing.rglob("*.fits")):
            time.sleep(0.05)
    with Butler.from_config(str(mine.root), writeable=True) as butler:
        butler.registry.decertify("LSSTComCam/calib", "bias", Timespan(None, None))
    code, _, err = end(start(*words(mine, mine.visits[0])))
    assert code == 21, err
    assert f"no bias of detector {DETECTOR} is valid" in err.splitlines()[-1]
    assert list(ledger(mine)["state"]) == ["no_calib"]


@pytest.mark.parametrize(
    ("place", "word", "told"),
    [
        (0, "R99_S99", "R99_S99"),
        (1, "361", "RA '361' is not accepted: a number from 0 to 360"),
        (2, "south", "DEC 'south' is not accepted: a number from -90 to 90"),
        (3, "q", "'q'"),
        (4, "-1", "EXPTIME '-1' is not accepted: a number from 0 to 3600"),
        (5, "/nowhere", "no Butler repository of apflow in '/nowhere'"),
        (6, "image", "image name 'image' is not of the form"),
        (6, "MC_O_20250420_000001", "is not one of LSSTComCam; accepted: CC_O_YYYYMMDD_NNNNNN"),
    ],
)
def test_each_bad_argument_is_refused_by_its_name(field: Field, place: int, word: str, told: str):
    given = words(field, field.visits[0])
    given[place] = word
    with pytest.raises(BadRequest) as refused:
        request_of(given)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["CC_O_20250420_000002", "CC_O_20250420_000003"], "9 arguments are not accepted: CCD RA DEC FILTER"),
        ([IMAGE], "are not accepted: one, or the two snaps of a visit"),
        (["--colour", "red"], "option '--colour' is unknown; accepted: --timeout"),
        (["--timeout", "soon"], "--timeout 'soon' is not accepted: a number from 0 to 86400"),
        (["--timeout"], "option '--timeout' has no value"),
        (["--ppdb", "mysql://there/ppdb"], "PPDB 'mysql://there/ppdb' is not accepted"),
    ],
)
def test_options_and_too_many_images_are_refused(field: Field, more: list[str], told: str):
    with pytest.raises(BadRequest) as refused:
        request_of([*words(field, field.visits[0]), *more])
    assert told in str(refused.value)


def test_a_bad_request_is_one_line_and_exit_code_2(field: Field):
    code, out, err = end(start("4", "150.1", "-91", *words(field, field.visits[0])[3:]))
    assert (code, out, err) == (2, "", "error: DEC '-91' is not accepted: a number from -90 to 90\n")


def test_small_declinations_are_no_options(field: Field):
    given = words(field, field.visits[0])
    given[2] = "-1e-05"
    request, _ = request_of(given)
    assert request.visit.dec_deg == -1e-5 and request.visit.physical_filter == ""


@pytest.mark.parametrize("registry", ["sqlite", "postgresql"])
def test_many_jobs_make_one_run_at_one_time(
    registry: str, field: Field, tmp_path: Path, request: pytest.FixtureRequest
):
    root = tmp_path / "butler"
    server: PostgresServer | None = request.getfixturevalue("postgres") if registry == "postgresql" else None
    create_repository(root, "comcam", 256, server.database() if server else "")
    visit = field.visits[0]
    run = output_run(visit, Config(camera="comcam", size=256))
    with ThreadPoolExecutor(8) as jobs:
        list(jobs.map(lambda _: prepare_run(str(root), visit, run), range(8)))
    with Butler.from_config(str(root)) as butler:
        assert butler.collections.get_info("LSSTComCam/prompt").children == (run,)
        for name in ("packages", "alertProduction_config"):
            assert len(butler.query_datasets(name, run)) == 1


def test_the_pipeline_has_the_dataset_types_of_the_repository(field: Field):
    kinds = {name: (set(dimensions), storage) for name, dimensions, storage, _ in DATASET_TYPES}
    with Butler.from_config(str(field.root)) as butler:
        graph = Pipeline.from_uri(PIPELINE).to_graph(butler.registry)
        for node in graph.dataset_types.values():
            if node.name in kinds:
                found = (set(node.dataset_type.dimensions.required), node.storage_class_name)
                assert found == kinds[node.name], node.name
        named = set(graph.dataset_types)
    # Metrics are left by detectors that failed, too, and must not keep pipetask from trying again.
    # Fakes are there only where they are asked for.
    assert named >= set(kinds) - {"preloaded_SsObjects", "ap_metrics", "injected_sources", *DELIVERED, *CHECKS}


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)
