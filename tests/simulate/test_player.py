"""The player lands complete files on time, and trouble where it is asked for."""

import threading
import time

import numpy as np
import pytest

from apflow.errors import BadRequest, DataError
from apflow.io.fits import read_raw
from apflow.simulate.player import Player, Trouble
from apflow.simulate.raws import render_raw
from apflow.simulate.scenario import Scenario, visits

SCENARIO = Scenario(size=256, detectors=(93, 94, 95, 96, 97), nvisits=2, cadence_s=0.5)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("player")
    troubles = (
        Trouble(94, "missing", visits(SCENARIO)[0].visit),
        Trouble(95, "truncated"),
        Trouble(96, "nan"),
        Trouble(97, "wrong_detector"),
    )
    player = Player(SCENARIO, folder / "staging", folder / "landing", 2, troubles, spread_s=0.2)
    steps, events = [], []
    truth = player.render(lambda done, total: steps.append((done, total)))
    player.play(
        lambda visit: events.append(("announced", visit.visit, time.monotonic())),
        lambda visit, detector, path: events.append((detector, visit.visit, time.monotonic(), path)),
        lead_s=0.1,
    )
    return player, truth, steps, events


def test_progress_and_truth_cover_every_detector_visit(played):
    _, truth, steps, _ = played
    assert steps[-1] == (10, 10)
    expected = {(v.visit, d) for v in visits(SCENARIO) for d in SCENARIO.detectors}
    assert set(truth.groupby(["visit", "detector"]).groups) == expected


def test_files_are_those_that_are_rendered_here(played):
    player, truth, _, _ = played
    visit = visits(SCENARIO)[0]
    raw, table = render_raw(SCENARIO, visit, 0, 93)
    landed = read_raw(player.landing / f"{visit.images[0]}_R22_S10.fits")
    assert all(np.array_equal(landed.segments[name], raw.segments[name]) for name in raw.segments)
    mine = truth[(truth["visit"] == visit.visit) & (truth["detector"] == 93)]
    assert set(mine["truth_id"]) == set(table["truth_id"])


def test_troubles_are_as_asked_for(played):
    player, _, _, events = played
    first, second = visits(SCENARIO)
    names = {path.name for path in player.landing.iterdir()}
    assert len(names) == 9
    assert f"{first.images[0]}_R22_S11.fits" not in names
    assert f"{second.images[0]}_R22_S11.fits" in names
    assert not list(player.staging.iterdir())
    with pytest.raises(DataError):
        read_raw(player.landing / f"{first.images[0]}_R22_S12.fits")
    blank = read_raw(player.landing / f"{first.images[0]}_R22_S20.fits")
    assert all(np.isnan(segment).all() for segment in blank.segments.values())
    wrong = read_raw(player.landing / f"{first.images[0]}_R22_S21.fits")
    assert wrong.info.detector != 97
    assert len([e for e in events if e[0] != "announced"]) == 9


def test_visits_keep_their_cadence(played):
    _, _, _, events = played
    announced = [e[2] for e in events if e[0] == "announced"]
    assert announced[1] - announced[0] == pytest.approx(0.5, abs=0.4)
    for visit, start in zip(visits(SCENARIO), announced, strict=True):
        arrivals = [e[2] - start for e in events if e[0] != "announced" and e[1] == visit.visit]
        assert min(arrivals) > 0.09 and max(arrivals) < 1.5


def test_play_can_be_stopped(tmp_path):
    stop = threading.Event()
    stop.set()
    player = Player(SCENARIO, tmp_path / "staging", tmp_path / "landing")
    player.play(stop=stop)
    assert not list(player.landing.iterdir())


def test_unknown_trouble_is_refused():
    with pytest.raises(BadRequest, match="wrong_detector"):
        Trouble(94, "gremlins")
