"""Pictures of alerts: what is drawn is where it should be."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from apflow.io.alerts.schema import load_schema
from apflow.operate.alert_console import print_alert
from apflow.operate.alert_curve import labels, light_curve, span, ticks, time_unit
from apflow.operate.alert_facts import facts
from apflow.operate.alert_picture import write_picture
from apflow.operate.alert_stamps import greys
from tests.readers.alerts import example_alerts


@pytest.fixture(scope="module")
def alerts():
    schema = load_schema("11.1")
    return [schema.decode(packet.datum) for packet in example_alerts()]


def test_the_light_curve_has_every_known_flux_in_order_of_time(alerts):
    curve = light_curve(alerts[0])
    assert (np.diff(curve.days) >= 0).all() and curve.days[-1] == 0 and not curve.forced[-1]
    assert curve.forced.tolist() == [False, True, True, False, True, False]
    assert np.allclose(curve.days, [-300, -11, -10, -1, 0, 0])
    assert curve.bands == ["r"]
    assert light_curve(alerts[2]).days.tolist() == [0]


def test_the_other_bands_come_in_order_of_wavelength(alerts):
    alert = copy.deepcopy(alerts[0])
    for row, band in zip(alert["prvDiaForcedSources"], ("y", "u", "x"), strict=True):
        row["band"] = band
    assert light_curve(alert).bands == ["u", "r", "y", "x"]


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-3.2, 10.1, ["0", "5", "10"]),
        (-0.05, 0.21, ["-0.05", "0.00", "0.05", "0.10", "0.15", "0.20"]),
        (0.0, 42_000.0, ["0", "10,000", "20,000", "30,000", "40,000"]),
        (-11.0, -3.0, ["-10", "-8", "-6", "-4"]),
    ],
)
def test_ticks_are_round_and_within_the_axis(low, high, told):
    assert labels(ticks(low, high)) == told


def test_axes_hold_all_values_and_are_never_empty():
    low, high = span(np.array([5.0]), 1.0)
    assert low < 5 < high and high - low == pytest.approx(1.0)
    low, high = span(np.array([-10.0, 30.0]), 1.0)
    assert low < -10 and high > 30
    assert span(np.array([]), 1.0) == (-1.0, 1.0)


@pytest.mark.parametrize(("days", "unit"), [(0.0, "minutes"), (0.002, "minutes"), (0.5, "hours"), (30, "days")])
def test_times_are_told_in_a_unit_that_suits_them(days, unit):
    assert time_unit(np.array([-days, 0.0]))[0] == unit


def test_a_picture_of_every_kind_of_alert(alerts, tmp_path):
    for alert in alerts:
        write_picture(tmp_path / "alert.png", alert)
        with Image.open(tmp_path / "alert.png") as picture:
            assert picture.width == 882 and picture.mode == "RGB"
    assert [path.name for path in tmp_path.iterdir()] == ["alert.png"]


def test_stamps_in_the_picture_have_north_as_the_sky_has_it(alerts, tmp_path):
    write_picture(tmp_path / "alert.png", alerts[0])
    with Image.open(tmp_path / "alert.png") as picture:
        pixels = np.asarray(picture.convert("L"), int)
    left = np.flatnonzero(pixels[200] < 128)[0]
    top = np.flatnonzero((pixels[:, left + 5] < 128) & (np.arange(len(pixels)) > 75))[0]
    stamp = pixels[top : top + 270, left : left + 270].reshape(30, 9, 30, 9)[:, 4, :, 4]
    away = np.ones((30, 30), bool)
    away[:12, 18:], away[26:, :14], away[13:26, 6:18] = False, False, False  # compass, scale and marks
    shown = greys(alerts[0])["science"][::-1].astype(int)  # row 0 is the top: y grows upwards
    assert np.abs(stamp - shown)[away].max() <= 2


def printed(alert, **settings) -> str:
    console = Console(width=100, record=True, file=io.StringIO(), **settings)
    print_alert(alert, console)
    return console.export_text()


def test_the_terminal_gets_two_pixels_a_character(alerts):
    text = printed(alerts[0], force_terminal=True, color_system="truecolor")
    rows = [line for line in text.splitlines() if "▀" in line]
    assert len(rows) == 15 and all(line.count("▀") == 90 for line in rows)
    assert "minutes from this alert" not in text and "days from this alert" in text
    assert "▀" not in printed(alerts[2], force_terminal=True, color_system="truecolor")


@pytest.mark.parametrize("settings", [{}, {"force_terminal": True, "color_system": "standard"}])
def test_no_stamps_where_they_cannot_be_seen(alerts, settings):
    text = printed(alerts[0], **settings)
    assert "▀" not in text and "difference" in text


def test_facts_leave_out_what_is_unknown(alerts):
    known = facts(alerts[0])
    assert known["sign"] == "negative" and known["history"] == "2 detected, 3 forced" and known["band"] == "r"
    assert "reliability" not in known and "S/N" not in known
    assert facts(alerts[1])["difference"] == "0 nJy"
