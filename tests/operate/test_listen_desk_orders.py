"""The desk: whatever the order in which things are told, the outcome is the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from apflow.operate.listen.desk import TAI_MINUS_UTC_S
from tests.operate.told import (
    CANCEL,
    FIRST,
    GROUP,
    NOW,
    expected_sensors,
    header,
    integration,
    listener,
    next_visit,
    same,
)

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
