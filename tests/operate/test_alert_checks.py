"""What `verify` holds against an alert: each kind of damage, and nothing else."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from apflow.errors import DataError
from apflow.io.alerts.schema import load_schema
from apflow.operate.alert_checks import CHECKS, Report, check_alert, decode
from apflow.operate.alert_stamps import NOWHERE, STAMPS, greys, read_stamp
from tests.io.test_alerts_packets import NEW_IDS
from tests.readers.alerts import example_alerts

SCHEMA = load_schema("11.1")


@pytest.fixture(scope="module")
def packets():
    return example_alerts()


@pytest.fixture
def alert(packets) -> dict[str, Any]:
    """A known object with its history."""
    return SCHEMA.decode(packets[0].datum)


def problems(alert, alert_id=NEW_IDS[0], object_id=7, days=365.0) -> dict[str, list[str]]:
    report = Report()
    check_alert(report, alert, alert_id, object_id, days)
    return {name: found for name, found in report.problems.items() if found}


def test_every_kind_of_sound_alert_passes(packets):
    for packet in packets:
        record = decode(packet.datum, SCHEMA.definition)
        found = problems(record, packet.alert_id, packet.object_id)
        missing = [f"alert {packet.alert_id}: no {name} stamp" for name in STAMPS]
        assert found == ({"stamps": missing} if record["cutoutScience"] is None else {})


def changed(alert, path, value):
    """A copy with one value replaced."""
    out = copy.deepcopy(alert)
    *way, last = path
    place = out
    for key in way:
        place = place[key]
    place[last] = value(place[last]) if callable(value) else value
    return out


@pytest.mark.parametrize(
    ("path", "value", "check", "told"),
    [
        (["diaSourceId"], 5, "ids", "diaSourceId is 5"),
        (["diaSource", "diaSourceId"], 5, "ids", "diaSource.diaSourceId is 5"),
        (["diaObject", "diaObjectId"], 8, "ids", "diaSource.diaObjectId 7, diaObject 8"),
        (["diaObject"], None, "ids", "diaSource.diaObjectId 7, diaObject None"),
        (["prvDiaSources", 0, "diaObjectId"], 8, "ids", "prvDiaSources holds rows of object 8"),
        (["prvDiaForcedSources"], lambda rows: [rows[0], *rows], "ids", "prvDiaForcedSources holds a row twice"),
        (["prvDiaSources", 1, "diaSourceId"], NEW_IDS[0], "ids", "the source is among its own prvDiaSources"),
        (["prvDiaSources"], lambda rows: rows[::-1], "history", "prvDiaSources is not in order of time"),
        (["prvDiaSources", 1, "midpointMjdTai"], lambda t: t + 2, "history", "reaches 1.000000 days beyond"),
        (["prvDiaForcedSources", 0, "midpointMjdTai"], lambda t: t - 400, "history", "goes back 411.0 days"),
        (["cutoutScience"], None, "stamps", "no science stamp"),
        (["cutoutScience"], lambda data: data[:7000], "stamps", "science: a stamp of 7000 bytes is cut off"),
        (["cutoutScience"], lambda data: data[:3000], "stamps", "science: a stamp of 3000 bytes is cut off"),
        (["cutoutDifference"], b"GIF89a", "stamps", "difference: a stamp of 6 bytes has no FITS header"),
        (["cutoutTemplate"], lambda data: data.replace(b"RA---TAN", b"GLON-TAN"), "stamps", "template: no WCS"),
        (["cutoutTemplate"], lambda data: data.replace(b"'UNCERT  '", b"'VAR     '"), "stamps", "template: no UNCERT"),
        (["diaSource", "dec"], lambda dec: dec + 1 / 3600, "stamps", "the source lies at (15.0, 20.0) of 30 x 30"),
        (["cutoutScience"], lambda data: long_header(data), "stamps", "science: the primary header takes 2 blocks"),
    ],
)  # fmt: skip
def test_each_damage_is_found_and_named(alert, path, value, check, told):
    found = problems(changed(alert, path, value))
    assert set(found) == {check}
    assert told in found[check][0] and str(NEW_IDS[0]) in found[check][0]


def long_header(data: bytes) -> bytes:
    """The same file, with a header as long as some writers make it."""
    with fits.open(io.BytesIO(data)) as file:
        for i in range(40):
            file[0].header[f"KEY{i}"] = i
        out = io.BytesIO()
        file.writeto(out)
    return out.getvalue()


def test_an_alert_must_be_the_one_that_was_asked_for(alert):
    assert "of object 9 by its key or index" in problems(alert, object_id=9)["ids"][0]
    assert "diaSourceId is" in problems(alert, alert_id=4)["ids"][0]


def test_a_datum_must_be_whole_and_nothing_more(packets):
    datum = packets[0].datum
    assert decode(datum, SCHEMA.definition)["diaSourceId"] == NEW_IDS[0]
    for wrong in (datum[:-1], datum[: len(datum) // 2], datum + b"\0", b""):
        with pytest.raises(DataError):
            decode(wrong, SCHEMA.definition)


def test_a_report_is_fine_until_something_is_not():
    report = Report()
    report.add("once", [], 5)
    assert report.fine and report.checked["once"] == 5
    report.add("values", ["x"])
    assert not report.fine and set(report.problems) == set(CHECKS)


def test_stamps_are_read_as_astropy_reads_them(alert):
    data = alert["cutoutDifference"]
    stamp = read_stamp(data)
    with fits.open(io.BytesIO(data)) as file:
        np.testing.assert_array_equal(stamp.image, file[0].data)
        for name in ("UNCERT", "MASK", "PSFIMAGE"):
            np.testing.assert_array_equal(stamp.planes[name], file[name].data)
        header = file[0].header
        assert {key: stamp.header[key] for key in ("NAXIS1", "BUNIT", "CRVAL1", "CD1_1", "RADESYS")} == {
            key: header[key] for key in ("NAXIS1", "BUNIT", "CRVAL1", "CD1_1", "RADESYS")
        }
        sky = WCS(header).pixel_to_world(3.0, 20.0)
    assert stamp.wcs is not None
    assert np.allclose(stamp.wcs.pixel_to_sky(3.0, 20.0), (sky.ra.deg, sky.dec.deg), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("card", "value"),
    [
        ("KEY     = 'it''s a / name'    / a note", "it's a / name"),
        ("KEY     =                    T / a note", True),
        ("KEY     =               1.5D+03", 1500.0),
        ("KEY     =                   -7 / a note", -7),
    ],
)
def test_cards_of_other_writers_are_understood(alert, card, value):
    data = alert["cutoutScience"]
    end = data.index(b"END" + b" " * 77)
    stamp = read_stamp(data[:end] + card.ljust(80).encode() + b"END".ljust(80) + data[end + 160 :])
    assert stamp.header["KEY"] == value


def test_greys_show_the_source_and_what_is_off_the_detector(alert):
    stamp = read_stamp(alert["cutoutScience"])
    image = np.array(stamp.image, ">f4")
    image[:4] = np.nan
    start = alert["cutoutScience"].index(stamp.image.tobytes())
    data = bytearray(alert["cutoutScience"])
    data[start : start + image.nbytes] = image.tobytes()
    shown = greys({**alert, "cutoutScience": bytes(data), "cutoutTemplate": None})
    assert set(shown) == {"science", "difference"}
    assert (shown["science"][:4] == NOWHERE).all()
    bright = np.unravel_index(shown["science"][4:].argmax(), (26, 30))
    assert abs(bright[0] + 4 - 15) <= 1 and abs(bright[1] - 15) <= 1
    assert shown["difference"][15, 15] == 255 and abs(float(np.median(shown["difference"])) - 127) < 10


def test_a_stamp_without_a_single_pixel_is_grey_and_no_error(alert):
    stamp = read_stamp(alert["cutoutTemplate"])
    start = alert["cutoutTemplate"].index(stamp.image.tobytes())
    data = bytearray(alert["cutoutTemplate"])
    data[start : start + stamp.image.nbytes] = np.full(stamp.image.shape, np.nan, ">f4").tobytes()
    assert (greys({**alert, "cutoutTemplate": bytes(data)})["template"] == NOWHERE).all()
