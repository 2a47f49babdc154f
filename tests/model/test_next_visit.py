"""Events of the summit (D12): every field parsed and checked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apflow.errors import BadRequest
from apflow.model.camera import load_camera
from apflow.model.next_visit import (
    CoordinateSystem,
    Dome,
    NextVisit,
    NextVisitCanceled,
    RotationSystem,
    StartIntegration,
    parse,
)

NEXT_VISIT: dict[str, Any] = {
    "salIndex": 1,
    "scriptSalIndex": 100042,
    "groupId": "2025-04-21T02:24:00.000",
    "coordinateSystem": 2,
    "position": [150.1, -32.0],
    "startTime": 1745202240.0,
    "rotationSystem": 2,
    "cameraAngle": 25.0,
    "filters": "r_57",
    "dome": 2,
    "duration": 34.0,
    "nimages": 1,
    "instrument": "LSSTCam",
    "survey": "BLOCK-365",
    "totalCheckpoints": 3,
    "private_sndStamp": 1745202217.5,
    "private_rcvStamp": 1745202217.6,
    "private_efdStamp": 1745202180.5,
    "private_kafkaStamp": 1745202180.7,
    "private_seqNum": 812,
    "private_identity": "ScriptQueue:1",
    "private_origin": 4711,
    "private_revCode": "abcd1234",
    "private_somethingNew": "left alone",
}
START: dict[str, Any] = {
    "salIndex": 0,
    "imageName": "MC_O_20250420_000123",
    "exposureTime": 30.0,
    "imagesInSequence": 2,
    "imageIndex": 2,
    "additionalKeys": "imageType:groupId:program",
    "additionalValues": "OBJECT:2025-04-21T02\\:24\\:00.000:BLOCK-365",
    "private_sndStamp": 1745202240.0,
}


def test_every_field_of_next_visit_is_read():
    event = NextVisit.from_record(json.loads(json.dumps(NEXT_VISIT)))
    assert (event.sal_index, event.script_sal_index, event.group) == (1, 100042, "2025-04-21T02:24:00.000")
    assert (event.coordinate_system, event.position) == (CoordinateSystem.ICRS, (150.1, -32.0))
    assert (event.rotation_system, event.camera_angle_deg) == (RotationSystem.SKY, 25.0)
    assert (event.start_tai, event.duration_s, event.nimages) == (1745202240.0, 34.0, 1)
    assert (event.filters, event.dome) == (("r_57",), Dome.OPEN)
    assert (event.instrument, event.survey, event.total_checkpoints) == ("LSSTCam", "BLOCK-365", 3)
    assert event.exposure_time_s is None and event.unfit == ""
    stamps = event.stamps
    assert (stamps.sent_tai, stamps.received_tai, stamps.efd_tai) == (1745202217.5, 1745202217.6, 1745202180.5)
    assert (stamps.kafka_tai, stamps.sequence, stamps.origin) == (1745202180.7, 812, 4711)
    assert (stamps.identity, stamps.revision) == ("ScriptQueue:1", "abcd1234")


def test_an_exposure_time_may_be_given():
    assert NextVisit.from_record(NEXT_VISIT | {"exposureTime": 15}).exposure_time_s == 15.0


@pytest.mark.parametrize(
    ("text", "filters"), [("", ()), (" ", ()), ("r_57, i_39", ("r_57", "i_39")), ("r", ("r",)), (",g_6,", ("g_6",))]
)
def test_a_blank_list_of_filters_is_any(text: str, filters: tuple[str, ...]):
    assert NextVisit.from_record(NEXT_VISIT | {"filters": text}).filters == filters


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("groupId", "", "a name"),
        ("groupId", "x" * 81, "a name"),
        ("groupId", 7, "a text"),
        ("coordinateSystem", 5, r"1 \(none\), 2 \(icrs\), 3 \(observed\), 4 \(mount\)"),
        ("coordinateSystem", True, "a whole number"),
        ("position", [150.1], "two numbers, 0 to 360 and -90 to 90"),
        ("position", [361.0, 0.0], "two numbers, 0 to 360 and -90 to 90"),
        ("position", [0.0, float("nan")], "two numbers"),
        ("position", "12", "two numbers"),
        ("startTime", -1.0, "0 or more"),
        ("rotationSystem", 0, r"1 \(none\), 2 \(sky\), 3 \(horizon\), 4 \(mount\)"),
        ("cameraAngle", 400.0, "-360 to 360"),
        ("cameraAngle", None, "missing"),
        ("filters", ["r_57"], "a text"),
        ("dome", 4, r"1 \(closed\), 2 \(open\), 3 \(either\)"),
        ("duration", float("inf"), "a finite number"),
        ("nimages", 3, "0 to 2"),
        ("nimages", -1, "0 to 2"),
        ("nimages", 1.5, "a whole number"),
        ("instrument", "", "a name"),
        ("survey", "a\nb", "a text"),
        ("totalCheckpoints", -1, "0 or more"),
        ("exposureTime", 4000.0, "0 to 3600"),
        ("salIndex", 10**400, "a whole number"),
        ("private_sndStamp", "now", "a finite number"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_accepted(field: str, value: Any, accepted: str):
    with pytest.raises(BadRequest, match=accepted) as error:
        parse("nextVisit", NEXT_VISIT | {field: value})
    assert str(error.value).startswith(f"nextVisit.{field}") and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"coordinateSystem": 3, "position": [400.0, 95.0]}, "coordinateSystem OBSERVED"),
        ({"coordinateSystem": 1}, "coordinateSystem NONE"),
        ({"rotationSystem": 4}, "rotationSystem MOUNT"),
        ({"dome": 1}, "dome CLOSED"),
    ],
)
def test_what_is_no_science_visit_is_unfit_but_no_error(change: dict[str, Any], why: str):
    assert why in NextVisit.from_record(NEXT_VISIT | change).unfit


def test_age_counts_from_when_it_was_sent():
    assert NextVisit.from_record(NEXT_VISIT).age_s(1745202227.5) == 10.0
    unsent = NextVisit.from_record(NEXT_VISIT | {"private_sndStamp": 0})
    assert unsent.age_s(1745202250.0) == 10.0
    assert NextVisit.from_record(NEXT_VISIT | {"private_sndStamp": 0, "startTime": 0}).age_s(2e9) == 0.0


def test_the_visit_that_was_announced():
    camera = load_camera("lsstcam")
    visit = NextVisit.from_record(NEXT_VISIT).visit(camera, 2025042000123, 2, 15.0)
    assert (visit.visit, visit.images) == (2025042000123, ("MC_O_20250420_000123", "MC_O_20250420_000124"))
    assert (visit.ra_deg, visit.dec_deg, visit.rotation_deg) == (150.1, -32.0, 25.0)
    assert (visit.physical_filter, visit.band, visit.exposure_time_s) == ("r_57", "r", 15.0)
    open_filter = NextVisit.from_record(NEXT_VISIT | {"filters": ""}).visit(camera, 2025042000123, 1, 30.0)
    assert (open_filter.physical_filter, open_filter.band) == ("", "")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"instrument": "LATISS"}, "instrument 'LATISS' is not accepted: LSSTCam"),
        ({"filters": "r_03"}, "LSSTCam has no filter 'r_03'"),
        ({"filters": "r_57,i_39"}, "leave it open which"),
    ],
)
def test_what_the_camera_does_not_have_is_refused(change: dict[str, Any], told: str):
    with pytest.raises(BadRequest, match=told):
        NextVisit.from_record(NEXT_VISIT | change).visit(load_camera("lsstcam"), 2025042000123, 1, 30.0)


def test_start_integration_tells_the_image_and_its_group():
    event = StartIntegration.from_record(START)
    assert (event.image, event.exposure, event.first_exposure) == (START["imageName"], 2025042000123, 2025042000122)
    assert (event.exposure_time_s, event.images_in_sequence, event.image_index) == (30.0, 2, 2)
    assert (event.image_type, event.group, event.nsnaps) == ("OBJECT", "2025-04-21T02:24:00.000", 2)
    assert event.more["program"] == "BLOCK-365" and event.stamps.sent_tai == 1745202240.0


def test_colons_of_a_group_that_are_not_escaped():
    event = StartIntegration.from_record(START | {"additionalValues": "FLAT:2025-04-21T02:24:00.000:X"})
    assert (event.image_type, event.group, event.more["program"]) == ("FLAT", "2025-04-21T02:24:00.000", "X")


def test_a_sequence_of_calibrations_is_no_pair_of_snaps():
    event = StartIntegration.from_record(START | {"imagesInSequence": 20, "imageIndex": 7})
    assert (event.nsnaps, event.first_exposure) == (0, event.exposure)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("imageName", "something", "MC_O_YYYYMMDD_NNNNNN"),
        ("imageName", "MC_O_20250420_000123_R22_S11", "MC_O_YYYYMMDD_NNNNNN"),
        ("exposureTime", 1e9, "0 to 3600"),
        ("imageIndex", 3, "0 to 2"),
        ("additionalValues", "OBJECT", "3 values, as additionalKeys has keys"),
    ],
)
def test_bad_fields_of_start_integration(field: str, value: Any, accepted: str):
    with pytest.raises(BadRequest, match=accepted):
        parse("startIntegration", START | {field: value})


def test_a_cancellation_needs_its_group_alone():
    assert parse("nextVisitCanceled", {"groupId": "g"}) == NextVisitCanceled(0, 0, "g")
    with pytest.raises(BadRequest, match=r"nextVisitCanceled\.groupId is missing"):
        parse("nextVisitCanceled", {})


def test_what_is_no_record_of_a_known_kind():
    with pytest.raises(BadRequest, match="nextVisit, nextVisitCanceled, startIntegration"):
        parse("nextvisit", NEXT_VISIT)
    with pytest.raises(BadRequest, match="a record of named fields"):
        parse("nextVisit", [1, 2])
