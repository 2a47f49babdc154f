"""The stand-in of Sasquatch lets nothing pass that the contract does not allow; InfluxDB is real, and private."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from apflow.errors import ServiceError
from apflow.io.sasquatch.records import record_of, schema
from apflow.model.metrics import Measurement
from apflow.operate.services import InfluxServer
from apflow.operate.services.sasquatch import CLUSTER, SasquatchProxy

MEASURED = Measurement("isr", {"sky": 1.5, "dead": None}, {"visit": 7, "instrument": "LSSTCam"}, 60785.0)
AVRO = {"Content-Type": "application/vnd.kafka.avro.v2+json", "Accept": "application/vnd.kafka.v2+json"}
TOPIC = {"topic_name": "lsst.prompt.isr", "partitions_count": 1, "replication_factor": 3}


def ask(
    proxy: SasquatchProxy, path: str, body: Any = None, *, token: str | None = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    """Status and body of a reply; headers with _ for -."""
    bearer = {"Authorization": f"Bearer {proxy.token if token is None else token}"}
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    data = None if body is None else json.dumps(body)
    method = "GET" if body is None else "POST"
    reply = requests.request(method, proxy.url + path, data=data, headers={**bearer, **AVRO, **given}, timeout=10)
    return reply.status_code, reply.json()


def request_of(measurement: Measurement, edit: Callable[[Any, Any], object] | None = None) -> dict[str, Any]:
    """A request to produce; `edit` gets the schema and the value of the record."""
    value = json.loads(record_of(measurement).json())
    avro = json.loads(schema("lsst.prompt", measurement.action, tuple(measurement.values)))
    if edit:
        edit(avro, value)
    return {"value_schema": json.dumps(avro), "records": [{"value": value}]}


@pytest.fixture
def topic(sasquatch: SasquatchProxy) -> SasquatchProxy:
    """With a topic."""
    status, _ = ask(sasquatch, f"/v3/clusters/{CLUSTER}/topics", TOPIC, Content_Type="application/json")
    assert status == 201
    return sasquatch


def test_it_has_a_cluster_and_takes_what_is_right(topic: SasquatchProxy, influxdb: InfluxServer) -> None:
    assert ask(topic, "/v3/clusters")[1]["data"][0]["cluster_id"] == CLUSTER
    status, reply = ask(topic, "/topics/lsst.prompt.isr", request_of(MEASURED))
    assert (status, reply["offsets"][0]["error_code"]) == (200, None)
    (point,) = influxdb.query(topic.database, 'SELECT * FROM "lsst.prompt.isr"')
    assert (point["sky"], point["visit"], "dead" in point) == (1.5, "7", False)


def test_a_topic_is_made_once(topic: SasquatchProxy) -> None:
    again = ask(topic, f"/v3/clusters/{CLUSTER}/topics", TOPIC, Content_Type="application/json")
    assert again == (400, {"error_code": 40002, "message": "Topic 'lsst.prompt.isr' already exists."})


@pytest.mark.parametrize(
    ("status", "headers"),
    [(401, {"token": "other"}), (415, {"Content_Type": "application/json"}), (406, {"Accept": "*/*"})],
)
def test_headers_are_checked(status: int, headers: dict[str, str], topic: SasquatchProxy) -> None:
    assert ask(topic, "/topics/lsst.prompt.isr", request_of(MEASURED), **headers)[0] == status


def test_topics_are_not_made_by_producing(sasquatch: SasquatchProxy) -> None:
    status, reply = ask(sasquatch, "/topics/lsst.prompt.isr", request_of(MEASURED))
    assert (status, reply["error_code"]) == (404, 40401)


def set_field(key: str, value: object) -> Callable[[Any, Any], object]:
    return lambda avro, record: record.update({key: value})


@pytest.mark.parametrize(
    ("code", "edit"),
    [
        (42203, set_field("sky", 1.5)),  # a union without its type
        (42203, set_field("sky", {"double": "1.5"})),
        (42203, set_field("sky", {"float": 1.5})),
        (42203, set_field("visit", 7)),
        (42203, set_field("visit", None)),
        (42203, set_field("timestamp", 1.745e12)),  # milliseconds
        (42203, set_field("timestamp", 60785.0)),  # MJD
        (42203, set_field("unknown", "x")),
        (42203, lambda avro, record: record.pop("dead")),
        (400, set_field("sky", {"double": float("nan")})),
        (42205, lambda avro, record: (avro["fields"][-1].update(name="9th"), record.update({"9th": None}))),
        (42205, lambda avro, record: avro["fields"][-1].update(type="double")),
        (42205, lambda avro, record: avro["fields"][-1].update(type=["double", "null"], default=0.0)),
        (42205, lambda avro, record: avro.update(name="other")),
        (42205, lambda avro, record: (avro["fields"].pop(8), record.pop("visit"))),
    ],
)
def test_records_and_schemas_are_checked(
    code: int, edit: Callable[[Any, Any], object], topic: SasquatchProxy, influxdb: InfluxServer
) -> None:
    _, reply = ask(topic, "/topics/lsst.prompt.isr", request_of(MEASURED, edit))
    assert reply["error_code"] == code, reply
    assert not influxdb.query(topic.database, 'SELECT * FROM "lsst.prompt.isr"')


def test_a_schema_may_not_change_a_type(topic: SasquatchProxy) -> None:
    def as_text(avro: Any, record: Any) -> None:
        avro["fields"][-1].update(type="string", default="")
        record["dead"] = ""

    assert ask(topic, "/topics/lsst.prompt.isr", request_of(MEASURED))[0] == 200
    status, reply = ask(topic, "/topics/lsst.prompt.isr", request_of(MEASURED, as_text))
    assert (status, reply["error_code"]) == (422, 42201)


def test_influxdb_keeps_its_data_and_its_port() -> None:
    with InfluxServer() as server:
        url, name = server.url, server.database()
        server.write(name, ["m,t=a x=0.1 1745135963000000000"])
        server.kill()
        server.start()
        assert server.url == url
        assert server.query(name, 'SELECT "x" FROM "m"') == [{"time": 1745135963000000000, "x": 0.1}]
        with pytest.raises(ServiceError, match=r"400.*unable to parse"):
            server.write(name, ["no point"])
