"""The desk: whatever the order in which things are told, the outcome is the same."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from apflow.config import Config, Invocation
from apflow.model.camera import load_camera
from apflow.model.next_visit import NextVisit, NextVisitCanceled, StartIntegration
from apflow.model.sighting import Sighting
from apflow.model.visit import Visit
from apflow.operate.listen.actions import Action, Cancel, Ignore, Prepare, Restart, Start, TimedOut
from apflow.operate.listen.desk import TAI_MINUS_UTC_S, Desk
from apflow.operate.listen.knowledge import Tolerance
from apflow.operate.listen.rules import Rule

CAMERA = load_camera("comcam")
TOLERANCE = Tolerance(0.5, 1.0)
NOW = 1_745_202_200.0
GROUP = "2025-04-21T02:24:00.000"
FIRST = 2025042000123


def next_visit(**change: Any) -> NextVisit:
    record: dict[str, Any] = {
        "groupId": GROUP,
        "coordinateSystem": 2,
        "position": [150.1, -32.0],
        "startTime": NOW + 20.0 + TAI_MINUS_UTC_S,
        "rotationSystem": 2,
        "cameraAngle": 25.0,
        "filters": "r_03",
        "dome": 2,
        "duration": 34.0,
        "nimages": 0,
        "instrument": "LSSTComCam",
        "survey": "BLOCK-365",
        "private_sndStamp": NOW + TAI_MINUS_UTC_S,
    }
    return NextVisit.from_record(record | change)


def integration(snap: int = 1, of: int = 1, **change: Any) -> StartIntegration:
    record = {
        "imageName": f"CC_O_20250420_{123 + snap - 1:06d}",
        "exposureTime": 30.0,
        "imagesInSequence": of,
        "imageIndex": snap,
        "additionalKeys": "imageType:groupId",
        "additionalValues": f"OBJECT:{GROUP}",
    }
    return StartIntegration.from_record(record | change)


def header(detector: int | None = 4, snap: int = 1, nsnaps: int = 1, **change: Any) -> Sighting:
    sighting = Sighting(
        instrument="LSSTComCam",
        group=GROUP,
        exposure=FIRST + snap - 1,
        image=f"CC_O_20250420_{123 + snap - 1:06d}",
        snap=snap,
        nsnaps=nsnaps,
        detector=detector,
        ra_deg=150.1,
        dec_deg=-32.0,
        rotation_deg=25.0,
        physical_filter="r_03",
        band="r",
        exposure_time_s=30.0,
        image_type="OBJECT",
        arrived_unix=NOW + 60.0,
        registered=True,
    )
    return dataclasses.replace(sighting, **change)


def expected_sensors(*detectors: int) -> Sighting:
    unknown = dict.fromkeys(("ra_deg", "dec_deg", "rotation_deg", "exposure_time_s"), math.nan)
    blank = dict.fromkeys(("group", "physical_filter", "band", "image_type"), "")
    return header(None, nsnaps=0, expected=detectors, **unknown, **blank)


CANCEL = NextVisitCanceled(1, 100, GROUP)


@dataclasses.dataclass
class Listener:
    """What a service would do with the actions: one run a visit, never two."""

    desk: Desk
    now: float = NOW
    running: dict[int, Visit] = dataclasses.field(default_factory=dict)
    actions: list[Action] = dataclasses.field(default_factory=list)

    def tell(self, *told: object) -> Listener:
        for one in told:
            self.now += 0.01
            self.apply(
                self.desk.see(one, self.now) if isinstance(one, Sighting) else self.desk.take(one, self.now)  # type: ignore[arg-type]
            )
        return self

    def wait(self, seconds: float) -> Listener:
        self.now += seconds
        self.apply(self.desk.tick(self.now))
        return self

    def end(self, visit: int = FIRST) -> Listener:
        self.apply(self.desk.ended(visit, self.now))
        return self

    def apply(self, actions: Sequence[Action]) -> None:
        self.actions += actions
        for action in actions:
            match action:
                case Restart():
                    assert self.running[action.visit.visit] == action.instead_of
                    self.running[action.visit.visit] = action.visit
                case Start():
                    assert action.visit.visit not in self.running, "started twice"
                    self.running[action.visit.visit] = action.visit
                case Cancel(visit=visit) if visit is not None:
                    assert self.running.pop(visit.visit) == visit

    def kinds(self) -> list[str]:
        return [type(action).__name__ for action in self.actions]


def listener(*rules: Rule, **own: float) -> Listener:
    config = Config(invocation=Invocation(**own))  # type: ignore[arg-type]
    return Listener(Desk(CAMERA, config, rules) if rules else Desk(CAMERA, config))


def same(a: dict[int, Visit], b: dict[int, Visit]) -> bool:
    return a.keys() == b.keys() and all(
        not TOLERANCE.difference(a[v], b[v]) and a[v].images == b[v].images and a[v].group == b[v].group for v in a
    )


HEADER = header().ra_deg, header().physical_filter
STORIES: dict[str, tuple[list[object], dict[int, tuple[float, str, int]]]] = {
    "as it should be": ([next_visit(), integration(), header(3), header(4)], {FIRST: (150.1, "r_03", 1)}),
    "images alone": ([header(3), header(4), header(5)], {FIRST: (150.1, "r_03", 1)}),
    "no startIntegration": ([next_visit(), header(3), header(4)], {FIRST: (150.1, "r_03", 1)}),
    "everything twice": (
        [next_visit(), next_visit(), integration(), integration(), header(4), header(4)],
        {FIRST: (150.1, "r_03", 1)},
    ),
    "wrong pointing": ([next_visit(position=[152.1, -32.0]), integration(), header(3)], {FIRST: (150.1, "r_03", 1)}),
    "wrong filter": ([next_visit(filters="i_06"), integration(), header(3)], {FIRST: (150.1, "r_03", 1)}),
    "open filter": ([next_visit(filters=""), integration(), header(3)], {FIRST: (150.1, "r_03", 1)}),
    "several filters": ([next_visit(filters="r_03,i_06"), integration(), header(3)], {FIRST: (150.1, "r_03", 1)}),
    "wrong sky angle": ([next_visit(cameraAngle=30.0), integration(), header(3)], {FIRST: (150.1, "r_03", 1)}),
    "not quite as announced": (
        [next_visit(position=[150.3, -32.1], cameraAngle=-334.5), integration(), header(3)],
        {FIRST: (150.1, "r_03", 1)},
    ),
    "sent again with other values": (
        [
            next_visit(position=[120.0, -32.0]),
            next_visit(position=[130.0, -32.0], private_sndStamp=NOW + TAI_MINUS_UTC_S + 5.0),
            integration(),
        ],
        {FIRST: (130.0, "r_03", 1)},
    ),
    "cancelled": ([next_visit(), CANCEL, CANCEL, next_visit()], {}),
    "cancelled when the shutter was open": ([next_visit(), integration(), CANCEL], {}),
    "cancelled, and yet it was taken": (
        [next_visit(), integration(), CANCEL, header(3), header(4)],
        {FIRST: (150.1, "r_03", 1)},
    ),
    "two snaps by the camera": ([next_visit(), integration(1, 2), integration(2, 2)], {FIRST: (150.1, "r_03", 2)}),
    "two snaps announced": ([next_visit(nimages=2), header(3, 1, 0)], {FIRST: (150.1, "r_03", 2)}),
    "two snaps seen": ([next_visit(), header(3, 1, 0), header(3, 2, 0)], {FIRST: (150.1, "r_03", 2)}),
    "two announced, one was meant": ([next_visit(nimages=2), integration(), header(3)], {FIRST: (150.1, "r_03", 1)}),
    "one file is wrong": (
        [next_visit(), header(3), header(4), header(0, ra_deg=0.0, dec_deg=0.0)],
        {FIRST: (150.1, "r_03", 1)},
    ),
    "one file is of a wrong group": (
        [next_visit(), header(3), header(4), header(0, group="another")],
        {FIRST: (150.1, "r_03", 1)},
    ),
    "identified by the list of sensors": (
        [next_visit(), expected_sensors(3, 4), header(None), header(4)],
        {FIRST: (150.1, "r_03", 1)},
    ),
    "of no use": ([next_visit(coordinateSystem=3), next_visit(dome=1), next_visit(instrument="LSSTCam")], {}),
    "a calibration": ([integration(additionalValues=f"FLAT:{GROUP}"), header(3, image_type="FLAT")], {}),
}


@pytest.mark.parametrize("name", STORIES)
def test_every_order_ends_alike(name: str):
    told, outcome = STORIES[name]
    orders = list(itertools.permutations(told))
    for order in random.Random(1).sample(orders, min(len(orders), 400)):
        heard = listener().tell(*order).wait(2.0)
        found = heard.running
        assert found.keys() == outcome.keys(), (name, order)
        for first, (ra_deg, physical_filter, nsnaps) in outcome.items():
            assert found[first].ra_deg == pytest.approx(ra_deg, abs=0.5)
            assert (found[first].physical_filter, found[first].nsnaps) == (physical_filter, nsnaps), order
            assert found[first].group == GROUP
        again = len(heard.actions)
        for one in order:
            heard.tell(one)
        assert not {"Start", "Restart", "Cancel", "Prepare"} & set(heard.kinds()[again:]), "told twice, it was new"


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_in_any_order_ends_alike(seed: int):
    """Whatever mixture of true, wrong, double and contradictory words: the outcome is a function of the set."""
    rng = random.Random(seed)
    words: list[Callable[[], object]] = [
        lambda: next_visit(nimages=rng.choice((0, 1, 2)), private_sndStamp=NOW + TAI_MINUS_UTC_S + rng.choice((1, 2))),
        lambda: next_visit(position=[rng.choice((150.1, 155.0)), -32.0], filters=rng.choice(("r_03", "g_01", ""))),
        lambda: integration(rng.choice((1, 2)), 2),
        lambda: header(rng.randrange(9), 1, 2),
        lambda: header(rng.randrange(9), 2, 2),
        lambda: header(rng.randrange(9), 1, 2, ra_deg=rng.choice((150.1, 10.0))),
        lambda: CANCEL,
    ]
    told = [rng.choice(words)() for _ in range(7)]
    outcomes = []
    for _ in range(60):
        rng.shuffle(told)
        outcomes.append(listener().tell(*told).wait(2.0).running)
    assert all(same(outcome, outcomes[0]) for outcome in outcomes)


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
