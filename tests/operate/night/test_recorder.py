"""What becomes a record of the night."""

from __future__ import annotations

from pathlib import Path

from apflow.io.records import night_folder, read_records
from apflow.model.ids import day_obs_of
from apflow.operate.night.recorder import Recorder
from apflow.run import Late, Rerun, WorkerChanged
from tests.io import builders


def test_stragglers_late_detectors_and_lost_workers_are_on_record(tmp_path: Path) -> None:
    visit = builders.visit()
    with Recorder(tmp_path) as recorder:
        recorder.day = day_obs_of(visit.visit)
        recorder.started(visit, [4, 5])
        recorder.event(Rerun(visit.visit, 4, "ccd-7"))
        recorder.event(Late(visit.visit, 5))
        recorder.event(Late(visit.visit + 1, 5))  # was not begun here
        recorder.event(WorkerChanged("tcp://127.0.0.1:1", is_lost=True))
    records, _ = read_records(night_folder(tmp_path, recorder.day))
    assert [(r.kind, r.visit, r.detector, r.worker, r.outcome) for r in records[1:]] == [
        ("rerun", visit.visit, 4, "ccd-7", ""),
        ("late", visit.visit, 5, "", ""),
        ("worker", None, None, "tcp://127.0.0.1:1", "lost"),
    ]
