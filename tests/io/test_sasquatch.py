"""Metrics are in InfluxDB as they were measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from apflow.config import config_from
from apflow.errors import BadRequest
from apflow.io.sasquatch import Counts, drain, flush, send_later
from apflow.io.sasquatch.records import record_of, schema, unix_s
from apflow.model.metrics import Measurement
from apflow.operate.services import InfluxServer
from apflow.operate.services.sasquatch import SasquatchProxy
from tests.io.measured import MJD, UNIX_S, config_for, measurement, points, spooled

AWKWARD = {
    "third": 1 / 3,
    "whole": 3.0,
    "zero": 0.0,
    "tiny": 5e-324,
    "huge": 1.7976931348623157e308,
    "odd": -(2.0**53 + 2),
    "single": np.float32(0.1),
}


def test_values_are_read_back_to_the_last_bit_at_the_midpoint(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path
) -> None:
    where = {
        "instrument": "LSSTCam",
        "visit": np.int64(2025042000123),
        "detector": 94,
        "band": "r",
        "physical_filter": "r_57",
    }
    config = config_for(sasquatch, tmp_path)
    send_later([Measurement("calibrate", AWKWARD, where, MJD)], config)
    assert flush(config, 30) == 0

    (point,) = points(influxdb, sasquatch)
    assert point["time"] == UNIX_S * 10**9
    assert {name: float(point[name]) for name in AWKWARD} == {name: float(value) for name, value in AWKWARD.items()}
    assert {key: point[key] for key in where} == {key: str(value) for key, value in where.items()}
    assert not {"tract", "exposure", "group"} & point.keys()  # there is no tag without a value
    assert not spooled(tmp_path)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_what_is_missing_is_absent_and_no_zero(
    missing: float | None, sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path
) -> None:
    config = config_for(sasquatch, tmp_path)
    send_later(
        [measurement({"there": 1.5, "lost": missing}), measurement({"there": 0.0, "lost": missing}, visit=2)], config
    )
    flush(config, 30)
    found = points(influxdb, sasquatch)
    assert [point["there"] for point in found] == [1.5, 0.0]
    assert all("lost" not in point for point in found)


def test_a_visit_is_one_request_a_topic(sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path) -> None:
    config = config_for(sasquatch, tmp_path)
    actions, detectors = ("isr", "calibrate", "difference"), range(189)
    send_later([measurement(detector=d, action=a) for d in detectors for a in actions], config)
    assert flush(config, 30) == 0
    made = [asked for asked in sasquatch.asked if asked.points]
    assert [(asked.path, len(asked.points)) for asked in made] == [(f"/topics/lsst.prompt.{a}", 189) for a in actions]
    assert {int(point["detector"]) for point in points(influxdb, sasquatch, "isr")} == set(detectors)


def test_requests_are_small_enough_for_proxies_in_front(
    sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path
) -> None:
    config = config_for(sasquatch, tmp_path)
    many = {f"read_noise_electron_{n:03d}": n / 7 for n in range(200)}
    send_later([measurement(many, detector=d) for d in range(120)], config)
    flush(config, 30)
    sizes = [sum(len(point) for point in asked.points) for asked in sasquatch.asked if asked.points]
    assert len(sizes) > 1
    assert max(sizes) < 1_000_000
    assert len(points(influxdb, sasquatch)) == 120


def test_sent_again_it_is_the_same_point(sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path) -> None:
    config = config_for(sasquatch, tmp_path)
    for _ in range(3):
        send_later([measurement({"x": 1.25})], config)
        flush(config, 30)
    assert sum(len(asked.points) for asked in sasquatch.asked) == 3
    assert [point["x"] for point in points(influxdb, sasquatch)] == [1.25]


def test_a_topic_may_get_more_metrics(sasquatch: SasquatchProxy, influxdb: InfluxServer, tmp_path: Path) -> None:
    config = config_for(sasquatch, tmp_path)
    for visit, values in enumerate([{"x": 1.0}, {"x": 2.0, "y": 3.0}, {"x": 4.0}], 1):
        send_later([measurement(values, visit=visit)], config)
    flush(config, 30)
    assert [(point["x"], point["y"]) for point in points(influxdb, sasquatch)] == [(1.0, None), (2.0, 3.0), (4.0, None)]


def test_without_an_address_nothing_happens(tmp_path: Path) -> None:
    config = config_from({"butler": str(tmp_path)})
    send_later([measurement()], config)
    assert (flush(config, 1), drain(config)) == (0, Counts())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tai", "utc_s"),
    [
        (57540.0 + 36 / 86400, 1464739200),  # 2016-06-01T00:00:00 UTC
        (57754.0 + 37 / 86400, 1483228800),  # 2017-01-01T00:00:00 UTC
        (60785.0 + 37 / 86400, 1745107200),  # 2025-04-20T00:00:00 UTC
    ],
)
def test_tai_becomes_utc_with_its_leap_seconds(tai: float, utc_s: int) -> None:
    assert unix_s(tai) == pytest.approx(utc_s, abs=2e-6)


def test_a_measurement_gives_the_same_record_always_and_another_another() -> None:
    assert record_of(measurement()) == record_of(measurement())
    others = [measurement(), measurement(visit=2), measurement(detector=3), measurement(action="isr")]
    assert len({record_of(other).head["id"] for other in others}) == 4


def test_the_schema_names_what_identifies_as_strings_and_metrics_as_nullable() -> None:
    fields = {one["name"]: one for one in json.loads(schema("lsst.prompt", "isr", ("sky_electron",)))["fields"]}
    assert fields["visit"]["type"] == fields["group"]["type"] == "string"
    assert (fields["sky_electron"]["type"], fields["sky_electron"]["default"]) == (["null", "double"], None)
    assert fields["timestamp"]["type"] == "double"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (measurement(action="raw-calibration"), "raw-calibration"),
        (measurement({"2nd_moment": 1.0}), "2nd_moment"),
        (measurement({"timestamp": 1.0}), "timestamp"),
        (Measurement("isr", {"x": 1.0}, {"ccd": 3}, MJD), "ccd"),
        (Measurement("isr", {"x": 1.0}, {"visit": 3}, math.nan), "time of isr is nan"),
    ],
)
def test_what_can_be_no_record_is_refused_by_name(wrong: Measurement, named: str, tmp_path: Path) -> None:
    config = config_from({"butler": str(tmp_path), "sasquatch": {"url": "http://127.0.0.1:9"}})
    with pytest.raises(BadRequest, match=named):
        send_later([measurement(), wrong], config)
    assert not spooled(tmp_path)
