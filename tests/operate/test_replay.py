"""``apflow replay`` as its user sees it: the files it leaves, and how it takes an interruption."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from astropy.coordinates import SkyCoord
from astropy.units import arcsec, deg

from apflow.io.alerts.archive import nights, read_night
from apflow.io.ppdb import open_ppdb
from apflow.operate.prepare import Record, open_replay
from apflow.operate.score import score_run
from apflow.operate.summary import finite
from apflow.simulate.scenario import Scenario
from tests.field import PROCESSING_TIMES
from tests.operate.command import APFLOW, apflow
from tests.operate.conftest import SMALL


@pytest.fixture(scope="module")
def summary(replayed: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((replayed / "run.json").read_text())
    return read


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {n: pd.read_parquet(folder / f"{n}.parquet") for n in ("truth", "diasources", "diaobjects", "ledger")}


def test_the_summary_keeps_its_contract(summary: dict[str, Any]):
    states = dict(summary["detector_visits"])
    assert states.pop("expected") == 4 == sum(states.values())
    assert {"done", "no_template", "image_timeout", "bad_data", "failed", "cancelled"} <= set(states)
    assert states["done"] == 4
    assert {"completeness_snr6", "purity", "zeropoint_bias_mag", "astrometric_scatter_arcsec"} <= set(summary["score"])
    assert set(summary["latency_s"]) == {"p50", "p95", "p98", "max"}
    assert 0 < summary["latency_s"]["p50"] <= summary["latency_s"]["p98"] <= summary["latency_s"]["max"]
    assert {"fetch_template", "calibrate", "subtract", "associate", "write_ppdb"} <= set(summary["stages"])
    for stage in summary["stages"].values():
        assert {"core_s", "p50_s", "p98_s"} <= set(stage)
        assert 0 <= stage["p50_s"] <= stage["p98_s"]
    assert 100 < summary["peak_rss_mib"] < 4096
    assert sum(stage["core_s"] for stage in summary["stages"].values()) <= 4 * summary["core_s_per_detector"] * 1.1
    assert summary["wall_s"] > 0 and summary["seed"] == 1 and isinstance(summary["alerts"], int)
    assert {"cpu", "cores", "memory_gib"} <= set(summary["machine"])
    assert {"apflow", "python", "dask", "lsst-daf-butler"} <= set(summary["versions"])


def test_the_files_agree_with_each_other_and_with_the_alerts(replayed: Path, summary: dict[str, Any]):
    read = tables(replayed)
    sources, ledger = read["diasources"], read["ledger"]
    assert summary["alerts"] == len(sources) == sources["diaSourceId"].nunique() == ledger["n_alerts"].sum()
    assert ledger["state"].value_counts().to_dict() == {"done": 4}
    counts = sources.groupby(["visit", "detector"]).size()
    for row in ledger.itertuples():
        assert counts[row.visit, row.detector] == row.n_sources
        assert row.arrived_unix < row.stored_unix <= row.published_unix
    assert set(sources["diaObjectId"].dropna()) == set(read["diaobjects"]["diaObjectId"])
    assert (sources["diaObjectId"].notna() ^ sources["ssObjectId"].notna()).all()
    assert set(read["truth"]["visit"]) == set(ledger["visit"])
    with open_ppdb(f"duckdb://{replayed / 'butler' / 'ppdb.duckdb'}") as ppdb:
        outbox = ppdb.table("outbox")
    assert sorted(outbox["alert_id"]) == sorted(sources["diaSourceId"])
    assert outbox["published_unix"].notna().all()
    (night,) = nights(f"file://{replayed / 'butler' / 'alerts'}")
    alerts = list(read_night(f"file://{replayed / 'butler' / 'alerts'}", night))
    assert sorted(a["diaSourceId"] for a in alerts) == sorted(sources["diaSourceId"])
    assert json.loads((replayed / "report.json").read_text())["alerts"] == summary["alerts"]
    page = (replayed / "report.html").read_text()
    assert "R22_S11" in page and "data:image/png;base64," in page and "http" not in page.split("</style>")[0]


def test_the_archive_is_readable_by_fastavro_alone(replayed: Path, summary: dict[str, Any]):
    records = []
    for file in sorted((replayed / "butler" / "alerts").rglob("*.avro")):
        with open(file, "rb") as stream:
            records += list(fastavro.reader(stream))
    assert len(records) == summary["alerts"]
    assert all(record["cutoutDifference"] for record in records)


def test_an_outsider_scores_the_run_alike(replayed: Path, summary: dict[str, Any]):
    """Completeness and purity as the issue defines them, by astropy, from the Parquet files only."""
    read = tables(replayed)
    truth, sources = read["truth"], read["diasources"]
    found, real, offsets = [], [], []
    for key, t in truth.groupby(["visit", "detector"]):
        s = sources[(sources["visit"] == key[0]) & (sources["detector"] == key[1])]
        true, seen = (SkyCoord(x["ra"].to_numpy() * deg, x["dec"].to_numpy() * deg) for x in (t, s))
        index, apart, _ = true.match_to_catalog_sky(seen)
        wanted = (t["good"] & (t["snr"] > 6) & (t["trail_length_arcsec"] < 0.3)).to_numpy()
        found += list((apart < 1 * arcsec)[wanted])
        real += list((seen.match_to_catalog_sky(true)[1] < 1 * arcsec)[s["snr"].to_numpy() > 6])
        bright = wanted & (t["snr"] > 20).to_numpy() & (apart < 1 * arcsec)
        offsets += list((s["dec"].to_numpy()[index] - t["dec"].to_numpy())[bright] * 3600)
    assert np.mean(found) == pytest.approx(summary["score"]["completeness_snr6"], abs=0.05)
    assert np.mean(real) == pytest.approx(summary["score"]["purity"], abs=0.05)
    scatter = 1.4826 * np.median(np.abs(offsets - np.median(offsets)))
    assert scatter == pytest.approx(summary["score"]["astrometric_scatter_arcsec"], abs=0.02)
    assert summary["score"]["completeness_snr6"] > 0.85
    assert summary["score"]["purity"] > 0.9


def test_snaps_and_a_camera_of_ones_own(tmp_path: Path, summary: dict[str, Any]):
    camera = yaml.safe_load((Path(APFLOW).parents[2] / "apflow/cameras/comcam.yaml").read_text())
    camera |= {"name": "mine", "instrument": "MyCam", "image_prefix": "MY_O"}
    camera["detectors"] = [[7, "R22_S10", "R22", "SCIENCE", "ITL", -42.25, 0.0, 0.0], [9, *camera["detectors"][4][1:]]]
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(camera))
    words = ("--camera", str(tmp_path / "my.yaml"), "--visits", "1", "--snaps", "2", "--workers", "2", "--inject", "4")
    run = apflow("replay", *words, "--report", str(tmp_path / "r"), "--json", str(tmp_path / "r.json"))
    assert run.returncode == 0, run.stderr
    mine = json.loads((tmp_path / "r.json").read_text())
    assert mine["detector_visits"]["done"] == 2
    assert set(tables(tmp_path / "r")["ledger"]["detector"]) == {7, 9}
    assert mine["score"]["completeness_snr6"] > summary["score"]["completeness_snr6"] - 0.1
    assert mine["score"]["purity"] > 0.85
    assert abs(mine["score"]["zeropoint_bias_mag"]) < 0.06
    # Fakes are in the database, and nobody is told of them.
    sources = tables(tmp_path / "r")["diasources"]
    fakes = sources["pixelFlags_injected"].fillna(False).to_numpy(bool)
    assert fakes.sum() >= 6 and mine["alerts"] == len(sources) - fakes.sum()
    assert finite(score_run(tmp_path / "r", "injections")) | mine["injections"] == finite(
        score_run(tmp_path / "r" / "butler", "injections")
    )
    assert mine["injections"]["by_snr"][-1]["n_true"] > 0
    raws = {p.name for p in (tmp_path / "r" / "butler" / "MyCam").rglob("MY_O_*.fits")}
    assert len(raws) == 4


def interrupted(folder: Path, line: str, later_s: float = 0.0) -> None:
    """Run the small replay, and press Ctrl-C some time after it has printed a line that begins so."""
    words = [APFLOW, "replay", *SMALL, "--report", str(folder)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        assert run.stdout is not None
        assert any(told.startswith(line) for told in run.stdout)
        time.sleep(later_s)
        children = psutil.Process(run.pid).children(recursive=True)
        assert children
        os.killpg(run.pid, signal.SIGINT)
        begin = time.monotonic()
        _, error = run.communicate(timeout=30)
    assert run.returncode == 130
    assert time.monotonic() - begin < 20
    assert error.splitlines()[-1].startswith("error: interrupted; ")
    assert "Traceback" not in error
    _, alive = psutil.wait_procs(children, timeout=3)
    assert not alive


def test_after_ctrl_c_the_same_command_goes_on(replayed: Path, tmp_path: Path):
    folder = tmp_path / "r"
    interrupted(folder, "simulated 2 calibs")
    assert Record.read(folder / "butler").finished is False  # type: ignore[union-attr]
    interrupted(folder, "visit ")
    with open_ppdb(f"duckdb://{folder / 'butler' / 'ppdb.duckdb'}") as ppdb:
        ledger, sources = ppdb.ledger(), ppdb.table("DiaSource")
    done = ledger[ledger["state"] == "done"]
    assert not ledger.duplicated(["visit", "detector"]).any()
    assert len(done) >= 2
    assert len(sources) == done["n_sources"].sum() == sources["diaSourceId"].nunique()
    raws = folder / "butler" / "simulated" / "raws"
    shutil.rmtree(raws)  # all had landed: nobody needs them a second time
    again = apflow("replay", *SMALL, "--report", str(folder), "--json", str(tmp_path / "run.json"))
    assert again.returncode == 0, again.stderr
    assert "simulated" not in again.stdout
    assert json.loads((tmp_path / "run.json").read_text())["detector_visits"]["done"] == 4
    same(folder, replayed)


def same(one: Path, other: Path) -> None:
    """The products of two replays, and all that was announced of them."""
    keys = {"diasources": ["diaSourceId"], "diaobjects": ["diaObjectId", "nDiaSources"], "truth": ["visit", "truth_id"]}
    for name, key in keys.items():
        a, b = (
            pd.read_parquet(folder / f"{name}.parquet").drop(columns=PROCESSING_TIMES, errors="ignore")
            for folder in (one, other)
        )
        key = [*key, "detector"] if "detector" in a else key
        a, b = (t.sort_values(key, ignore_index=True) for t in (a, b))
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    with open_ppdb(f"duckdb://{one / 'butler' / 'ppdb.duckdb'}") as ppdb:
        outbox = ppdb.table("outbox")
    assert outbox["published_unix"].notna().all()
    assert len(outbox) == len(pd.read_parquet(one / "diasources.parquet"))


def test_a_finished_replay_reports_again_without_its_truth(replayed: Path, tmp_path: Path):
    """With --butler nothing is processed twice; the truth, which no product needs, is made anew for the score."""
    root = tmp_path / "butler"
    shutil.copytree(replayed / "butler", root)
    (root / "simulated" / "truth.parquet").unlink()
    record = Record.read(root)
    assert record is not None
    dataclasses.replace(record, ppdb=f"duckdb://{root / 'ppdb.duckdb'}").write(root)
    words = ("--butler", str(root), "--report", str(tmp_path / "r"), "--json", str(tmp_path / "run.json"))
    run = apflow("replay", *SMALL, *words)
    assert run.returncode == 0, run.stderr
    assert "simulated 4 raw images" in run.stdout and "dashboard" not in run.stdout
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (tmp_path, replayed))
    assert one["score"] == other["score"] and one["alerts"] == other["alerts"]


def test_a_ppdb_of_other_visits_is_refused(replayed: Path, tmp_path: Path):
    shutil.copyfile(replayed / "butler" / "ppdb.duckdb", tmp_path / "used.duckdb")
    words = ("--seed", "2", "--report", str(tmp_path / "r"), "--ppdb", f"duckdb://{tmp_path / 'used.duckdb'}")
    run = apflow("replay", *SMALL, *words)
    assert run.returncode == 2
    assert "holds visits that are not of this replay" in run.stderr


SCENARIO = Scenario(camera="comcam", nvisits=2, detectors=(3, 4), cadence_s=0.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 2}, "--seed is 1, asked for was 2"),
        ({"detectors": (3,)}, "--detectors"),
        ({"nsnaps": 2}, "--snaps"),
        ({"nvisits": 1}, "--visits is 2 or more, asked for was 1"),
        ({"cadence_s": 60.0}, "--cadence"),
    ],
)
def test_a_repository_of_another_scenario_is_refused(tmp_path: Path, change: dict[str, Any], told: str):
    open_replay(tmp_path / "b", SCENARIO, own=False)
    Record.of(SCENARIO).write(tmp_path / "b")
    with pytest.raises(Exception, match="holds another replay") as error:
        open_replay(tmp_path / "b", dataclasses.replace(SCENARIO, **change), own=False)
    assert told in str(error.value)


def test_more_visits_may_follow(tmp_path: Path):
    record = open_replay(tmp_path / "b", SCENARIO, own=False)
    dataclasses.replace(record, prepared=True, rendered=2, finished=True).write(tmp_path / "b")
    found = open_replay(tmp_path / "b", dataclasses.replace(SCENARIO, nvisits=3), own=False)
    assert found.prepared and found.rendered == 2 and found.scenario["nvisits"] == 3
    own = open_replay(tmp_path / "b", SCENARIO, own=True)
    assert not own.prepared, "a replay of its own folder that is another is made anew"
