"""A visit of nine small ComCam CCDs (D1, D4) by batch jobs on a real SLURM: one without image, one killed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from apflow.io.butler import Repository
from apflow.io.ppdb import open_ppdb
from apflow.operate.batch import Phase, load, refresh
from apflow.operate.batch.slurm import Slurm
from apflow.operate.prepare import simulation_pool
from apflow.operate.services.slurm import SlurmCluster
from apflow.simulate.player import Trouble
from apflow.simulate.scenario import Scenario
from tests.field import Field, make_field
from tests.operate.command import apflow

MISSING, KILLED = 4, 0


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    """A repository with a visit whose raws are registered, but one."""
    scenario = Scenario(camera="comcam", seed=5, nvisits=1, detectors=tuple(range(9)), size=256)
    root = tmp_path_factory.mktemp("batch visit") / "butler"
    with simulation_pool(2) as pool:
        made = make_field(root, scenario, pool, (Trouble(detector=MISSING, kind="missing"),))
    with Repository(root, writeable=True) as repository:
        repository.ingest_raws([path for d in scenario.detectors for path in made.player.land(made.visits[0], d)])
    return made


def words(field: Field) -> tuple[str, ...]:
    return ("--butler", str(field.root), "--throttle", "2", "--memory", "1500", "--timeout", "2")


@pytest.fixture(scope="module")
def ended(field: Field, slurm: SlurmCluster) -> list[dict[str, Any]]:
    """Reports of the visit, of which a job was killed while it ran."""
    sent = apflow("submit", field.visits[0].group, *words(field), "--no-wait", environment=slurm.environment)
    assert sent.returncode == 0, sent.stderr
    folder = Path(sent.stdout.strip().rpartition("folder ")[2])
    until = time.monotonic() + 30
    while refresh(folder, Slurm(slurm.environment))[KILLED].phase is not Phase.RUNNING:
        assert time.monotonic() < until
        time.sleep(0.1)
    slurm.run("scancel", "--batch", "--signal=KILL", f"{load(folder).attempts[0].job}_{KILLED}")
    followed = apflow("submit", "status", str(folder), "--wait", "--json", environment=slurm.environment, timeout_s=300)
    assert followed.returncode == 1, followed.stderr  # an image did not come
    assert "(1 sent again)" in followed.stderr
    return [json.loads(line) for line in followed.stdout.splitlines()]


def test_each_detector_ends_as_it_must(ended: list[dict[str, Any]]):
    assert [one["detector"] for one in ended] == list(range(9))
    for one in ended:
        missing = one["detector"] == MISSING
        assert (one["state"], one["exit_code"]) == (("image_timeout", 75) if missing else ("done", 0)), json.dumps(one)
        assert one["attempts"] == (2 if one["detector"] == KILLED else 1)
        assert one["ledger"] == ("" if missing else "done") or missing
    assert "did not arrive within" in ended[MISSING]["cause"]


def test_no_more_jobs_ran_than_the_throttle(ended: list[dict[str, Any]]):
    times = [(one["began_unix"], one["ended_unix"]) for one in ended if one["attempts"] == 1]
    assert max(sum(began <= at < end for began, end in times) for at, _ in times) <= 2


def test_everything_is_stored_once(field: Field, ended: list[dict[str, Any]]):
    with open_ppdb(field.config.ppdb_url) as ppdb:
        ledger, sources, outbox = ppdb.ledger(), ppdb.table("DiaSource"), ppdb.table("outbox")
    done = ledger[ledger["state"] == "done"]
    assert sorted(done["detector"]) == [one["detector"] for one in ended if one["state"] == "done"]
    assert sources["diaSourceId"].is_unique and len(sources) == done["n_sources"].sum() > 0
    assert sorted(outbox["alert_id"]) == sorted(sources["diaSourceId"])


def test_the_same_command_again_sends_nothing(field: Field, ended: list[dict[str, Any]], slurm: SlurmCluster):
    again = apflow("submit", field.visits[0].images[0], *words(field), "--json", environment=slurm.environment)
    assert again.returncode == 1
    assert [json.loads(line) for line in again.stdout.splitlines()] == ended
