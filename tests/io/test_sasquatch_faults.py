"""Whatever happens to Sasquatch, or to the senders: metrics arrive once, in order, and nobody waits for them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import requests

from apflow.errors import ServiceError
from apflow.io.sasquatch import drain, flush, send_later
from apflow.io.sasquatch.records import record_of, schema
from apflow.io.sasquatch.spool import Spool
from apflow.operate.services import InfluxServer
from apflow.operate.services.sasquatch import SasquatchProxy, Trouble
from tests.io.measured import child, config_for, measurement, points, produced, spooled, wait_until

VISITS = [1, 2, 3, 4, 5]


def test_what_was_measured_while_the_service_was_away_arrives_in_order(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = config_for(sasquatch, tmp_path)
    sasquatch.stop()
    for visit in VISITS:
        send_later([measurement(visit=visit)], config)
    assert flush(config, 0.2) == len(VISITS) == len(spooled(tmp_path))
    assert "does not answer" in caplog.text

    sasquatch.start()
    assert flush(config, 30) == 0
    assert produced(sasquatch) == [[str(visit)] for visit in VISITS]
    assert [point["x"] for point in points(influxdb, sasquatch)] == VISITS
    assert "sent to Sasquatch again" in caplog.text


@pytest.mark.parametrize("trouble", [Trouble(status=503), Trouble(error_code=50002), Trouble(record_error_code=2)])
def test_a_service_in_trouble_is_asked_again(
    trouble: Trouble, sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path
) -> None:
    config = config_for(sasquatch, tmp_path)
    sasquatch.trouble = trouble
    send_later([measurement(visit=visit) for visit in VISITS], config)
    assert flush(config, 0.3) == 1
    sasquatch.trouble = Trouble()
    assert flush(config, 30) == 0
    assert [point["x"] for point in points(influxdb, sasquatch)] == VISITS


def test_it_comes_back_by_itself(sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path) -> None:
    config = config_for(sasquatch, tmp_path)
    sasquatch.trouble = Trouble(status=500)
    send_later([measurement()], config)
    wait_until(lambda: bool(sasquatch.asked), "a first attempt")
    sasquatch.trouble = Trouble()
    wait_until(lambda: not spooled(tmp_path), "another attempt, without another call")
    assert len(points(influxdb, sasquatch)) == 1


def test_nobody_waits_for_a_service_that_hangs(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path
) -> None:
    config = config_for(sasquatch, tmp_path, timeout_s=30.0)
    sasquatch.trouble = Trouble(hangs=True)
    for visit in range(1, 21):
        send_later([measurement(visit=visit)], config)
    assert not sasquatch.asked  # it has answered nothing until here
    assert len(spooled(tmp_path)) == 20
    sasquatch.trouble = Trouble()
    assert flush(config, 30) == 0
    assert len(points(influxdb, sasquatch)) == 20


def test_a_request_that_hangs_is_given_up(sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path) -> None:
    config = config_for(sasquatch, tmp_path, timeout_s=0.1)
    sasquatch.trouble = Trouble(hangs=True)
    send_later([measurement()], config)
    with pytest.raises(ServiceError, match="ReadTimeout"):
        drain(config)
    sasquatch.trouble = Trouble()
    assert flush(config, 30) == 0


def test_a_wrong_token_keeps_metrics_here_and_is_told_without_the_token(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(sasquatch, tmp_path, token="not-that-one")
    send_later([measurement()], config)
    assert flush(config, 0.3) == 1
    assert f"refuses the token of token_file '{tmp_path}/token': 40101" in caplog.text
    assert "not-that-one" not in caplog.text
    (tmp_path / "token").write_text(f"{sasquatch.token}\n")
    assert flush(config, 30) == 0
    assert len(points(influxdb, sasquatch)) == 1


@pytest.mark.parametrize("content", [None, "", "two words", "two\r\nlines", "né"])
def test_a_token_file_that_holds_none_is_told(content: str | None, sasquatch: SasquatchProxy, tmp_path: Path) -> None:
    config = config_for(sasquatch, tmp_path)
    sasquatch.trouble = Trouble(status=500)
    send_later([measurement()], config)
    (tmp_path / "token").unlink() if content is None else (tmp_path / "token").write_bytes(content.encode())
    with pytest.raises(ServiceError, match=r"token_file .*/token|answers GET") as caught:
        drain(config)
    assert not content or content not in str(caught.value)


def test_records_refused_for_good_are_kept_aside_and_others_go_on(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Somebody else's schema of the topic has a text where ours has a number.
    config = config_for(sasquatch, tmp_path)
    headers = {"Authorization": f"Bearer {sasquatch.token}"}
    topic = {"topic_name": "lsst.prompt.calibrate", "partitions_count": 1, "replication_factor": 1}
    requests.post(f"{sasquatch.url}/v3/clusters/apflow-cluster/topics", json=topic, headers=headers, timeout=10)
    theirs = json.loads(schema("lsst.prompt", "calibrate", ()))
    theirs["fields"].append({"name": "x", "type": "string"})
    value = {one["name"]: 1.7e9 if one["type"] == "double" else "" for one in theirs["fields"]}
    body = {"value_schema": json.dumps(theirs), "records": [{"value": value}]}
    headers |= {"Content-Type": "application/vnd.kafka.avro.v2+json", "Accept": "application/vnd.kafka.v2+json"}
    reply = requests.post(f"{sasquatch.url}/topics/lsst.prompt.calibrate", json=body, headers=headers, timeout=10)
    assert reply.status_code == 200, reply.text

    send_later([measurement(action=action) for action in ("isr", "calibrate", "difference")], config)
    assert flush(config, 30) == 0
    (kept,) = (tmp_path / "sasquatch-spool" / "rejected").iterdir()
    told = json.loads(kept.read_text())
    assert told["reason"].startswith("42201: schema of lsst.prompt.calibrate is incompatible")
    assert told["records"][0]["values"] == {"x": 1.0}
    assert "refused 1 records" in caplog.text and "42201" in caplog.text
    assert len(points(influxdb, sasquatch, "isr")) == len(points(influxdb, sasquatch, "difference")) == 1


def test_a_reply_with_status_200_may_refuse_one_of_the_records(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path
) -> None:
    config = config_for(sasquatch, tmp_path)
    sasquatch.trouble = Trouble(record_error_code=42203)
    send_later([measurement(detector=detector) for detector in range(3)], config)
    assert flush(config, 30) == 0
    assert {point["detector"] for point in points(influxdb, sasquatch)} == {"1", "2"}
    (kept,) = (tmp_path / "sasquatch-spool" / "rejected").iterdir()
    assert json.loads(kept.read_text())["records"][0]["head"]["detector"] == "0"


def test_the_oldest_give_way_when_the_spool_is_full(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(sasquatch, tmp_path, spool_mib=0.004)
    sasquatch.stop()
    visits = range(1, 31)
    for visit in visits:
        send_later([measurement(visit=visit)], config)
    kept = flush(config, 0.3)
    assert 0 < kept < 30
    assert sum(path.stat().st_size for path in spooled(tmp_path)) <= 0.004 * 2**20
    assert "removed unsent: spool_mib is 0.004" in caplog.text
    sasquatch.start()
    assert flush(config, 30) == 0
    assert [point["x"] for point in points(influxdb, sasquatch)] == list(visits)[-kept:]


def test_what_was_refused_does_not_fill_the_disk_either(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for visit in range(1, 31):
        spool.reject([record_of(measurement(visit=visit))], "42201: incompatible")
    rejected = tmp_path / "rejected"
    assert spool.trim(5000) == 0
    kept = sorted(rejected.iterdir())
    assert 3000 < sum(path.stat().st_size for path in kept) <= 5000
    assert json.loads(kept[-1].read_text())["records"][0]["head"]["visit"] == "30"


def test_a_spool_that_cannot_be_written_costs_only_the_metrics(
    sasquatch: SasquatchProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Permissions would not stop root.
    (tmp_path / "sasquatch-spool").write_text("a file where the folder should be")
    send_later([measurement(), measurement(visit=2)], config_for(sasquatch, tmp_path))
    assert "2 measurements are not sent to Sasquatch" in caplog.text


def test_a_full_disk_costs_only_the_metrics(sasquatch: SasquatchProxy, tmp_path: Path) -> None:
    config_for(sasquatch, tmp_path)
    (tmp_path / "sasquatch-spool").mkdir()
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50)); send_later([measurement()], config)"
    process = child(tmp_path, [], full)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert "1 measurements are not sent to Sasquatch" in told and "File too large" in told
    assert not list((tmp_path / "sasquatch-spool").iterdir())


def test_half_a_file_is_put_aside(sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path) -> None:
    config = config_for(sasquatch, tmp_path)
    (tmp_path / "sasquatch-spool").mkdir()
    (tmp_path / "sasquatch-spool" / "00000000000000000001.json").write_text('{"version": "1", "meas')
    send_later([measurement()], config)
    assert flush(config, 30) == 0
    assert len(points(influxdb, sasquatch)) == 1
    assert [path.name for path in (tmp_path / "sasquatch-spool" / "rejected").iterdir()] == [
        "00000000000000000001.json"
    ]


def test_what_a_killed_process_left_is_sent_by_another(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path
) -> None:
    config = config_for(sasquatch, tmp_path)
    sasquatch.trouble = Trouble(delay_s=0.2)
    process = child(tmp_path, VISITS, "flush(config, 60)")
    wait_until(lambda: any(asked.points for asked in sasquatch.asked), "a first point")
    sasquatch.trouble = Trouble(hangs=True)
    process.kill()
    process.communicate()
    assert 0 < len(produced(sasquatch)) < len(VISITS)
    assert len(spooled(tmp_path)) > 0

    sasquatch.trouble = Trouble()
    counts = drain(config)
    assert 0 < counts.sent == counts.metrics <= len(VISITS)
    assert [point["x"] for point in points(influxdb, sasquatch)] == VISITS
    assert not spooled(tmp_path)


def test_processes_that_share_a_spool_take_turns(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path
) -> None:
    config_for(sasquatch, tmp_path)
    sasquatch.trouble = Trouble(delay_s=0.02)
    processes = [child(tmp_path, visits, "sys.exit(flush(config, 30))") for visits in (range(1, 11), range(11, 21))]
    assert [(p.communicate(timeout=60)[1], p.returncode) for p in processes] == [("", 0), ("", 0)]
    assert sasquatch.most_at_once == 1
    assert [point["x"] for point in points(influxdb, sasquatch)] == list(range(1, 21))


def test_a_process_that_ends_sends_the_rest_if_it_can(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path
) -> None:
    config_for(sasquatch, tmp_path)
    sasquatch.trouble = Trouble(delay_s=0.05)
    _, told = child(tmp_path, [1, 2]).communicate(timeout=60)
    assert [point["x"] for point in points(influxdb, sasquatch)] == [1, 2], told
    sasquatch.trouble = Trouble(status=503)
    _, told = child(tmp_path, [3]).communicate(timeout=60)
    assert "metrics wait in" in told
    assert len(spooled(tmp_path)) == 1
