"""What becomes the records of a night: events of the runner, visits as they begin, outcomes as they end."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from apflow.errors import ServiceError
from apflow.io.records import Records, night_folder
from apflow.model.ids import day_obs, day_obs_of
from apflow.model.ledger import Failure, Outcome, State, StepRecord
from apflow.model.record import Record
from apflow.model.visit import Visit
from apflow.run import ChainEnded, GatherEnded, Late, Rerun, WorkerChanged

_log = logging.getLogger(__name__)
#: Records are written together so often: each visit makes some thousands.
_WRITE_S = 0.5
#: A disk that does not answer holds up the end of a visit for so long at most.
_WAIT_S = 5.0
#: TAI is ahead of UTC by this many seconds, since 2017.
_TAI_MINUS_UTC_S = 37.0


class Recorder:
    """Writes the records of the nights of a repository, in a thread of its own.

    What a visit says goes to the night of its number. Only visits that were `started` here are recorded. Any thread
    may call any method; only `ended` waits for the disk. A disk that is full costs records, never a visit: the PPDB's
    ledger is the truth about what is stored.

    Parameters
    ----------
    root : `str` or `pathlib.Path`
        Of the repository.

    Attributes
    ----------
    day : `int`
        ``day_obs`` of the night to which things belong that are about no visit; 0: the night that it is then.
    """

    def __init__(self, root: str | Path) -> None:
        self._root, self.day = root, 0
        self._inbox: queue.SimpleQueue[tuple[int, Sequence[Record]] | threading.Event | None] = queue.SimpleQueue()
        self._expected: defaultdict[int, set[int]] = defaultdict(set)
        self._thread = threading.Thread(target=self._run, name="apflow records", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left."""
        self._inbox.put(None)
        self._thread.join()

    def note(self, kind: str, outcome: str, worker: str = "", cause: str = "") -> None:
        """Something about no visit: see `apflow.model.record.KINDS`."""
        now = time.time()
        self._put(self.day or day_of(now), [Record(now, kind, worker=worker, outcome=outcome, cause=cause)])

    def started(self, visit: Visit, detectors: Iterable[int]) -> None:
        """A visit began, or began again; `detectors` are all those that are to come to an end, or have."""
        expected = self._expected[visit.visit]
        expected.update(detectors)
        numbers = {
            "n_detectors": float(len(expected)),
            "n_snaps": float(visit.nsnaps),
            "ra_deg": visit.ra_deg,
            "dec_deg": visit.dec_deg,
            "rotation_deg": visit.rotation_deg,
            "exposure_time_s": visit.exposure_time_s,
        }
        record = Record(
            time.time(),
            "visit",
            visit.visit,
            numbers=numbers,
            instrument=visit.instrument,
            group=visit.group,
            band=visit.band,
        )
        self._put(day_obs_of(visit.visit), [record])

    def knows(self, visit: int) -> bool:
        """Whether a visit was started here."""
        return visit in self._expected

    def event(self, event: object) -> None:
        """Take an event of `apflow.run`; those that say nothing new are passed over."""
        match event:
            case ChainEnded(visit, ended, attempts) if visit in self._expected:
                steps = [_of_step("step", visit, ended.detector, s, ended.failure, attempts) for s in ended.steps]
                self._put(day_obs_of(visit), steps)
            case GatherEnded(visit, result) if visit in self._expected:
                self._put(day_obs_of(visit), [_of_step("batch", visit, None, s, result.failure) for s in result.steps])
            case Rerun(visit, detector, worker) if visit in self._expected:
                record = Record(time.time(), "rerun", visit, detector, worker=worker)
                self._put(day_obs_of(visit), [record])
            case Late(visit, detector) if visit in self._expected:
                self._put(day_obs_of(visit), [Record(time.time(), "late", visit, detector)])
            case WorkerChanged(worker, is_lost):
                self.note("worker", "lost" if is_lost else "joined", worker)

    def ended(self, visit: int, outcomes: Iterable[Outcome], *, all_of_it: bool = True) -> None:
        """Detector-visits came to their ends, and with them their visit, or not `all_of_it`.

        They are on the disk when it returns: whoever notes then that the visit has ended never needs to tell it again.
        """
        now = time.time()
        records = [record for outcome in outcomes for record in _of_outcome(now, outcome)]
        self._put(day_obs_of(visit), [*records, *([Record(now, "visit_ended", visit)] if all_of_it else [])])
        written = threading.Event()
        self._inbox.put(written)
        written.wait(_WAIT_S)

    def _put(self, day: int, records: Sequence[Record]) -> None:
        self._inbox.put((day, records))

    def _run(self) -> None:
        files: dict[int, Records] = {}
        try:
            over = False
            while not over:
                waiting: defaultdict[int, list[Record]] = defaultdict(list)
                written: threading.Event | None = None
                for item in self._taken():
                    match item:
                        case None:
                            over = True
                        case threading.Event():
                            written = item
                        case day, records:
                            waiting[day] += records
                for day, records in waiting.items():
                    try:
                        if day not in files:
                            files[day] = Records(night_folder(self._root, day))
                        files[day].append(*records)
                    except (OSError, ServiceError) as error:
                        _log.warning("%d records of night %d are lost: %s", len(records), day, error)
                if written is not None:
                    written.set()
        finally:
            for file in files.values():
                file.close()

    def _taken(self) -> Iterator[tuple[int, Sequence[Record]] | threading.Event | None]:
        """What came in, after it was waited for and a little longer, but no longer than somebody waits for it."""
        item = self._inbox.get()
        until = time.monotonic() + _WRITE_S
        while True:
            yield item
            if item is None or isinstance(item, threading.Event):
                return
            try:
                item = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return


def _of_step(
    kind: str, visit: int, detector: int | None, step: StepRecord, failure: Failure | None, attempt: int = 1
) -> Record:
    failed = failure is not None and failure.step == step.step
    return Record(
        round(step.stop_unix, 4),
        kind,
        visit,
        detector,
        step.step,
        round(step.start_unix, 4),
        round(step.stop_unix, 4),
        round(step.core_s, 4),
        step.worker,
        str(failure.state if failure is not None and failed else State.DONE),
        failure.cause if failure is not None and failed else "",
        attempt,
    )


def _of_outcome(now: float, outcome: Outcome) -> list[Record]:
    times = {name: getattr(outcome, name) for name in ("arrived_unix", "stored_unix", "published_unix")}
    numbers = {
        **outcome.metrics,
        "n_sources": float(outcome.n_sources),
        "n_alerts": float(outcome.n_alerts),
        **{name: float(value) for name, value in times.items() if value is not None},
    }
    worker = outcome.steps[-1].worker if outcome.steps else ""
    ended = Record(
        now,
        "ended",
        outcome.visit,
        outcome.detector,
        outcome.step,
        worker=worker,
        outcome=str(outcome.state),
        cause=outcome.cause,
        numbers=numbers,
    )
    # A count that is not known of a detector that is done: it was too late for forced photometry.
    if outcome.state != State.DONE or not math.isnan(outcome.metrics.get("n_forced", 0.0)):
        return [ended]
    return [Record(now, "shed", outcome.visit, outcome.detector, "force_photometry", outcome="shed"), ended]


def day_of(unix: float) -> int:
    """``day_obs`` of a time, Unix seconds: the date, TAI, 12 hours earlier."""
    return day_obs(40587.0 + (unix + _TAI_MINUS_UTC_S) / 86400.0)
