"""The desk: what is decided of visits, and why."""

from __future__ import annotations

from typing import Any

import pytest

from apflow.config import Config
from apflow.operate.listen.actions import Cancel, Ignore, Prepare, Restart, Start, TimedOut
from apflow.operate.listen.desk import TAI_MINUS_UTC_S
from apflow.operate.listen.rules import Rule
from tests.operate.told import CANCEL, FIRST, GROUP, NOW, expected_sensors, header, integration, listener, next_visit


def test_what_is_announced_is_prepared_once_and_started_when_it_is_identified():
    heard = listener().tell(next_visit(), next_visit(), integration(), header(3), header(4))
    assert heard.kinds() == ["Prepare", "Ignore", "Start"]
    prepare, _, start = heard.actions
    assert isinstance(prepare, Prepare) and isinstance(start, Start)
    assert prepare.visit.visit // 100_000 == 20250420 and prepare.visit.group == GROUP
    assert (start.visit.visit, start.visit.images, start.graph) == (
        FIRST,
        ("CC_O_20250420_000123",),
        "alert_production",
    )
    assert start.exposing_s == pytest.approx(32.5), "the image cannot be there before the shutter closes"
    again = listener().tell(next_visit(), next_visit(position=[151.0, -30.0], private_sndStamp=NOW + 99.0))
    assert again.kinds() == ["Prepare", "Prepare"], "other values are prepared, too"


def test_expected_sensors_limit_the_detectors():
    heard = listener().tell(next_visit(), expected_sensors(3, 4), header(3))
    (start,) = [action for action in heard.actions if isinstance(action, Start)]
    assert start.detectors == (3, 4)


def test_an_image_that_nothing_announced_waits_for_a_short_grace():
    heard = listener(header_grace_s=3.0).tell(header(3))
    assert heard.kinds() == [] and heard.desk.due_unix() == pytest.approx(heard.now + 3.0)
    assert heard.wait(2.9).kinds() == []
    assert heard.wait(0.2).kinds() == ["Start"]
    assert heard.actions[0].exposing_s == 0.0  # type: ignore[union-attr]
    assert listener(header_grace_s=3.0).tell(header(3), next_visit()).kinds() == ["Start"]


def test_a_wrong_announcement_restarts_once_with_the_reason():
    heard = listener().tell(next_visit(position=[152.1, -32.0]), integration(), header(3), header(4), header(5))
    assert heard.kinds() == ["Prepare", "Start", "Restart"]
    restart = heard.actions[-1]
    assert isinstance(restart, Restart) and "pointing off by 1.70 deg" in restart.reason
    assert "sky angle off by 5.00" in restart_reason(cameraAngle=30.0)
    assert "filter r_03, not i_06" in restart_reason(filters="i_06")


def restart_reason(**change: Any) -> str:
    actions = listener().tell(next_visit(**change), integration(), header(3)).actions
    (restart,) = [action for action in actions if isinstance(action, Restart)]
    return restart.reason


def test_a_cancelled_group_ends_its_waiting_at_once():
    heard = listener().tell(next_visit(), CANCEL)
    assert heard.actions[-1] == Cancel(GROUP, None, "nextVisitCanceled")
    assert heard.desk.waiting() == [] and heard.desk.due_unix() is None
    started = listener().tell(next_visit(), integration(), CANCEL)
    assert isinstance(started.actions[-1], Cancel) and started.actions[-1].visit is not None
    seen = listener().tell(next_visit(), integration(), header(3), CANCEL)
    assert "Cancel" not in seen.kinds(), "its images are there: the visit has been"


@pytest.mark.parametrize("filters", ["r_03", ""])
def test_an_event_whose_images_never_come_times_out(filters: str):
    heard = listener().tell(next_visit(filters=filters))
    due = heard.desk.due_unix()
    assert due == pytest.approx(NOW + 20.0 + 34.0 + Config().timing.image_timeout_s)
    heard.wait(due - heard.now - 0.1)
    assert "TimedOut" not in heard.kinds()
    heard.wait(0.2).wait(100.0)
    assert heard.kinds().count("TimedOut") == 1 and heard.desk.waiting() == []
    heard.tell(header(3)).wait(2.0)
    assert FIRST in heard.running, "images that come after all are processed"


def test_an_open_filter_whose_exposure_is_known_times_out_too():
    heard = listener().tell(next_visit(filters=""), integration()).wait(300.0)
    assert [type(a) for a in heard.actions if not isinstance(a, Ignore)] == [TimedOut]


def test_what_comes_after_the_end_starts_nothing():
    heard = listener().tell(next_visit(), integration()).end()
    heard.tell(header(3), header(4), CANCEL, integration(), next_visit(position=[100.0, 0.0], private_sndStamp=2e9))
    assert heard.kinds()[:2] == ["Prepare", "Start"] and set(heard.kinds()[2:]) == {"Ignore"}
    assert any(isinstance(a, Ignore) and "its visit has ended" in a.reason for a in heard.actions)


def test_a_run_that_ended_before_its_wrong_announcement_was_seen_is_made_anew():
    """All detectors may end as misannounced before the desk hears of a header."""
    heard = listener().tell(next_visit(position=[152.1, -32.0]), integration()).end().tell(header(3))
    assert heard.kinds() == ["Prepare", "Start", "Restart"]
    assert heard.running[FIRST].ra_deg == 150.1


def test_old_announcements_are_dropped():
    old = next_visit(private_sndStamp=NOW + TAI_MINUS_UTC_S - 3700.0)
    (ignored,) = listener().tell(old).actions
    assert isinstance(ignored, Ignore) and "3700 s old; accepted: up to 3600" in ignored.reason
    assert listener(max_age_s=4000.0).tell(old).kinds() == ["Prepare"]
    assert listener().tell(old, header(3)).wait(2.0).kinds()[-1] == "Start"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (next_visit(coordinateSystem=3), "coordinateSystem OBSERVED"),
        (next_visit(rotationSystem=4), "rotationSystem MOUNT"),
        (next_visit(instrument="LATISS"), "accepted: LSSTComCam"),
        (next_visit(filters="r_57"), "has no filter 'r_57'"),
        (integration(imageName="MC_O_20250420_000123"), "no image of LSSTComCam"),
        (header(instrument="LSSTCam"), "is of LSSTCam"),
        (header(physical_filter="r_57"), "has filter 'r_57'"),
    ],
)
def test_what_is_not_for_this_camera_is_ignored_with_the_reason(told: object, why: str):
    (ignored,) = listener().tell(told).wait(5.0).actions
    assert isinstance(ignored, Ignore) and why.removeprefix("accepted: ") in ignored.reason


def test_rules_decide_by_what_is_known_in_the_end():
    rules = (Rule("ignore", survey=("BLOCK-T*",)), Rule("alert_production", image_type=("OBJECT",), filters=("r",)))
    assert listener(*rules).tell(next_visit(survey="BLOCK-T7"), integration(), header(3)).wait(2).kinds() == ["Ignore"]
    assert listener(*rules).tell(next_visit(filters="g")).wait(900.0).kinds() == ["Ignore"], "not waited for either"
    turned = listener(*rules).tell(next_visit(), integration(), header(3, image_type="FLAT"))
    assert turned.kinds() == ["Prepare", "Start", "Cancel"]
    late = listener(*rules).tell(header(3)).wait(2.0).tell(next_visit(survey="BLOCK-T7"))
    assert late.running == {}


def test_visits_of_one_group_are_kept_apart_by_their_exposures():
    other = {"imageName": "CC_O_20250420_000200"}
    heard = listener().tell(next_visit(), integration(), integration(**other))
    assert list(heard.running) == [FIRST, 2025042000200]


def test_what_is_over_is_forgotten():
    heard = listener().tell(next_visit(), integration(), header(3)).end().wait(10_000.0)
    assert not heard.desk._shots and not heard.desk._groups
    kept = listener().tell(next_visit(), integration()).wait(10_000.0)
    assert kept.desk._shots, "what runs is not forgotten"
