"""The numbers of a run add up, whatever became of its detectors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apflow.model.ledger import Outcome, State, StepRecord
from apflow.operate.meter import Meter
from apflow.operate.summary import ledger_frame, summarise

BEGUN = 1000.0


def outcome(detector: int, state: State = State.DONE, arrived: float | None = None, took_s: float = 2.0) -> Outcome:
    published = None if arrived is None or state is not State.DONE else arrived + took_s
    steps = (StepRecord("calibrate", 0.0, took_s, took_s / 2, "ccd-0"),)
    return Outcome(
        "LSSTComCam", 1, detector, state, n_alerts=3 * (state is State.DONE), arrived_unix=arrived,
        published_unix=published, steps=steps,
    )  # fmt: skip


def summary(outcomes: list[Outcome], expected: int, processed: int, meter: Meter | None = None) -> dict[str, Any]:
    gathers = [StepRecord("write_ppdb", 0.0, 1.0, 0.5, "gather-0")]
    return summarise(
        outcomes, expected, {"purity": float("nan")}, processed=processed, since_unix=BEGUN, gathers=gathers,
        meter=meter or Meter(), wall_s=9.0, seed=4,
    )  # fmt: skip


def test_every_state_is_there_and_they_add_up():
    ended = [outcome(d, state, BEGUN + d) for d, state in enumerate(State)]
    made = summary(ended, len(ended), len(ended))
    states = dict(made["detector_visits"])
    assert states.pop("expected") == sum(states.values()) == len(State)
    assert set(states.values()) == {1}
    assert made["alerts"] == 3


def test_a_detector_visit_that_is_lost_or_doubled_is_noticed():
    with pytest.raises(AssertionError, match="do not add up to 2"):
        summary([outcome(1)], 2, 1)
    with pytest.raises(AssertionError, match="do not add up to 2"):
        summary([outcome(1), outcome(1)], 2, 2)


def test_latency_counts_images_that_came_during_the_run():
    ended = [outcome(1, arrived=BEGUN - 500, took_s=600), *(outcome(d, arrived=BEGUN + 1, took_s=d) for d in (2, 3, 4))]
    latency = summary(ended, 4, 4)["latency_s"]
    assert latency["max"] == pytest.approx(4.0)
    assert latency["p50"] == pytest.approx(3.0)


def test_costs_are_those_of_what_this_run_processed():
    before = Outcome("LSSTComCam", 1, 9, State.DONE)
    made = summary([before, outcome(1), outcome(2)], 3, 2, Meter(core_s=6.0))
    assert made["core_s_per_detector"] == pytest.approx(3.0)
    assert made["stages"]["calibrate"]["core_s"] == pytest.approx(2.0)
    assert made["stages"]["calibrate"]["core_s_per_detector"] == pytest.approx(1.0)
    assert made["stages"]["write_ppdb"]["core_s"] == pytest.approx(0.5)


def test_nothing_that_json_cannot_say():
    made = summary([outcome(1, State.FAILED)], 1, 0)
    text = json.dumps(made, allow_nan=False)
    assert json.loads(text)["score"]["purity"] is None
    assert made["latency_s"] == {"p50": None, "p95": None, "p98": None, "max": None}


def test_the_ledger_has_a_row_each_with_its_cause_and_metrics():
    lost = Outcome("LSSTComCam", 1, 2, State.IMAGE_TIMEOUT, cause="no image", step="await_science_images")
    done = Outcome(
        "LSSTComCam", 1, 1, State.DONE, arrived_unix=5.0, published_unix=7.5, metrics={"n_sources": 1.0, "seeing": 0.8}
    )
    frame = ledger_frame([done, lost]).set_index("detector")
    assert list(frame["state"]) == ["done", "image_timeout"]
    assert frame.loc[1, "latency_s"] == 2.5 and frame.loc[1, "seeing"] == 0.8
    assert frame.loc[2, "cause"] == "no image" and frame["latency_s"].isna()[2]
