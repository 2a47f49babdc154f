"""Alerts (D9) decode, to the last value, in what brokers use: fastavro, avsc, pittgoogle-client, confluent-kafka."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fastavro
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from lsst.alert.packet import Schema, get_schema_path

from apflow.config_tables import Kafka
from apflow.io.alerts.schema import frame, load_schema
from apflow.io.kafka.registry import canonical, register
from apflow.model.products import Packet
from tests.readers.alerts import example_alerts

NODE = Path(__file__).parent / "node"
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def packets() -> tuple[Packet, ...]:
    return example_alerts()


@pytest.fixture(scope="module")
def records(packets: tuple[Packet, ...]) -> list[dict[str, Any]]:
    """As fastavro reads them with the schema files of lsst-alert-packet."""
    schema = fastavro.schema.load_schema(get_schema_path("11", "1") + "/lsst.v11_1.alert.avsc")
    found = []
    for packet in packets:
        data = io.BytesIO(packet.datum)
        record = fastavro.schemaless_reader(data, schema, None)
        assert data.read() == b""
        found.append(record)
    return found


def same(theirs: Any, ours: Any, where: str = "") -> None:
    """Whether another reader has the same; longs may come as text, bytes as their SHA-256, times as microseconds."""
    if isinstance(ours, Mapping):
        assert set(theirs) == set(ours), where
        for key in ours:
            same(theirs[key], ours[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(theirs) == len(ours), where
        for i, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            same(one, other, f"{where}[{i}]")
    elif isinstance(ours, dt.datetime) and not isinstance(theirs, dt.datetime):
        assert EPOCH + dt.timedelta(microseconds=int(theirs)) == ours, where
    elif isinstance(ours, bytes) and not isinstance(theirs, bytes):
        assert theirs == hashlib.sha256(ours).hexdigest(), where
    elif isinstance(ours, float):
        assert float(theirs) == ours or (math.isnan(float(theirs)) and math.isnan(ours)), where
    elif isinstance(ours, int) and not isinstance(ours, bool):
        assert int(theirs) == ours, where
    else:
        assert type(theirs) is type(ours) and theirs == ours, where


def test_the_examples_hold_every_part_of_an_alert(records: list[dict[str, Any]]) -> None:
    for field in records[0]:
        known = [record[field] is not None for record in records]
        assert any(known) or field in ("observation_reason", "target_name"), field
        assert not all(known) or field in ("diaSourceId", "diaSource"), field
    assert {math.isnan(value) for r in records for value in r["diaSource"].values() if type(value) is float} == {
        True,
        False,
    }


def test_lsst_alert_packet(packets: tuple[Packet, ...], records: list[dict[str, Any]]) -> None:
    schema = Schema.from_file(get_schema_path("11", "1") + "/lsst.v11_1.alert.avsc")
    for packet, record in zip(packets, records, strict=True):
        same(schema.deserialize(packet.datum), record)


def test_stamps_open_in_astropy_at_the_source(records: list[dict[str, Any]]) -> None:
    for name in ("cutoutDifference", "cutoutScience", "cutoutTemplate"):
        with fits.open(io.BytesIO(records[0][name])) as file:
            file.verify("exception")
            x, y = WCS(file[0].header).world_to_pixel_values(*(records[0]["diaSource"][c] for c in ("ra", "dec")))
            assert (round(float(x)), round(float(y))) == (15, 15)
            assert [hdu.name for hdu in file] == ["PRIMARY", "UNCERT", "MASK", "PSFIMAGE"]


@pytest.fixture(scope="session")
def avsc() -> Path:
    """A folder with decode.js and avsc as package-lock.json pins it, kept in the user's cache."""
    npm = shutil.which("npm")
    assert npm, "npm is not on the PATH: install Debian's npm, or Node.js"
    names = ("package.json", "package-lock.json", ".npmrc", "decode.js")
    version = hashlib.sha256(b"".join((NODE / name).read_bytes() for name in names)).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apflow" / "readers"
    folder = cache / version
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as scratch:
            for name in names:
                shutil.copy(NODE / name, scratch)
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=5", "--prefer-offline"]
            subprocess.run([npm, "ci", *options], cwd=scratch, check=True, capture_output=True, timeout=300)
            Path(scratch).rename(folder)
    return folder


def test_avsc(packets: tuple[Packet, ...], records: list[dict[str, Any]], avsc: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(canonical(load_schema("11.1").definition))
    files = [tmp_path / f"{i}.alert" for i in range(len(packets))]
    for file, packet in zip(files, packets, strict=True):
        file.write_bytes(frame(packet.datum, 1101))
    command = ["node", str(avsc / "decode.js"), str(schema), *map(str, files)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["schemaId"] for line in found] == [1101] * len(packets)
    same([line["record"] for line in found], records)


def test_pittgoogle(packets: tuple[Packet, ...], records: list[dict[str, Any]], tmp_path: Path) -> None:
    import pittgoogle

    for packet, record in zip(packets, records, strict=True):
        path = tmp_path / "alert"
        path.write_bytes(frame(packet.datum, 1101))
        alert = pittgoogle.Alert.from_path(path, schema_name="lsst")
        assert alert.schema.version == "v11_1"
        same(alert.dict, record)
        assert alert.sourceid == record["diaSourceId"]
        source = record["diaSource"]
        assert alert.objectid == (source["diaObjectId"] or source["ssObjectId"])
        assert alert.ra == record["diaSource"]["ra"]


def deserialized(url: str, message: bytes) -> Any:
    """As a consumer with Confluent's deserializer has it: schemas come from the registry, by the id in the frame."""
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroDeserializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    with SchemaRegistryClient({"url": url}) as client:
        return AvroDeserializer(client)(message, SerializationContext("alerts", MessageField.VALUE))


def test_confluent_deserializer_with_rubins_id(
    packets: tuple[Packet, ...], records: list[dict[str, Any]], import_registry
) -> None:
    schema_id = register(Kafka(registry=import_registry.url), "11.1")
    assert schema_id == 1101
    for packet, record in zip(packets, records, strict=True):
        same(deserialized(import_registry.url, frame(packet.datum, schema_id)), record)


def test_confluent_deserializer_with_a_real_registry(
    packets: tuple[Packet, ...], records: list[dict[str, Any]], schema_registry
) -> None:
    from confluent_kafka.schema_registry import Schema as RegistrySchema
    from confluent_kafka.schema_registry import SchemaRegistryClient

    with SchemaRegistryClient({"url": schema_registry.url}) as client:
        text = canonical(load_schema("11.1").definition)
        schema_id = client.register_schema("readers", RegistrySchema(text, "AVRO"))
    for packet, record in zip(packets, records, strict=True):
        same(deserialized(schema_registry.url, frame(packet.datum, schema_id)), record)
