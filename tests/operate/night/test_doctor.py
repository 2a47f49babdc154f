"""The doctor, on what is broken for real."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from pathlib import Path

import pytest
from astropy.time import Time

from apflow.errors import BadRequest
from apflow.model.camera import load_camera
from apflow.operate.night.doctor import Patient, diagnose
from apflow.operate.night.doctor_machine import check_machine, needed_cores
from apflow.operate.night.doctor_repository import Field, check_repository, read_fields
from apflow.operate.night.doctor_services import check_cluster, check_services
from apflow.operate.night.finding import Finding
from apflow.operate.repository import repository_config
from tests.operate.command import apflow

COMCAM = load_camera("comcam", 512)
NIGHT = Time("2025-04-21T00:00:00", scale="tai")


def by_check(findings) -> dict[str, Finding]:
    return {f.check: f for f in findings}


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_every_complaint_comes_with_a_remedy(replayed: Path):
    """The replay has calibs and templates of 2 CCDs of 9, and none of another night."""
    run = apflow("night", "doctor", "--butler", str(replayed / "butler"), "--json")
    found = [Finding(**json.loads(line)) for line in run.stdout.splitlines()]
    assert run.returncode == 1, run.stderr
    assert len(found) >= 12 and {f.level for f in found} == {"ok", "warning", "failure"}
    assert all(bool(f.remedy) == (f.level != "ok") for f in found)
    checks = by_check(found)
    assert checks["bias"].level == "failure" and checks["bias"].found.startswith("9 of 9")
    assert {checks[c].level for c in ("versions", "folders", "Butler", "PPDB", "PPDB check", "clock")} == {"ok"}
    assert checks["Kafka"].level == "warning"  # alerts reach the archive, and nobody else
    text = apflow("night", "doctor", "--butler", str(replayed / "butler"), "--night", "20250420").stdout
    assert "failure bias: 7 of 9 science detectors have none valid at 2025-04-21" in text and "-> apflow calib" in text


def test_calibs_of_a_detector_are_missed_by_name(replayed: Path):
    found = by_check(check_repository(replayed / "butler", [], NIGHT))
    for kind in ("bias", "dark", "defects", "flat r_03"):
        assert found[kind].level == "failure", kind
        assert "7 of 9" in found[kind].found and "R22_S00" in found[kind].found and "R22_S11" not in found[kind].found
    assert found["flat"].level == "warning" and "r_03" not in found["flat"].found


def test_templates_and_stars_are_looked_for_where_the_telescope_will_point(replayed: Path):
    from apflow.io.butler import Repository

    with Repository(replayed / "butler") as repository:
        record = next(iter(repository.butler.query_dimension_records("visit", instrument="LSSTComCam")))
    lon, lat = record.region.getBoundingCircle().getCenter(), None
    del lat
    from lsst.sphgeom import LonLat

    place = LonLat(lon)
    here = Field(place.getLon().asDegrees() % 360, place.getLat().asDegrees(), 0.0, "r_03")
    elsewhere = Field((here.ra_deg + 90) % 360, here.dec_deg, 0.0, "r_03")
    none = by_check(check_repository(replayed / "butler", [elsewhere], NIGHT))
    assert none["templates"].level == "warning" and "r_03: all 9 detectors" in none["templates"].found
    assert none["reference stars"].level == "failure"
    some = by_check(check_repository(replayed / "butler", [here], NIGHT))
    assert "all 9" not in some["templates"].found and some["reference stars"].level != "failure"


def test_no_repository_is_a_failure_and_not_an_end(tmp_path: Path):
    [found] = diagnose(Patient(str(tmp_path)))
    assert (found.check, found.level) == ("configuration", "failure") and "apflow init" in found.remedy


def test_butler_without_its_registry(replayed: Path, tmp_path: Path):
    for name in ("apflow.toml", "butler.yaml"):
        shutil.copy(replayed / "butler" / name, tmp_path)
    (tmp_path / "gen3.sqlite3").write_bytes(b"this is no database")
    found = by_check(check_repository(tmp_path, [], NIGHT))
    assert found["Butler"].level == "failure"


def test_ppdb_that_is_not_there(replayed: Path, tmp_path: Path):
    config = repository_config(str(replayed / "butler"), f"duckdb://{tmp_path}/none.duckdb")
    found = by_check(check_services(config))
    assert found["PPDB"].level == "failure" and "none.duckdb" in found["PPDB"].found
    server = repository_config(str(replayed / "butler"), f"postgresql://somebody@127.0.0.1:{closed_port()}/ppdb")
    found = by_check(check_services(server))
    assert found["PPDB"].level == "failure" and "server" in found["PPDB"].remedy


def test_services_that_do_not_answer(replayed: Path):
    port = closed_port()
    config = repository_config(str(replayed / "butler"), alerts=f"kafka://127.0.0.1:{port}/alerts")
    config = dataclasses.replace(
        config,
        kafka=dataclasses.replace(config.kafka, registry=f"http://127.0.0.1:{port}"),
        sasquatch=dataclasses.replace(config.sasquatch, url=f"http://127.0.0.1:{port}", timeout_s=2.0),
    )
    found = by_check(check_services(config))
    assert found["Kafka"].level == found["schema registry"].level == "failure"
    assert str(port) in found["Kafka"].found and str(port) in found["schema registry"].found
    assert found["Sasquatch"].level == "warning"  # metrics wait in the spool


def test_broker_that_answers(replayed: Path):
    config = repository_config(str(replayed / "butler"), alerts="kafka://embedded/alerts")
    found = by_check(check_services(config))
    assert found["Kafka"].level == "ok" and "topic alerts" in found["Kafka"].found


def test_scheduler_that_is_not_there_and_one_that_is():
    [found] = check_cluster(f"tcp://127.0.0.1:{closed_port()}", 4)
    assert (found.check, found.level) == ("scheduler", "failure")
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        found = by_check(check_cluster(cluster.scheduler_address, 4))
        assert found["workers"].level == "warning" and "start 3 more" in found["workers"].remedy
        assert found["versions of workers"].level == found["clocks of workers"].level == "ok"


def test_folder_that_cannot_be_written_to(tmp_path: Path):
    (tmp_path / "nights").write_text("a file where the nights should be")
    found = by_check(check_machine(tmp_path, COMCAM, 37.0, "local"))
    assert found["folders"].level == "failure" and str(tmp_path / "nights") in found["folders"].found


@pytest.mark.parametrize(("kind", "level"), [("local", "ok"), ("htcondor9", "failure"), ("tcp://a:1", "ok")])
def test_kind_of_cluster(tmp_path: Path, kind: str, level: str):
    assert by_check(check_machine(tmp_path, COMCAM, 37.0, kind))["cluster"].level == level


def test_cores_grow_with_the_focal_plane_and_the_cadence(tmp_path: Path):
    full, lsst = load_camera("comcam"), load_camera("lsstcam")
    assert needed_cores(lsst, 37.0) == pytest.approx(19, abs=1)  # 189 x 2.45 s x 1.5 / 37 s
    assert needed_cores(full, 37.0) == 1 and needed_cores(lsst, 9.0) == pytest.approx(78, abs=2)
    machine = by_check(check_machine(tmp_path, lsst, 0.1, "local"))
    assert machine["cores"].level == "warning" and str(needed_cores(lsst, 0.1)) in machine["cores"].remedy
    assert "cores" not in by_check(check_machine(tmp_path, lsst, 0.1, "tcp://a:1"))


def test_fields_of_a_file(tmp_path: Path):
    path = tmp_path / "tonight.jsonl"
    path.write_text('{"ra": 10, "dec": -20, "filter": "r"}\n\n{"ra": 11.5, "dec": 3, "rotation": 90}\n')
    assert read_fields(path, COMCAM) == [Field(10.0, -20.0, 0.0, "r_03"), Field(11.5, 3.0, 90.0, "")]
    for text in ('{"ra": 1}', "[1]", "{", '{"ra": 1, "dec": 2, "filter": "w"}', '{"position": [1, 2]}'):
        path.write_text('{"ra": 1, "dec": 2}\n' + text)
        with pytest.raises(BadRequest, match=r"tonight\.jsonl, line 2: .*accepted: "):
            read_fields(path, COMCAM)


def test_night_that_is_no_date(replayed: Path):
    with pytest.raises(BadRequest, match="--night '20251301' is not accepted"):
        list(diagnose(Patient(str(replayed / "butler"), night="20251301")))
