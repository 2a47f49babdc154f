"""Calibrations that are offered where visits are processed are refused by name (D5)."""

from __future__ import annotations

import subprocess
from importlib import resources
from pathlib import Path

import pytest

from apflow.errors import BadRequest
from apflow.io.ppdb import open_ppdb
from apflow.model.calibration import Intent
from apflow.operate.batch.announced import from_repository
from apflow.operate.detector import check_request, process_detector
from apflow.pipetask.job import request_of
from apflow.pipetask.task import visit_of
from tests.calibration_night import Night, make_night
from tests.operate.command import APFLOW

FLAT = "CC_O_20250420_000007"
REFUSED = f"image {FLAT} is a flat, which is no visit; accepted: images of the sky (apflow calibration --intent flat"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """A repository with one flat."""
    night = make_night(tmp_path_factory.mktemp("flat"))
    (one,) = night.land(night.raw(Intent.FLAT, 7, 4))
    assert one.error == ""
    return night


@pytest.mark.parametrize("which", [FLAT, "2025042000007"])
def test_submitted_by_name_or_number(night: Night, which: str) -> None:
    with pytest.raises(BadRequest) as refused:
        from_repository(which, str(night.root))
    assert REFUSED in str(refused.value)


def test_processed_as_a_visit_by_hand(night: Night) -> None:
    with pytest.raises(BadRequest) as refused:
        process_detector(check_request("4", 150.1, -32.0, 2.5, "r_03", str(night.root), [FLAT]))
    assert REFUSED in str(refused.value)
    with open_ppdb(night.config.ppdb_url) as ppdb:
        assert ppdb.table("ledger").empty


def test_processed_by_a_batch_job(night: Night) -> None:
    script = str(resources.files("apflow.cluster") / "visit.sh")
    words = ["4", "150.1", "-32", "none", "2.5", str(night.root), FLAT]
    assert request_of(words), "nobody knows what it is before it is there"
    environment = {"PATH": "/usr/bin:/bin", "APFLOW_BIN": str(Path(APFLOW).parent)}
    ended = subprocess.run(["bash", script, *words], env=environment, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {REFUSED}") and len(ended.stderr.splitlines()) == 1


def test_given_to_the_pipeline_task(night: Night) -> None:
    """By a query of one's own, and with the pointing that flats of the dome may have."""
    with pytest.raises(BadRequest) as refused:
        visit_of([night.raw(Intent.FLAT, 7, 4).info], night.config)
    assert REFUSED in str(refused.value)
