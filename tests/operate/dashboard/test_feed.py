"""A night as a fold of its records."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from apflow.io.records import RECORDS_FILE, Records
from apflow.model.record import Record
from apflow.operate.dashboard.feed import Durations, Feed
from apflow.simulate.night_records import Troubles
from tests.operate.dashboard.small_night import DETECTORS, ended, number, visits


def fed(folder: Path, *records: Record) -> Feed:
    with Records(folder) as file:
        file.append(*records)
    feed = Feed(folder)
    feed.refresh(math.inf)
    return feed


def done(visit: int, detector: int, latency_s: float, n_alerts: float = 10.0) -> Record:
    return ended(visit, detector, "done", n_alerts=n_alerts, arrived_unix=100.0, published_unix=100.0 + latency_s)


def test_a_night_without_a_folder_is_empty(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "none")
    feed.refresh()
    assert feed.version == 0
    assert feed.newest() is None
    assert math.isnan(feed.verdict()["on_time_fraction"])
    assert math.isnan(feed.latency.percentile(50))


def test_states_alerts_and_latencies(tmp_path: Path) -> None:
    feed = fed(
        tmp_path,
        Record(60.0, "visit", 1, numbers={"n_detectors": 4.0}, instrument="LSSTComCam", band="r"),
        Record(90.0, "step", 1, 0, "calibrate", 88.0, 90.0, 1.9, "w0", "done"),
        done(1, 0, 20.0),
        done(1, 1, 70.0, n_alerts=30.0),
        ended(1, 2, "bad_data"),
    )
    visit = feed.visits[1]
    assert (visit.n_detectors, visit.band, visit.announced_unix, visit.ended) == (4, "r", 60.0, False)
    assert visit.states() == Counter(done=2, bad_data=1)
    assert visit.alerts() == (40, 10)
    assert visit.latencies() == [20.0, 70.0]
    assert visit.detectors[0].steps == [("calibrate", 88.0, 90.0, "w0")]
    assert feed.stages["calibrate"].percentile(50) == pytest.approx(2.0, rel=0.09)
    assert feed.verdict()["on_time_fraction"] == 0.25
    assert feed.verdict()["missed_detector_fraction"] == pytest.approx(1 / 3)
    assert math.isnan(feed.verdict()["late_visit_fraction"])


@pytest.mark.parametrize(
    ("ends", "late", "lost"),
    [
        ([done(1, 0, 20.0)], 0.0, 0.0),
        ([done(1, 0, 20.0, 97.0), done(1, 1, 61.0, 3.0)], 1.0, 0.0),
        ([done(1, 0, 20.0, 99.0), done(1, 1, 61.0, 1.0)], 0.0, 0.0),
        ([ended(1, 0, "done", n_alerts=5.0, arrived_unix=100.0)], 0.0, 1.0),
        ([ended(1, 0, "image_timeout")], 0.0, 1.0),
        ([ended(1, 0, "no_template")], 0.0, 0.0),
    ],
)
def test_verdict_on_a_visit(tmp_path: Path, ends: list[Record], late: float, lost: float) -> None:
    verdict = fed(tmp_path, *ends, Record(130.0, "visit_ended", 1)).verdict()
    assert (verdict["late_visit_fraction"], verdict["lost_visit_fraction"]) == (late, lost)


def test_an_end_that_is_told_again_adds_to_the_first(tmp_path: Path) -> None:
    """The broker was away: the alerts of a detector are published later, its metrics stay."""
    feed = fed(tmp_path, ended(1, 0, "done", n_alerts=5.0, arrived_unix=100.0, psf_fwhm_arcsec=0.8))
    feed.refresh()
    assert (feed.n_alerts, feed.n_unsent, feed.latency.n) == (5, 5.0, 0)
    with Records(tmp_path) as file:
        file.append(Record(130.0, "visit_ended", 1))
    feed.refresh()
    assert feed.verdict()["lost_visit_fraction"] == 1.0
    for published in (165.0, 150.0):
        with Records(tmp_path) as file:
            file.append(ended(1, 0, "done", published_unix=published))
        feed.refresh()
        assert (feed.n_alerts, feed.n_unsent, feed.latency.n) == (5, 0.0, 1)
        assert feed.visits[1].detectors[0].latency_s == published - 100.0
    assert feed.states == Counter(done=1)
    assert feed.latency.total_s == 50.0
    assert feed.visits[1].detectors[0].numbers["psf_fwhm_arcsec"] == 0.8
    verdict = feed.verdict()
    assert (verdict["on_time_fraction"], verdict["late_visit_fraction"], verdict["lost_visit_fraction"]) == (1, 0, 0)


def test_a_failure_that_is_processed_again_counts_once(tmp_path: Path) -> None:
    feed = fed(tmp_path, ended(1, 0, "failed"), done(1, 0, 3000.0))
    assert {state: n for state, n in feed.states.items() if n} == {"done": 1}
    assert feed.verdict()["on_time_fraction"] == 0.0


def test_goes_on_where_it_stopped_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    whole = fed(tmp_path / "whole", *visits(3))
    data = (tmp_path / "whole" / RECORDS_FILE).read_bytes()
    feed = Feed(tmp_path / "parts")
    feed.folder.mkdir()
    versions = set()
    for cut in range(1000, len(data) + 5000, 5000):
        (feed.folder / RECORDS_FILE).write_bytes(data[:cut])
        feed.refresh(math.inf)
        versions.add(feed.version)
        at_rest = feed.version
        feed.refresh(math.inf)
        assert feed.version == at_rest
    assert len(versions) > 10
    assert (feed.states, feed.n_alerts, feed.latency.counts) == (whole.states, whole.n_alerts, whole.latency.counts)
    assert feed.verdict() == whole.verdict()


def test_a_turn_ends_in_time(tmp_path: Path) -> None:
    with Records(tmp_path) as file:
        file.append(*visits(2))
    feed = Feed(tmp_path)
    turns = 0
    while feed.is_behind:
        feed.refresh(0.0)
        turns += 1
    assert turns == len((tmp_path / RECORDS_FILE).read_text().splitlines())


def test_an_older_visit_is_read_again(tmp_path: Path) -> None:
    records = visits(20, Troubles(missed=0.1))
    feed = fed(tmp_path, *records)
    old, new = feed.visits[number(1)], feed.visits[number(20)]
    assert not old.detailed
    assert new.detailed
    fwhm = [r.numbers["psf_fwhm_arcsec"] for r in records if r.visit == number(1) and "psf_fwhm_arcsec" in r.numbers]
    assert old.median("psf_fwhm_arcsec") == pytest.approx(np.median(fwhm))
    again = feed.detailed(number(1))
    assert again is not None
    assert again.states() == old.states()
    assert again.ended
    assert len(again.detectors) == len(DETECTORS)
    steps = [r for r in records if r.visit == number(1) and r.kind == "step"]
    assert sum(len(d.steps) for d in again.detectors.values()) == len(steps)
    assert sorted(d.numbers["psf_fwhm_arcsec"] for d in again.detectors.values() if d.state == "done") == sorted(fwhm)
    assert feed.detailed(number(20)) is new
    assert feed.detailed(1) is None


def test_percentiles_are_good_to_a_bin() -> None:
    times = np.random.default_rng(1).lognormal(0.5, 1.0, 5000)
    durations = Durations()
    for time in times:
        durations.add(float(time))
    for percent in (2, 50, 98):
        assert durations.percentile(percent) == pytest.approx(np.percentile(times, percent), rel=0.09)
    durations.add(1e9)
    durations.add(0.0)
    durations.add(1e9, -1)
    assert durations.n == 5001
    assert durations.counts[-1] == 0


def test_events_and_unsent_alerts(tmp_path: Path) -> None:
    feed = fed(
        tmp_path,
        Record(1.0, "worker", worker="w1", outcome="lost"),
        Record(2.0, "worker", worker="w2", outcome="joined"),
        Record(3.0, "unsent", numbers={"n_unsent_alerts": 17.0}),
    )
    assert feed.events["worker", "lost"] == 1
    assert feed.verdict()["n_unsent_alerts"] == 17.0
