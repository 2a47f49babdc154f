"""Raws that a store of objects tells of by Kafka, on a real broker."""

from __future__ import annotations

import functools
import json
import shutil
import threading
import time
import zlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from apflow.config_tables import Kafka
from apflow.errors import ApflowError, DataError
from apflow.io.arrivals import await_named_images
from apflow.io.arrivals.bucket import BucketIngestor, created_objects
from apflow.io.kafka.consume import AlertConsumer, Received
from apflow.operate.services import KafkaBroker
from tests.io import builders

IMAGE = "CC_O_20250420_000123"
FOLDER = f"LSSTComCam/20250420/{IMAGE}"


def record(key: str, event: str = "ObjectCreated:Put") -> dict[str, Any]:
    """As Ceph and MinIO send it."""
    s3 = {"bucket": {"name": "rubin-summit"}, "object": {"key": key, "size": 1, "eTag": "0"}}
    return {"eventVersion": "2.2", "eventTime": "2025-04-21T03:37:00.123456Z", "eventName": event, "s3": s3}


@pytest.fixture
def kafka(kafka_broker: KafkaBroker, request: pytest.FixtureRequest) -> Kafka:
    topic = f"bucket-{zlib.crc32(request.node.nodeid.encode())}"
    kafka_broker.create_topic(topic, partitions=1)
    return Kafka(kafka_broker.bootstrap, topic)


def notify(kafka: Kafka, *values: Any) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for value in values:
        producer.produce(kafka.topic, value if isinstance(value, bytes) else json.dumps(value).encode())
    assert producer.flush(10) == 0


def put(bucket: Path, staging: Path, detector: int, **options: Any) -> str:
    """An object in the bucket; returns its key."""
    source = builders.raw_file(staging, builders.info(detector), **options)
    target = bucket / FOLDER / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)
    return f"{FOLDER}/{source.name}"


def test_notified_raws_are_registered_and_the_offset_is_committed_afterwards(
    root: Path, tmp_path: Path, kafka: Kafka
) -> None:
    """Early, late, twice, truncated, missing, of other kinds: nothing keeps the good ones out."""
    bucket = tmp_path / "bucket"
    keys = {d: put(bucket, tmp_path, d) for d in range(4)}
    half = bucket / keys[3]
    with half.open("r+b") as file:
        file.truncate(half.stat().st_size // 2)
    (bucket / FOLDER / f"{IMAGE}_expectedSensors.json").write_text(
        json.dumps(
            {"expectedSensors": dict.fromkeys(("R22_S00", "R22_S01", "R22_S02", "R22_S10", "R22_S12"), "SCIENCE")}
        )
    )
    missing = f"{FOLDER}/{IMAGE}_R22_S21.fits"
    with BucketIngestor(root, kafka, kafka.topic, f"file://{bucket}", group="ingest", settle_s=1.0):
        notify(
            kafka,
            {"Records": [record(keys[0]), record(f"{FOLDER}/{IMAGE}_expectedSensors.json")]},
            b"not JSON",
            {
                "Records": [
                    record(keys[0].replace("/", "%2F")),
                    record(keys[1], "s3:ObjectCreated:CompleteMultipartUpload"),
                ]
            },
            {"Records": [record(keys[2], "ObjectRemoved:Delete"), record("LSSTCam/x/y.fits"), record("../../up.fits")]},
            {"Records": [record(keys[3]), record(missing), record(f"{FOLDER}/{IMAGE}_R22_S12.fits")]},
        )
        for detector in (0, 1):
            path = await_named_images(root, "LSSTComCam", [IMAGE], detector, 20.0)
            assert Path(path).read_bytes() == (bucket / keys[detector]).read_bytes()
        with pytest.raises(ApflowError, match="not expected"):
            await_named_images(root, "LSSTComCam", [IMAGE], 8, 5.0)
        put(bucket, tmp_path, 5)  # the object comes after its notification
        assert await_named_images(root, "LSSTComCam", [IMAGE], 5, 20.0)
        with pytest.raises(DataError, match="truncated"):
            await_named_images(root, "LSSTComCam", [IMAGE], 3, 20.0)
        with pytest.raises(ApflowError, match="did not arrive"):
            await_named_images(root, "LSSTComCam", [IMAGE], 2, 0.1)
        time.sleep(0.5)
    assert (bucket / keys[0]).exists()
    (aside,) = (root / "rejected").iterdir()
    assert "no notification of a bucket" in aside.read_text() and "not JSON" in aside.read_text()
    with AlertConsumer(kafka, group="ingest") as consumer:
        assert list(consumer.until_idle(2.0)) == []


def test_a_notification_is_read_again_after_a_crash(root: Path, tmp_path: Path, kafka: Kafka) -> None:
    bucket = tmp_path / "bucket"
    key = put(bucket, tmp_path, 4)
    notify(kafka, {"Records": [record(key)]})
    with AlertConsumer(kafka, group="ingest") as died:  # received, and nothing committed
        assert len(list(died.until_idle(2.0))) == 1
    with BucketIngestor(root, kafka, kafka.topic, bucket, group="ingest"):
        assert await_named_images(root, "LSSTComCam", [IMAGE], 4, 20.0)


def test_objects_of_a_store_by_its_uri(root: Path, tmp_path: Path, kafka: Kafka) -> None:
    """Whatever lsst.resources reads: here from a web server."""
    bucket = tmp_path / "bucket"
    key = put(bucket, tmp_path, 4)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(bucket))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        with BucketIngestor(root, kafka, kafka.topic, uri, group="ingest", settle_s=0.5):
            notify(kafka, {"Records": [record(key), record(f"{FOLDER}/{IMAGE}_R22_S12.fits")]})
            path = await_named_images(root, "LSSTComCam", [IMAGE], 4, 30.0)
            time.sleep(1.0)
        server.shutdown()
    assert Path(path).read_bytes() == (bucket / key).read_bytes()
    assert not list((root / "incoming").iterdir())


def test_notifications_in_the_form_of_s3() -> None:
    received = Received(json.dumps({"Records": [record("a%2Bb+c.fits")]}).encode(), None, {}, "t[0]@1")
    (one,) = created_objects(received)
    assert (one.key, one.created_unix) == ("a+b c.fits", pytest.approx(1745206620.123456))
    for value in (b"[]", b'{"Records": [{"s3": {}}]}', b'{"Records": 1}', b'{"Records": [{"eventTime": "noon"}]}'):
        with pytest.raises(DataError, match=r"t\[0\]@1: no notification of a bucket"):
            list(created_objects(Received(value, None, {}, "t[0]@1")))
