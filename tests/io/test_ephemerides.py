"""Predicted positions, from files of all kinds and from a service that speaks HTTP, well or badly."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from astropy.time import Time

from apflow.catalogs.solar_system import predicted
from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.ephemerides import ask_service, object_id, predictions, read_ephemerides
from tests.ephemeris_service import Service, serving

ROWS: dict[str, list[Any]] = {
    "ssObjectId": [5, 6],
    "designation": ["2008 AB", "2009 CD"],
    "ra": [150.1, 150.2],
    "dec": [-32.0, -32.1],
    "raErr": [1e-5, 2e-5],
    "decErr": [1e-5, 2e-5],
    "ephRateRa": [0.24, 0.0],
    "ephRateDec": [0.0, -0.1],
    "midpointMjdTai": [60786.1, 60786.1],
    "ephVmag": [20.1, np.nan],
}
ASKED = {"visit": 7, "mjd_tai": 60786.1, "ra_deg": 150.0, "dec_deg": -32.0, "radius_deg": 0.17}
SKYBOT = """<?xml version="1.0"?><VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE><TABLE>
<FIELD name="Num" datatype="char" arraysize="*"/><FIELD name="Name" datatype="char" arraysize="*"/>
<FIELD name="RA" datatype="char" arraysize="*" unit="h:m:s"/><FIELD name="DEC" datatype="char" arraysize="*"/>
<FIELD name="Mv" datatype="double"/><FIELD name="Err" datatype="double" unit="arcsec"/>
<FIELD name="dRA" datatype="double" unit="arcsec/h"/><FIELD name="dDEC" datatype="double" unit="arcsec/h"/>
<DATA><TABLEDATA><TR><TD>1</TD><TD>Ceres</TD><TD>10 00 24.0</TD><TD>-32 00 00.0</TD><TD>8.1</TD><TD>0.036</TD>
<TD>36.0</TD><TD>-15.0</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>"""


def save(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        formats = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".xml": "votable"}
        Table.from_pandas(table).write(path, format=formats[path.suffix])
    return path


@pytest.mark.parametrize("kind", [".parquet", ".ecsv", ".csv", ".xml"])
def test_every_kind_of_file_gives_the_same_predictions(tmp_path: Path, kind: str) -> None:
    read = read_ephemerides(save(pd.DataFrame(ROWS), tmp_path / f"objects{kind}"))
    assert read["ssObjectId"].tolist() == [5, 6] and read["ssObjectId"].dtype == np.int64
    assert read["designation"].tolist() == ROWS["designation"]
    for name in ("ra", "dec", "raErr", "decErr", "ephRateRa", "ephRateDec", "midpointMjdTai"):
        assert np.allclose(read[name], ROWS[name], rtol=1e-12), name
    # A quarter of an hour later the first one is 9 arcsec further East.
    later = predicted(read, 60786.1 + 1 / 96)
    assert (later["ra"][0] - 150.1) * np.cos(np.radians(32)) * 3600 == pytest.approx(9.0, rel=1e-3)
    assert later["dec"][0] == pytest.approx(-32.0, abs=1e-6)


def test_an_object_without_id_has_one_by_its_designation() -> None:
    table = pd.DataFrame(ROWS).drop(columns="ssObjectId")
    ids = predictions(table, "x")["ssObjectId"].tolist()
    assert ids == [object_id("2008 AB"), object_id("2009 CD")] and len(set(ids)) == 2
    assert all(0 < i < 2**62 for i in ids)
    assert predictions(table.iloc[::-1], "x")["ssObjectId"].tolist() == ids[::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ra": None}, "no column 'ra'"),
        ({"raErr": None}, r"no column 'raErr'; accepted: raErr and decErr \(degrees\), or Err"),
        ({"ssObjectId": None, "designation": None}, "no column 'ssObjectId'; accepted: that, or designation"),
        ({"ssObjectId": [5.5, 6]}, "ssObjectId is .*5.5.* in row 0; accepted: a whole number"),
        ({"ssObjectId": [5, -6]}, "ssObjectId is .*-6.* in row 1"),
        ({"ssObjectId": None, "designation": ["a", ""]}, "designation is empty in row 1"),
        ({"dec": [0.0, np.nan]}, "dec is nan in row 1; accepted: a finite number"),
        ({"dec": [0.0, 91.0]}, "dec is 91.0 in row 1; accepted: -90 to 90"),
        ({"ra": ["x", "y"]}, "ra is 'x' in row 0"),
        ({"decErr": [-1.0, 0.0]}, "decErr is -1.0 in row 0; accepted: 0 or more"),
        ({"ephRateDec": None}, "'ephRateRa' alone"),
        ({"midpointMjdTai": None}, "rates but no column 'midpointMjdTai'"),
        ({"midpointMjdTai": [60786.1, np.inf]}, "midpointMjdTai is inf in row 1"),
    ],
)
def test_a_bad_column_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = {name: change.get(name, values) for name, values in ROWS.items()}
    path = save(pd.DataFrame({n: v for n, v in rows.items() if v is not None}), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=message) as error:
        read_ephemerides(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"ends in .parquet, .ecsv"):
        read_ephemerides(tmp_path / "objects.txt")
    with pytest.raises(BadRequest, match="there is no file"):
        read_ephemerides(tmp_path / "objects.ecsv")
    for kind in (".ecsv", ".xml", ".parquet", ".csv"):
        (tmp_path / f"junk{kind}").write_bytes(b"\x00\x01 junk")
        with pytest.raises(DataError, match="junk"):
            read_ephemerides(tmp_path / f"junk{kind}")


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as server:
        yield server


def ecsv() -> bytes:
    out = io.StringIO()
    Table.from_pandas(pd.DataFrame(ROWS)).write(out, format="ascii.ecsv")
    return out.getvalue().encode()


def votable() -> bytes:
    out = io.BytesIO()
    Table.from_pandas(pd.DataFrame(ROWS)).write(out, format="votable")
    return out.getvalue()


def as_json() -> bytes:
    rows = pd.DataFrame(ROWS).astype(object).where(pd.DataFrame(ROWS).notna(), None)
    return json.dumps(rows.to_dict("records")).encode()


@pytest.mark.parametrize("body", [ecsv, votable, as_json, lambda: b'{"data": ' + as_json() + b"}"])
def test_a_service_may_answer_in_json_ecsv_or_votable(service: Service, body: Any) -> None:
    service.answer = 200, body()
    told = ask_service(service.url, **ASKED, timeout_s=5.0)
    assert told["ssObjectId"].tolist() == [5, 6] and np.allclose(told["ra"], ROWS["ra"])
    asked = parse_qs(urlparse(service.asked[0]).query)
    assert {k: float(v[0]) for k, v in asked.items()} == {
        "visit": 7.0, "mjd_tai": 60786.1, "ra": 150.0, "dec": -32.0, "radius": 0.17
    }  # fmt: skip


def test_skybot_is_asked_by_its_own_names_and_understood(service: Service) -> None:
    service.answer = 200, SKYBOT.encode()
    url = service.url + "?-ep={jd_utc}&-ra={ra_deg}&-dec={dec_deg}&-rd={radius_deg}&-mime=votable&-output=all"
    (row,) = ask_service(url, **ASKED, timeout_s=5.0).to_dict("records")
    asked = parse_qs(urlparse(service.asked[0]).query)
    assert float(asked["-ep"][0]) == pytest.approx(Time(60786.1, format="mjd", scale="tai").utc.jd, abs=1e-7)
    assert (asked["-mime"], float(asked["-rd"][0])) == (["votable"], 0.17)
    assert row["designation"] == "Ceres" and row["ssObjectId"] == object_id("Ceres")
    assert (row["ra"], row["dec"]) == pytest.approx((150.1, -32.0))
    assert (row["ephRateRa"], row["ephRateDec"]) == pytest.approx((0.24, -0.1))
    assert row["raErr"] == pytest.approx(1e-5) and row["ephVmag"] == pytest.approx(8.1)
    assert row["midpointMjdTai"] == 60786.1


@pytest.mark.parametrize("body", [b"[]", b"", b'{"data": []}'])
def test_a_field_without_objects_is_an_answer(service: Service, body: bytes) -> None:
    service.answer = 200, body
    told = ask_service(service.url, **ASKED, timeout_s=5.0)
    assert len(told) == 0 and len(predicted(told, 60786.1)) == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, b"oops"), "status 500"),
        ((404, b""), "status 404"),
        ((200, b"<html><body>Sorry</body></html>"), "votable"),
        ((200, b"Sorry, no"), "ecsv"),
        ((200, b"[1, 2"), "no JSON"),
        ((200, b'[{"ra": 1, "dec": 2}]'), "raErr"),
        ((200, b'[{"ssObjectId": 1, "ra": 1, "dec": "x", "Err(arcsec)": 1}]'), "dec is 'x'"),
    ],
)
def test_an_answer_that_is_none_is_an_error_of_the_service(
    service: Service, answer: tuple[int, bytes], message: str
) -> None:
    service.answer = answer
    with pytest.raises(ServiceError, match=message):
        ask_service(service.url + "?key=secret", **ASKED, timeout_s=5.0)


def test_nobody_waits_for_a_slow_service_and_none_is_an_error_too(service: Service) -> None:
    service.delay_s = 3.0
    begin = time.monotonic()
    with pytest.raises(ServiceError, match="Timeout") as error:
        ask_service(service.url + "?key=secret", **ASKED, timeout_s=0.2)
    assert time.monotonic() - begin < 2.5
    assert "secret" not in str(error.value)
    with pytest.raises(ServiceError, match="ConnectionError"):
        ask_service("http://127.0.0.1:9/eph", **ASKED, timeout_s=1.0)
