"""The report of a night: figures from made-up records whose troubles are known, and the page of a real replay."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from apflow.io.records import Records, night_folder
from apflow.model.camera import load_camera
from apflow.model.ledger import State
from apflow.model.record import Record
from apflow.operate.night.ranges import load_ranges, metric_choices
from apflow.operate.night.report_figures import performance
from apflow.operate.night.report_page import page
from apflow.operate.night.report_quality import quality
from apflow.operate.night.report_tables import collect
from apflow.simulate.night_records import Troubles, made_up_night
from tests.operate.command import apflow

CAMERA, RANGES = load_camera("comcam"), load_ranges()
DETECTORS, N_VISITS, DAY = CAMERA.select("science"), 30, 20260401
NIGHT = tuple(
    made_up_night(CAMERA, DETECTORS, N_VISITS, DAY, troubles=Troubles(missed=0.05, retried=0.1, bad_detector=4))
)
ENDED = [r for r in NIGHT if r.kind == "ended"]


def figures(records, outbox=None, stored=None, limit_s=60.0):
    return performance(collect(records), limit_s, RANGES, outbox or {}, stored)


def test_made_up_night_is_the_same_each_time_and_survives_its_lines():
    again = tuple(
        made_up_night(CAMERA, DETECTORS, N_VISITS, DAY, troubles=Troubles(missed=0.05, retried=0.1, bad_detector=4))
    )
    assert again == NIGHT
    assert all(Record.from_line(r.to_line()) == r for r in NIGHT[:500])


def test_states_add_up_to_visits_times_live_ccds():
    found = figures(NIGHT)
    assert found["adds_up"] and found["differences"] == []
    assert found["expected"] == {
        "visits": N_VISITS,
        "detectors_a_visit": [len(DETECTORS)],
        "detector_visits": N_VISITS * len(DETECTORS),
    }
    failed = sum(r.outcome == State.FAILED for r in ENDED)
    assert failed > 3 and found["states"]["failed"] == failed
    assert found["sum_of_states"] == sum(found["states"].values()) == N_VISITS * len(DETECTORS)
    [row] = found["missed"]
    assert (row["n"], row["step"], row["cause"]) == (failed, "subtract", "no kernel fits: 3 stamps of 9")


def test_a_detector_visit_without_an_end_is_told_by_its_visit():
    lost = next(r for r in ENDED if r.outcome == State.DONE)
    found = figures([r for r in NIGHT if r is not lost])
    assert not found["adds_up"]
    assert found["differences"] == [f"visit {lost.visit}: 9 detectors expected, 8 came to an end"]


def test_an_end_that_nobody_expected_and_a_state_that_is_none_are_told():
    odd = dataclasses.replace(ENDED[0], visit=DAY * 100_000 + 999, outcome="stored")
    differences = figures([*NIGHT, odd])["differences"]
    assert differences == [
        f"visit {odd.visit}: 0 detectors expected, 1 came to an end",
        "state 'stored' is no terminal state",
    ]


def test_ledger_that_says_otherwise_does_not_add_up():
    states = {str(s): sum(r.outcome == s for r in ENDED) for s in State}
    assert figures(NIGHT, stored=states)["adds_up"]
    states["done"] -= 1
    [text] = figures(NIGHT, stored=states)["differences"]
    assert text == f"done: {states['done'] + 1} in the records, {states['done']} in the PPDB's ledger"
    assert not figures(NIGHT, stored={})["adds_up"]


def test_what_ended_twice_counts_once_and_is_recovered():
    """A detector that failed and was processed again: the last word counts, and the first is remembered."""
    failed = next(r for r in ENDED if r.outcome == State.FAILED)
    before = figures(NIGHT)
    numbers = {"arrived_unix": 1.0, "published_unix": 9.0, "n_alerts": 3.0}
    again = dataclasses.replace(failed, outcome=State.DONE, step="", cause="", numbers=numbers)
    found = figures([*NIGHT, again])
    assert found["adds_up"] and found["states"]["failed"] == before["states"]["failed"] - 1
    rows = [r for r in found["recovered"] if r["how"] == "processed again later"]
    assert rows == [{"how": "processed again later", "what": "failed: no kernel fits: 3 stamps of 9", "n": 1}]


def test_metrics_of_an_earlier_success_do_not_stay_with_a_failure():
    good = next(r for r in ENDED if r.outcome == State.DONE)
    tables = collect([*NIGHT, dataclasses.replace(good, outcome=State.FAILED, cause="gone", numbers={})])
    row = tables.detectors.set_index(["visit", "detector"]).loc[(good.visit, good.detector)]
    assert row["state"] == "failed" and np.isnan(row["psf_fwhm_arcsec"]) and row["n_alerts"] == 0


def test_retries_count_where_the_detector_is_done_all_the_same():
    found = figures(NIGHT)["recovered"]
    done = {(r.visit, r.detector) for r in ENDED if r.outcome == State.DONE}
    again = {(r.visit, r.detector) for r in NIGHT if r.kind == "step" and r.attempt > 1}
    assert sum(r["n"] for r in found if r["how"] == "step run again") == len(again & done) > 10


def test_lost_workers_and_schedulers_and_shed_work_are_listed():
    visit = ENDED[0].visit
    events = [
        Record(1.0, "worker", outcome="lost", worker="w"),
        Record(2.0, "cluster", outcome="recovered"),
        Record(3.0, "night", outcome="resumed"),
        Record(4.0, "shed", visit, 3, "force_photometry", cause="45 s after the end of readout"),
    ]
    found = figures([*NIGHT, *events])
    assert {r["how"] for r in found["recovered"]} >= {
        "worker lost",
        "scheduler or cluster recovered",
        "driver resumed",
    }
    assert found["left_out"] == [
        {"kind": "shed", "step": "force_photometry", "cause": "45 s after the end of readout", "n": 1}
    ]


def test_latency_and_verdict_are_those_of_the_ends():
    late = [r.numbers["published_unix"] - r.numbers["arrived_unix"] for r in ENDED if r.outcome == State.DONE]
    found = figures(NIGHT)
    assert found["latency_s"]["p98_s"] == pytest.approx(np.percentile(late, 98))
    assert found["latency_s"]["n"] == len(late)
    verdict = {v["metric"]: v for v in found["verdict"]}
    assert verdict["on_time_fraction"]["value"] == 1.0 and verdict["on_time_fraction"]["verdict"] == "acceptable"
    assert verdict["missed_detector_fraction"]["value"] == pytest.approx(found["states"]["failed"] / len(ENDED))
    # A limit that half of the alerts do not keep.
    strict = {v["metric"]: v for v in figures(NIGHT, limit_s=float(np.median(late)))["verdict"]}
    assert strict["on_time_fraction"]["verdict"] == strict["late_visit_fraction"]["verdict"] == "alert"
    assert 0.3 < strict["on_time_fraction"]["value"] < 0.7


def test_visit_that_came_to_nothing_is_lost_and_one_without_templates_is_not():
    visits = sorted({r.visit for r in ENDED})

    def all_end(state):
        return [
            dataclasses.replace(r, outcome=state, numbers={}) if r.kind == "ended" and r.visit == visits[3] else r
            for r in NIGHT
        ]

    lost = {s: {v["metric"]: v["value"] for v in figures(all_end(s))["verdict"]}["lost_visit_fraction"] for s in State}
    assert lost[State.FAILED] == lost[State.IMAGE_TIMEOUT] == pytest.approx(1 / N_VISITS)
    assert lost[State.NO_TEMPLATE] == lost[State.CANCELLED] == 0.0


def test_outbox_stands_before_the_records():
    counts = {"stored": 10, "published": 8, "unsent": 2, "withdrawn": 0, "refused": 0}
    found = figures(NIGHT, outbox=counts)
    assert {k: found["alerts"][k] for k in counts} == counts
    assert next(v for v in found["verdict"] if v["metric"] == "n_unsent_alerts")["verdict"] == "warning"


def test_every_metric_is_there_with_its_range():
    found = quality(collect(NIGHT), RANGES)
    named = {row["metric"] for row in found["metrics"]}
    assert named >= {c.name for c in metric_choices()}
    sky = {row["band"]: row for row in found["metrics"] if row["metric"] == "sky_mag_arcsec2"}
    assert set(sky) == {r.band for r in NIGHT if r.kind == "visit"} and len(sky) > 1
    assert all(row["warning"] and row["verdict"] == "acceptable" for row in sky.values())


def test_worst_detector_and_its_metric_stand_first():
    found = quality(collect(made_up_night(CAMERA, DETECTORS, 12, DAY, troubles=Troubles(0, 0, 0, 4))), RANGES)
    first = found["worst_detectors"][0]
    assert first["detector"] == 4 and "psf_fwhm_arcsec" in first["metrics"]
    row = next(r for r in found["out_of_range"] if r["metric"] == "psf_fwhm_arcsec")
    assert {p["detector"] for p in row["worst"]} == {4}
    widest = max(r.numbers["psf_fwhm_arcsec"] for r in made_up_night(CAMERA, DETECTORS, 12, DAY,
                 troubles=Troubles(0, 0, 0, 4)) if r.kind == "ended")  # fmt: skip
    assert row["worst"][0]["value"] == widest


def test_completeness_is_that_of_all_fakes():
    found = quality(collect(NIGHT), RANGES)["completeness"]
    n = sum(r.numbers.get("n_injected", 0) for r in ENDED)
    k = sum(r.numbers.get("n_injected_found", 0) for r in ENDED)
    assert found["all"] == {"n": n, "found": k, "completeness": k / n}
    assert set(found) == {"all", "snr10"}


@pytest.mark.parametrize("records", [(), NIGHT[:2], [r for r in NIGHT if r.kind != "ended"]])
def test_a_night_that_has_hardly_begun_has_a_page(records):
    tables = collect(records)
    html = page(report_of(tables), tables, CAMERA, RANGES, {}, 60.0)
    assert "LSSTComCam, night of 2026-04-01" in html and "{{" not in html


def report_of(tables):
    return {
        "instrument": CAMERA.instrument,
        "day_obs": DAY,
        "performance": performance(tables, 60.0, RANGES, {}, None),
        "quality": {**quality(tables, RANGES), "score": {}},
        "calibration": {"exposures": []},
        "sources": {},
        "versions": {},
        "machine": {},
    }


def test_page_shows_what_does_not_add_up_and_escapes_causes():
    evil = "<script>alert(1)</script>"
    first = next(r for r in ENDED if r.outcome == State.FAILED)
    records = [dataclasses.replace(r, cause=evil) if r is first else r for r in NIGHT if r is not ENDED[-1]]
    tables = collect(records)
    html = page(report_of(tables), tables, CAMERA, RANGES, {}, 60.0)
    assert "Detector-visits do not add up: 270 expected, 269 came to an end" in html
    assert evil not in html and html.count("&lt;script&gt;") >= 1
    for name in ("Performance", "Data quality", "Calibration", "DMS-REQ-0096", "DMS-REQ-0098", "DMS-REQ-0100"):
        assert name in html


def test_report_of_a_replay(replayed: Path, tmp_path: Path):
    """Of records, and without them of what the ledger and the Butler tell; the page needs nothing but itself."""
    run = apflow("report", "latest", "--butler", str(replayed / "butler"), "--output", str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "4 detector-visits expected: 4 done" in run.stdout
    told = json.loads((tmp_path / "report.json").read_text())
    summary = json.loads((replayed / "run.json").read_text())
    assert told["performance"]["alerts"]["published"] == summary["alerts"] > 0
    assert told["performance"]["latency_s"]["p98_s"] == pytest.approx(summary["latency_s"]["p98"])
    assert set(told["performance"]["stages"]) >= {"calibrate", "subtract", "package_alerts"}
    fwhm = next(m for m in told["quality"]["metrics"] if m["metric"] == "psf_fwhm_arcsec")
    assert fwhm["n"] == 4 and fwhm["verdict"] == "acceptable" and fwhm["alert"] == [0.2, 3.0]
    html = (tmp_path / "report.html").read_text()
    assert html.count("data:image/png;base64") >= 3 or not told["quality"]["worst_detectors"]
    assert not re.search(r"""(src|href)=["'](?!data:)""", html) and "http" not in html.replace("http://www.w3.org", "")


def test_records_that_contradict_the_ledger_make_the_exit_code_1(replayed: Path, tmp_path: Path):
    root = tmp_path / "repository"
    root.mkdir()
    for path in (p for p in (replayed / "butler").iterdir() if p.name != "nights"):
        (root / path.name).symlink_to(path)
    day = 20250420  # of every simulation
    with Records(night_folder(root, day)) as records:
        records.append(Record(1.0, "visit", day * 100_000 + 1, numbers={"n_detectors": 2.0}, band="r"))
        records.append(Record(9.0, "ended", day * 100_000 + 1, 3, outcome="done"))
    with (night_folder(root, day) / "records.jsonl").open("ab") as file:
        file.write(b'{"unix": 1.0, "kin')
    run = apflow("report", str(day), "--butler", str(root), "--output", str(tmp_path / "out"))
    assert run.returncode == 1, run.stderr
    assert "2 detectors expected, 1 came to an end" in run.stderr
    assert "do not add up" in (tmp_path / "out" / "report.html").read_text()
    run = apflow("report", "20200101", "--butler", str(root))
    assert run.returncode == 2 and str(day) in run.stderr
