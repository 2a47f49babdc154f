"""apflow score: the figures of a replay's report, of its repository and of injections, by the installed command."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from apflow.errors import ApflowError, BadRequest
from apflow.operate.score import open_run, score_injections, score_run
from apflow.operate.score_console import print_score
from apflow.operate.summary import finite
from tests.operate.command import apflow


def test_the_command_says_what_the_report_says(replayed: Path) -> None:
    told: dict[str, Any] = json.loads((replayed / "report.json").read_text())["score"]
    run = apflow("score", str(replayed), "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert {name: found[name] for name in told} == told
    assert (found["against"], found["detector_visits"], found["min_reliability"]) == ("truth", 4, 0.0)
    # The repository knows the same.
    of_repository = finite(score_run(replayed / "butler"))
    assert {name: of_repository[name] for name in told} == told


def test_the_movers_of_a_replay_are_attributed(replayed: Path) -> None:
    found = score_run(replayed)
    assert found["n_ss_found"] > 0 and found["ss_attributed"] > 0.9 and found["n_ss_wrong"] == 0
    sources, truth = (pd.read_parquet(replayed / f"{n}.parquet") for n in ("diasources", "truth"))
    ids = set(sources["ssObjectId"].dropna())
    assert ids and ids <= set(truth["ssObjectId"].dropna())
    assert sources.loc[sources["ssObjectId"].notna(), "diaObjectId"].isna().all()
    assert truth.loc[truth["kind"] == "mover", "ssObjectId"].isna().any(), "all movers are predicted"


def test_a_cut_in_reliability_that_nothing_passes_leaves_nothing(replayed: Path) -> None:
    assert score_run(replayed, min_reliability=1.0)["completeness_snr6"] == 0.0


def test_the_console_shows_figures_and_bins(replayed: Path) -> None:
    shown = io.StringIO()
    found = score_run(replayed)
    print_score(found, Console(width=160, file=shown))
    text = shown.getvalue()
    assert "completeness_snr6" in text and "By S/N" in text and "By Magnitude" in text
    row = next(r for r in found["by_snr"] if r["n_true"])
    assert f"{row['completeness']:.3f} +{row['completeness_high'] - row['completeness']:.3f}" in text


def test_injections_are_scored_by_the_sources_that_hold_their_light(replayed: Path) -> None:
    """The DiaSources of a replay as if a change of every third one had been injected."""
    run = open_run(replayed)
    sources = run.sources.assign(pixelFlags_injected=lambda s: s.index % 3 == 0)
    lit = sources[sources["pixelFlags_injected"]]
    fakes = pd.DataFrame({"visit": lit["visit"], "detector": lit["detector"], "ra": lit["ra"], "dec": lit["dec"]})
    fakes = fakes.assign(kind="injected", flux_njy=lit["psfFlux"], snr=lit["snr"], good=True)
    missed = fakes.iloc[:5].assign(dec=lambda f: f["dec"] + 5 / 3600, snr=10.0)
    result = score_injections(pd.concat([fakes, missed], ignore_index=True), sources, run.ended)
    above = int((fakes["snr"] > 6).sum())
    assert result["completeness_snr6"] == pytest.approx(above / (above + 5))
    assert (result["purity"], result["flux_bias"]) == (1.0, 0.0)
    # A detector-visit whose fakes nobody wrote down does not count.
    one = fakes[fakes["visit"] == fakes["visit"].min()]
    assert score_injections(one, sources, run.ended)["completeness_snr6"] == 1.0


def test_what_is_no_run_is_named(replayed: Path, tmp_path: Path) -> None:
    for words, message in (
        ([str(tmp_path)], f"{tmp_path} is not accepted: the folder of a replay's report, or a repository"),
        ([str(replayed), "--against", "sky"], "--against 'sky' is not accepted: truth, injections"),
        ([str(replayed), "--against", "injections"], "has no injections; accepted: a replay, or a run with fakes"),
        ([str(replayed), "--min-reliability", "2"], "'2' is not accepted: a number from 0 to 1"),
        ([str(replayed), "--ppdb", "duckdb:///x"], "--ppdb with the report's folder"),
    ):
        run = apflow("score", *words)
        assert run.returncode == 2 and message in run.stderr, run.stderr


def test_a_truth_that_cannot_be_read_is_named(replayed: Path, tmp_path: Path) -> None:
    for name in ("truth", "diasources", "ledger"):
        shutil.copyfile(replayed / f"{name}.parquet", tmp_path / f"{name}.parquet")
    truth = pd.read_parquet(tmp_path / "truth.parquet")
    truth.drop(columns="snr").to_parquet(tmp_path / "truth.parquet")
    with pytest.raises(BadRequest, match="truth has no column 'snr'"):
        score_run(tmp_path)
    (tmp_path / "truth.parquet").write_bytes(b"junk")
    with pytest.raises(ApflowError, match=r"truth.parquet cannot be read"):
        score_run(tmp_path)
    (tmp_path / "truth.parquet").unlink()
    with pytest.raises(BadRequest, match="has no truth of a simulation, nor injections"):
        score_run(tmp_path)
