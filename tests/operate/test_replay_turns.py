"""``apflow replay --rafts-at-a-time``: one visit raft by raft, with nothing left of the pixels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from apflow.io.butler import Repository
from apflow.io.ppdb import open_ppdb
from apflow.model.camera import load_camera
from apflow.operate.prepare import Record
from apflow.operate.turns import turns_of
from apflow.simulate.scenario import Scenario
from tests.field import PROCESSING_TIMES
from tests.operate.command import APFLOW, apflow

#: Neighbours of three rafts, so that they share template cells.
WORDS = ("--detectors", "R22_S12,R23_S10,R23_S11,R13_S20", "--size", "512", "--visits", "1", "--workers", "2")
TURNS = ("--rafts-at-a-time", "1")
PIXELS = ("raw", "bias", "dark", "flat", "defects", "template_coadd", "difference_image")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One replay all at once, and one raft by raft that was interrupted after its first raft and went on."""
    whole, turns = (tmp_path_factory.mktemp(name) for name in ("whole", "turns"))
    command = [APFLOW, "replay", *WORDS, *TURNS, "--report", str(turns), "--json", str(turns / "run.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout is not None
        said = iter(run.stdout)
        assert any(line.startswith("visit ") for line in said)
        assert any(line.startswith("simulated") for line in said)  # the next raft is under way
        os.killpg(run.pid, signal.SIGINT)
        run.communicate(timeout=60)
    assert run.returncode == 130
    record = Record.read(turns / "butler")
    assert record is not None and record.turn >= 1 and not record.finished
    again = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    run_whole = apflow("replay", *WORDS, "--report", str(whole), "--json", str(whole / "run.json"))
    assert run_whole.returncode == 0, run_whole.stderr
    return whole, turns


def test_the_results_are_those_of_a_replay_all_at_once(folders: tuple[Path, Path]):
    keys = {"diasources": "diaSourceId", "diaobjects": "diaObjectId", "truth": "truth_id"}
    for name, key in keys.items():
        one, other = (
            pd.read_parquet(folder / f"{name}.parquet").drop(columns=PROCESSING_TIMES, errors="ignore")
            for folder in folders
        )
        order = ["detector", key] if "detector" in one else [key]
        one, other = (table.sort_values(order, ignore_index=True) for table in (one, other))
        assert len(one)
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    one, other = (json.loads((folder / "run.json").read_text()) for folder in folders)
    assert one["score"] == other["score"]


def test_states_add_up_over_all_turns_in_one_ledger_and_report(folders: tuple[Path, Path]):
    folder = folders[1]
    summary = json.loads((folder / "run.json").read_text())
    assert summary["detector_visits"]["expected"] == 4 == summary["detector_visits"]["done"]
    assert summary["footprint"]["rafts_at_a_time"] == 1 and summary["footprint"]["n_graphs"] == 3
    ledger = pd.read_parquet(folder / "ledger.parquet")
    assert len(ledger) == 4 == ledger["detector"].nunique() and len(set(ledger["visit"])) == 1
    with open_ppdb(f"duckdb://{folder / 'butler' / 'ppdb.duckdb'}") as ppdb:
        outbox = ppdb.table("outbox")
    assert outbox["published_unix"].notna().all() and len(outbox) == summary["alerts"] == ledger["n_alerts"].sum()
    assert "graphs that were run" in (folder / "report.html").read_text()


def test_pixels_are_gone_from_the_disk_and_the_registry_and_the_rest_is_there(folders: tuple[Path, Path]):
    left = [path for path in folders[1].rglob("*.fits")]
    assert not left
    with Repository(folders[1] / "butler") as repository:
        butler = repository.butler
        for name in PIXELS:
            found = butler.query_datasets(name, "*", find_first=False, limit=None, explain=False)
            assert not found, f"{name} is still registered"
        metrics = butler.query_datasets("ap_metrics", "*", find_first=False, limit=None, explain=False)
        assert {ref.dataId["detector"] for ref in metrics} == set(
            pd.read_parquet(folders[1] / "ledger.parquet")["detector"]
        )
        assert all(butler.stored(ref) for ref in metrics)
    one, other = (json.loads((folder / "run.json").read_text())["footprint"] for folder in folders)
    assert 0 < other["peak_disk_gb"] < 0.8 * one["peak_disk_gb"]
    assert other["peak_memory_gib"] > 0.5


def test_a_replay_is_continued_with_the_same_turns_only(folders: tuple[Path, Path]):
    words = ("replay", *WORDS, "--report", str(folders[1]), "--butler", str(folders[1] / "butler"))
    run = apflow(*words, "--rafts-at-a-time", "2")
    assert run.returncode == 2 and "--rafts-at-a-time is 1, asked for was 2" in " ".join(run.stderr.split())


def test_several_visits_are_refused(tmp_path: Path):
    run = apflow("replay", "--camera", "comcam", "--visits", "2", *TURNS, "--report", str(tmp_path / "r"))
    assert run.returncode == 2 and "--visits 2 is not accepted: one visit" in " ".join(run.stderr.split())
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("rafts_at_a_time", "sizes"), [(0, [189]), (1, [9] * 21), (4, [36] * 5 + [9]), (50, [189])])
def test_turns_are_whole_rafts_and_hold_each_detector_once(rafts_at_a_time: int, sizes: list[int]):
    scenario, camera = Scenario(nvisits=1), load_camera("lsstcam")
    turns = turns_of(scenario, camera, rafts_at_a_time)
    assert [len(turn.detectors) for turn in turns] == sizes
    assert [d for turn in turns for d in turn.detectors] == list(scenario.detectors)
