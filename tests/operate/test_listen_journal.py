"""The journal: what was told outlives the service that wrote it down."""

from __future__ import annotations

from pathlib import Path

import pytest

from apflow.errors import BadRequest
from apflow.model.calibration import CalibrationExposure, Intent
from apflow.model.visit import Visit
from apflow.operate.listen.journal import FOLDER, Journal, target_from

NOW = 1_795_000_000.0
VISIT = Visit("LSSTComCam", 2025042000001, "g", 150.1, -32.0, 25.0, "r_03", "r", 30.0, ("CC_O_20250420_000001",))
BIAS = CalibrationExposure(
    "LSSTComCam", 2025042000001, "b", Intent.BIAS, "", 0.0, "CC_O_20250420_000001", partner="CC_O_20250420_000000"
)


def test_entries_come_back_in_order_over_days(tmp_path: Path):
    with Journal(tmp_path) as journal:
        journal.told(NOW, "nextVisit", {"groupId": "g", "position": [1.0, float("nan")]})
        journal.started(NOW + 1.0, VISIT, "alert_production", [3, 4], False)
        journal.told(NOW + 86_400.0, "nextVisitCanceled", {"groupId": "g"})
        journal.closed(NOW + 86_401.0, "g", "cancelled", [3, 4])
    with Journal(tmp_path) as again:
        entries = list(again.entries(NOW - 1.0))
        assert [e["what"] for e in entries] == ["told", "started", "told", "closed"]
        assert target_from(entries[1]) == VISIT
        assert [e["what"] for e in again.entries(NOW + 86_400.5)] == ["closed"]
    assert len(list((tmp_path / FOLDER).glob("*.jsonl"))) == 2


def test_what_was_started_and_did_not_end(tmp_path: Path):
    with Journal(tmp_path) as journal:
        journal.started(NOW, VISIT, "alert_production", [3, 4], False)
        assert journal.unfinished(NOW) == {VISIT.visit: VISIT}
        journal.started(NOW + 1.0, BIAS, "raw_calibration", [3, 4], False)
        *_, entry = journal.entries(NOW)
        assert target_from(entry) == BIAS
        assert journal.unfinished(NOW) == {VISIT.visit: VISIT}, "of calibrations the ledger knows nothing"
        journal.ended(NOW + 2.0, BIAS.visit, {"done": 2})
        assert journal.unfinished(NOW) == {VISIT.visit: VISIT}, "a number is that of one of them"
        journal.ended(NOW + 2.0, VISIT.visit, {"done": 2})
        assert journal.unfinished(NOW + 3.0) == {}


def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path: Path):
    with Journal(tmp_path) as journal:
        journal.told(NOW, "nextVisit", {"groupId": "first"})
    (file,) = (tmp_path / FOLDER).glob("*.jsonl")
    with file.open("a") as stream:
        stream.write('{"unix": 1795000001.0, "what": "to')
    with Journal(tmp_path) as journal:
        journal.told(NOW + 2.0, "nextVisit", {"groupId": "second"})
        assert [e["record"]["groupId"] for e in journal.entries(NOW)] == ["first", "second"]


def test_one_service_has_it_at_a_time(tmp_path: Path):
    with Journal(tmp_path), pytest.raises(BadRequest, match="another service listens for"):
        Journal(tmp_path)
    Journal(tmp_path).close()
