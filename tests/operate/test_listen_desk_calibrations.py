"""The desk: calibrations start their own graph, in whatever order they are told of, and are never a visit (D5)."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from apflow.model.calibration import CalibrationExposure, Intent
from apflow.model.ids import image_name
from apflow.model.next_visit import StartIntegration
from apflow.model.sighting import Sighting
from apflow.operate.listen.actions import Cancel, Ignore, Restart, Start
from apflow.operate.listen.rules import Rule
from tests.operate.told import (
    CANCEL,
    FIRST,
    GROUP,
    Listener,
    expected_sensors,
    header,
    integration,
    listener,
    next_visit,
)

FLATS = "2025-04-20T20:00:00.000"
NAN = math.nan


def opened(image_type: str = "FLAT", n: int = 0, of: int = 1, **change: Any) -> StartIntegration:
    """startIntegration of the n-th of some calibrations."""
    record = {
        "imageName": image_name(FIRST + n, "CC_O"),
        "exposureTime": 5.0,
        "additionalValues": f"{image_type}:{FLATS}",
    }
    return integration(n + 1, max(of, n + 1), **(record | change))


def seen(image_type: str = "FLAT", detector: int | None = 4, n: int = 0, of: int = 1, **change: Any) -> Sighting:
    """The header of its image: without pointing."""
    told = {
        "exposure": FIRST + n,
        "image": image_name(FIRST + n, "CC_O"),
        "group": FLATS,
        "image_type": image_type,
        "exposure_time_s": 5.0,
    }
    nowhere = {"ra_deg": NAN, "dec_deg": NAN, "rotation_deg": NAN, "physical_filter": "", "band": ""}
    return header(detector, n + 1, of, **(nowhere | told | change))


R = {"physical_filter": "r_03", "band": "r"}
BY_FILTER = {"additionalKeys": "imageType:groupId:filter", "additionalValues": f"FLAT:{FLATS}:r_03"}
FLAT, BIAS = Intent.FLAT, Intent.BIAS
#: What is told, and what runs in the end: calibrations by exposure with intent and filter, and visits.
STORIES: dict[str, tuple[list[object], dict[int, tuple[Intent, str]], set[int]]] = {
    "an event without images": ([opened("BIAS", exposureTime=0.0)], {FIRST: (BIAS, "")}, set()),
    "an event, then images": ([opened("BIAS"), seen("BIAS", 3), seen("BIAS", 4)], {FIRST: (BIAS, "")}, set()),
    "images alone": ([seen("DARK", 3), seen("DARK", 4), seen("DARK", None)], {FIRST: (Intent.DARK, "")}, set()),
    "everything twice": ([opened("CBP"), opened("CBP"), seen("CBP"), seen("CBP")], {FIRST: (Intent.CBP, "")}, set()),
    "two flats of a pair": (
        [opened(n=0, of=2), opened(n=1, of=2), seen(n=0, of=2, **R), seen(n=1, of=2, **R)],
        {FIRST: (FLAT, "r_03"), FIRST + 1: (FLAT, "r_03")},
        set(),
    ),
    "two flats, images alone": (
        [seen(n=1, of=2), seen(n=0, of=2), seen(detector=5, n=1, of=2)],
        {FIRST: (FLAT, ""), FIRST + 1: (FLAT, "")},
        set(),
    ),
    "a wrong filter announced": (
        [opened(**BY_FILTER), seen(physical_filter="g_01", band="g")],
        {FIRST: (FLAT, "g_01")},
        set(),
    ),
    "another intent announced": ([opened("BIAS"), seen("DARK")], {FIRST: (Intent.DARK, "")}, set()),
    "announced twice, once wrong": (
        [opened("FLAT"), opened("OBJECT"), next_visit(groupId=FLATS)],
        {FIRST: (FLAT, "")},
        set(),
    ),
    "announced as a visit": (
        [next_visit(groupId=FLATS), opened("OBJECT"), seen("FLAT", 3)],
        {FIRST: (FLAT, "")},
        set(),
    ),
    "announced as two snaps": (
        [next_visit(groupId=FLATS, nimages=2), opened("", 0, 2), opened("", 1, 2), seen("FLAT", n=1, of=2)],
        {FIRST + 1: (FLAT, "")},
        set(),
    ),
    "announced as a flat, and of the sky": (
        [opened("FLAT"), header(3, group=FLATS), header(4, group=FLATS)],
        {},
        {FIRST},
    ),
    "one header of many is wrong": (
        [header(3), header(4), seen("FLAT", 5), integration()],
        {},
        {FIRST},
    ),
    "most headers say so": (
        [integration(), seen("FLAT", 3, **R), seen("FLAT", 5, **R), header(4)],
        {FIRST: (FLAT, "r_03")},
        set(),
    ),
    "between visits": (
        [next_visit(), integration(), header(3), opened("BIAS", 1), seen("BIAS", 3, 1), CANCEL],
        {FIRST + 1: (BIAS, "")},
        {FIRST},
    ),
    "by the list of sensors": (
        [expected_sensors(3, 4), opened("DARK"), seen("DARK")],
        {FIRST: (Intent.DARK, "")},
        set(),
    ),
    "of no use": (
        [opened(imageName="MC_O_20250420_000123"), seen(physical_filter="r_57"), seen(exposure_time_s=-4.0)],
        {},
        set(),
    ),
}


def outcome(heard: Listener) -> tuple[dict[int, CalibrationExposure], set[int]]:
    assert not heard.calibrations.keys() & {
        e for v in heard.running.values() for e in range(v.visit, v.visit + v.nsnaps)
    }
    return heard.calibrations, set(heard.running)


@pytest.mark.parametrize("name", STORIES)
def test_every_order_ends_alike(name: str):
    told, calibrations, visits = STORIES[name]
    orders = list(itertools.permutations(told))
    for order in random.Random(1).sample(orders, min(len(orders), 400)):
        heard = listener().tell(*order).wait(2.0)
        found, running = outcome(heard)
        assert running == visits, order
        assert found.keys() == calibrations.keys(), order
        for exposure, (intent, physical_filter) in calibrations.items():
            one = found[exposure]
            assert one.intent is intent and one.physical_filter in ("", physical_filter), order
            assert (one.image, one.group) == (image_name(exposure, "CC_O"), FLATS)
        again = len(heard.actions)
        heard.tell(*order)
        assert not {"Start", "Restart", "Cancel", "Prepare"} & set(heard.kinds()[again:]), "told twice, it was new"


@pytest.mark.parametrize("seed", range(30))
def test_any_mixture_in_any_order_ends_alike(seed: int):
    """True, wrong, double and contradictory words of two exposures: what they become is a function of the set."""
    rng = random.Random(seed)
    types = ("FLAT", "BIAS", "OBJECT")
    words: list[Callable[[], object]] = [
        lambda: opened(rng.choice((*types, "")), rng.randrange(2), 2),
        lambda: seen(rng.choice(types[:2]), rng.randrange(9), rng.randrange(2), 2),
        lambda: seen("FLAT", rng.randrange(9), rng.randrange(2), 2, **R),
        lambda: header(rng.randrange(9), rng.choice((1, 2)), 2, group=FLATS),
        lambda: next_visit(groupId=FLATS, nimages=rng.choice((0, 2))),
    ]
    told = [rng.choice(words)() for _ in range(7)]
    outcomes = []
    for _ in range(60):
        rng.shuffle(told)
        calibrations, visits = outcome(listener().tell(*told).wait(2.0))
        outcomes.append(({e: c.intent for e, c in calibrations.items()}, visits))
    assert all(one == outcomes[0] for one in outcomes)


def test_an_event_starts_it_at_once_and_says_when_the_image_can_be_there():
    heard = listener().tell(opened(**BY_FILTER, exposureTime=30.0))
    (start,) = heard.actions
    assert isinstance(start, Start) and start.graph == "raw_calibration" and start.exposing_s == pytest.approx(32.5)
    assert start.visit == CalibrationExposure("LSSTComCam", FIRST, FLATS, FLAT, "r_03", 30.0, "CC_O_20250420_000123")
    assert heard.desk.due_unix() is None and heard.desk.waiting() == []
    (late,) = listener().tell(seen()).actions
    assert isinstance(late, Start) and late.exposing_s == 0.0, "no grace: there is no nextVisit to wait for"


def test_twenty_five_in_a_row_are_twenty_five():
    heard = listener()
    for n in range(25):
        heard.tell(opened("BIAS", n, 25))
        if n:
            heard.tell(*(seen("BIAS", d, n - 1, 25) for d in range(9)))
            heard.end(FIRST + n - 1)
    assert heard.kinds() == ["Start"] * 25
    assert list(heard.calibrations) == [FIRST + n for n in range(25)] and heard.running == {}
    assert len({exposure.visit for exposure in heard.calibrations.values()}) == 25


def test_a_sidecar_without_an_exposure_time_waits_for_one_that_tells_it():
    heard = listener().tell(seen("DARK", exposure_time_s=NAN))
    assert heard.kinds() == []
    assert heard.tell(seen("DARK", 5)).kinds() == ["Start"]


def test_another_intent_or_filter_begins_anew_with_the_reason():
    heard = listener().tell(opened("BIAS"), seen("FLAT", **R), seen("FLAT", 5, **R))
    assert heard.kinds() == ["Start", "Restart"]
    restart = heard.actions[-1]
    assert isinstance(restart, Restart) and "intent flat, not bias" in restart.reason
    restart = listener().tell(opened(**BY_FILTER), seen(physical_filter="g_01", band="g")).actions[-1]
    assert isinstance(restart, Restart) and "filter g_01, not r_03" in restart.reason
    ended = listener().tell(opened("BIAS")).end().tell(seen("FLAT"))
    assert ended.kinds() == ["Start", "Restart"], "all its detectors were found misannounced before"


def test_it_is_cancelled_alone():
    """Other exposures of its group go on, so no group is cancelled."""
    heard = listener().tell(opened(n=0), opened(n=1), header(3, group=FLATS), header(4, group=FLATS)).wait(2.0)
    (cancel,) = [action for action in heard.actions if isinstance(action, Cancel)]
    assert cancel.group == "" and cancel.visit is not None and "it is OBJECT" in cancel.reason
    assert set(heard.calibrations) == {FIRST + 1} and set(heard.running) == {FIRST}
    assert "Cancel" not in listener().tell(opened(additionalValues=f"FLAT:{GROUP}"), CANCEL).kinds()[1:-1]


def test_what_comes_after_the_end_starts_nothing():
    heard = listener().tell(opened("BIAS")).end().tell(seen("BIAS"), seen("BIAS", 5), opened("BIAS"))
    assert heard.kinds() == ["Start", "Ignore", "Ignore"]
    late, again = heard.actions[1:]
    assert late == Ignore(f"image {image_name(FIRST, 'CC_O')}", "its exposure has ended")
    assert isinstance(again, Ignore) and again.reason == "it came before"


def test_expected_sensors_limit_the_detectors():
    (start,) = listener().tell(expected_sensors(3, 4), opened()).actions
    assert isinstance(start, Start) and start.detectors == (3, 4)


def test_rules_route_calibrations_and_never_to_another_graph():
    visits = Rule("alert_production")
    (ignored,) = listener(visits).tell(opened(), seen()).actions
    assert isinstance(ignored, Ignore) and ignored.reason == "no rule takes it" and ignored.kept
    biases = (Rule("raw_calibration", image_type=("BIAS",)), visits)
    visit = (next_visit(), integration(imageName="CC_O_20250420_000200"))
    heard = listener(*biases).tell(opened("BIAS"), opened("FLAT", 1), *visit)
    assert list(heard.calibrations) == [FIRST] and list(heard.running) == [2025042000200]
    assert listener(Rule("raw_calibration"), visits).tell(next_visit(), integration()).kinds() == ["Prepare", "Start"]
    by_filter = Rule("raw_calibration", filters=("g",))
    assert listener(by_filter).tell(opened(**BY_FILTER)).calibrations == {}
    assert listener(by_filter).tell(opened("BIAS")).calibrations.keys() == {FIRST}


def test_a_service_that_begins_anew_goes_on_where_it_was():
    before = listener().tell(opened("BIAS", 0), opened("BIAS", 1)).end()
    running = before.calibrations
    after = listener()
    after.tell(opened("BIAS", 0), opened("BIAS", 1))
    for exposure in running.values():
        after.desk.resume(exposure, "raw_calibration", False, after.now)
    after.desk.ended(running[FIRST], after.now)
    assert [start.visit for start in after.desk.unfinished()] == [running[FIRST + 1]]  # type: ignore[union-attr]
    # Told but not written down as started.
    lost = listener().tell(opened("BIAS"))
    assert len(list(lost.desk.unfinished())) == 1


def test_what_is_over_is_forgotten_and_what_runs_is_not():
    heard = listener().tell(opened("BIAS"), seen("BIAS")).end().wait(10_000.0)
    heard.calibrations.clear()
    assert heard.tell(seen("BIAS")).kinds() == ["Start", "Start"], "nothing is known of it any more"
    kept = listener().tell(opened("BIAS")).wait(10_000.0).tell(seen("BIAS"))
    assert kept.kinds() == ["Start"]
