"""A night as its dashboard shows it: a fold of its records that goes on where it stopped."""

from __future__ import annotations

import bisect
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from apflow.io.records import RECORDS_FILE, iterate_records
from apflow.model.ledger import State
from apflow.model.record import Record

#: From the end of readout to the alerts (OTT1 of LSE-61), and the part of a visit's alerts that has to keep to it.
LIMIT_S, ON_TIME = 60.0, 0.98
#: Edges of the histograms of durations, s: 8 % apart, so that percentiles are as good.
EDGES = tuple(float(e) for e in np.geomspace(1e-3, 1e3, 181))
#: Visits whose metrics and steps stay in memory; those of an older one are read again when somebody asks.
_DETAILED = 12
#: Longest time a fold holds up the scheduler: a night that is read from its begin takes many such turns.
_TURN_S = 0.05
_MISSED = (State.NO_CALIB, State.IMAGE_TIMEOUT, State.BAD_DATA, State.FAILED)


class Durations:
    """A histogram of durations."""

    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES) + 1)
        self.n, self.total_s = 0, 0.0

    def add(self, duration_s: float, n: int = 1) -> None:
        """Count one; with `n` = -1 one that was counted is taken back."""
        self.counts[bisect.bisect_left(EDGES, duration_s)] += n
        self.n += n
        self.total_s += n * duration_s

    def percentile(self, percent: float) -> float:
        """A percentile, s, to the width of a bin; NaN of nothing."""
        if not self.n:
            return math.nan
        place = bisect.bisect_left(list(itertools.accumulate(self.counts)), percent / 100 * self.n)
        return EDGES[min(place, len(EDGES) - 1)]


@dataclass(slots=True)
class Detector:
    """One detector of a visit.

    Attributes
    ----------
    state : `str`
        Terminal state; empty before its end.
    arrived_unix : `float`
        End of readout, or when its images came; NaN before it is known.
    latency_s : `float`
        End of readout to the published alerts; NaN where there are none.
    steps : `list`
        (step, start, stop, worker), Unix seconds, of the steps that ended.
    numbers : `dict`
        Metrics and times.
    """

    state: str = ""
    cause: str = ""
    step: str = ""
    n_alerts: int = 0
    arrived_unix: float = math.nan
    latency_s: float = math.nan
    steps: list[tuple[str, float, float, str]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Visit:
    """One visit; `first` and `last` are the places of its records in the file."""

    visit: int
    first: int
    last: int = 0
    announced_unix: float = math.nan
    n_detectors: int = 0
    instrument: str = ""
    band: str = ""
    ended: bool = False
    version: int = 0
    detailed: bool = True
    detectors: dict[int, Detector] = field(default_factory=dict)
    medians: dict[str, float] = field(default_factory=dict)

    def states(self) -> Counter[str]:
        """Detectors by terminal state."""
        return Counter(d.state for d in self.detectors.values() if d.state)

    def alerts(self) -> tuple[int, int]:
        """Alerts, and of these those in time."""
        each = [(d.n_alerts, d.latency_s <= LIMIT_S) for d in self.detectors.values() if d.state == State.DONE]
        return sum(n for n, _ in each), sum(n for n, on_time in each if on_time)

    def late_or_lost(self) -> tuple[bool, bool]:
        """Whether too few of its alerts were in time, and whether it came to none and should have."""
        (stored, on_time), states, published = self.alerts(), self.states(), self.latencies()
        is_lost = not published and (stored > 0 or any(states[s] for s in _MISSED))
        return not is_lost and on_time < ON_TIME * stored, is_lost

    def latencies(self) -> list[float]:
        """Of its detectors, s, sorted."""
        return sorted(d.latency_s for d in self.detectors.values() if math.isfinite(d.latency_s))

    def median(self, metric: str) -> float:
        """Median of a metric over the detectors, also of a visit whose details are not kept; NaN of nothing."""
        if metric in self.medians:
            return self.medians[metric]
        known = [d.numbers[metric] for d in self.detectors.values() if metric in d.numbers]
        return float(np.median(known)) if known else math.nan

    def forget(self, metrics: Iterable[str]) -> None:
        """Keep of the detectors their ends only."""
        self.medians = {name: self.median(name) for name in metrics}
        self.detailed = False
        for detector in self.detectors.values():
            detector.steps, detector.numbers = [], {}


#: Metrics of the table of visits, and what it says of them.
TABLE_METRICS = {
    "psf_fwhm_arcsec": "PSF FWHM",
    "zero_point_mag": "zero point",
    "sky_mag_arcsec2": "sky",
    "depth_mag": "depth",
}


class Feed:
    """Follows the records of a night.

    Parameters
    ----------
    folder : `pathlib.Path`
        Of the night; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = 0
        self.visits: dict[int, Visit] = {}
        self.stages: dict[str, Durations] = {}
        self.latency = Durations()
        self.states: Counter[str] = Counter()
        self.events: Counter[tuple[str, str]] = Counter()
        self.n_alerts = self.n_on_time = self.n_published = 0
        self.n_unsent = 0.0
        self._told_unsent = False
        self._offset = 0
        self._detailed: list[int] = []
        self._judged: dict[int, tuple[int, bool, bool]] = {}

    @property
    def is_behind(self) -> bool:
        """Whether there are records that were not read yet."""
        path = self.folder / RECORDS_FILE
        return path.is_file() and path.stat().st_size > self._offset

    def refresh(self, turn_s: float = _TURN_S) -> None:
        """Read what is new, for `turn_s` at most."""
        if not self.is_behind:
            return
        end, before = time.monotonic() + turn_s, self._offset
        for record, offset in iterate_records(self.folder, self._offset):
            self._take(record, self._offset, offset)
            self._offset = offset
            if time.monotonic() > end:
                break
        self.version += self._offset != before

    def newest(self) -> Visit | None:
        """The visit that was announced last."""
        return next(reversed(self.visits.values()), None)

    def detailed(self, visit: int) -> Visit | None:
        """A visit with metrics and steps of its detectors, read again where they were not kept."""
        known = self.visits.get(visit)
        if known is None or known.detailed:
            return known
        again = Visit(visit, known.first)
        for record, offset in iterate_records(self.folder, known.first):
            if record.visit == visit:
                _fold(again, record)
            if offset >= known.last:
                break
        again.n_detectors, again.band, again.version = known.n_detectors, known.band, known.version
        again.ended, again.announced_unix = known.ended, known.announced_unix
        return again

    def verdict(self) -> dict[str, float]:
        """What LSE-61 asks for: parts of the alerts in time and of the visits late and lost; NaN before any ended."""
        for visit in self.visits.values():
            if visit.ended and self._judged.get(visit.visit, (0,))[0] != visit.version:
                self._judged[visit.visit] = (visit.version, *visit.late_or_lost())
        late, lost = (sum(judged[i] for judged in self._judged.values()) for i in (1, 2))
        n = len(self._judged) or math.nan
        tried = sum(self.states[s] for s in (State.DONE, *_MISSED)) or math.nan
        return {
            "on_time_fraction": self.n_on_time / (self.n_alerts or math.nan),
            "late_visit_fraction": late / n,
            "lost_visit_fraction": lost / n,
            "missed_detector_fraction": sum(self.states[s] for s in _MISSED) / tried,
            "n_unsent_alerts": self.n_unsent,
        }

    def _take(self, record: Record, start: int, stop: int) -> None:
        if record.kind == "unsent":
            self.n_unsent = record.numbers.get("n_unsent_alerts", next(iter(record.numbers.values()), 0.0))
            self._told_unsent = True
        elif record.kind in ("worker", "cluster", "night", "shed", "rerun", "late"):
            self.events[record.kind, record.outcome] += 1
        if record.kind in ("step", "batch") and record.start_unix is not None and record.stop_unix is not None:
            self.stages.setdefault(record.step, Durations()).add(record.stop_unix - record.start_unix)
        if record.visit is None:
            return
        visit = self.visits.get(record.visit)
        if visit is None:
            visit = self.visits[record.visit] = Visit(record.visit, start)
            self._detailed.append(record.visit)
            if len(self._detailed) > _DETAILED:
                self.visits[self._detailed.pop(0)].forget(TABLE_METRICS)
        visit.last = stop
        visit.version += 1
        if record.kind == "ended" and record.detector is not None:
            self._ended(visit, record, record.detector)
        else:
            _fold(visit, record)

    def _ended(self, visit: Visit, record: Record, detector: int) -> None:
        """Count an end; one that stands for an earlier end takes its place."""
        before = visit.detectors.get(detector)
        if before is not None and before.state:
            self._count(before, -1)
        _fold(visit, record)
        self._count(visit.detectors[detector], 1)

    def _count(self, detector: Detector, sign: int) -> None:
        self.states[detector.state] += sign
        if detector.state != State.DONE:
            return
        self.n_alerts += sign * detector.n_alerts
        published = math.isfinite(detector.latency_s)
        if published:
            self.latency.add(detector.latency_s, sign)
        self.n_published += sign * detector.n_alerts * published
        self.n_on_time += sign * detector.n_alerts * (detector.latency_s <= LIMIT_S)
        if not self._told_unsent:
            self.n_unsent = float(self.n_alerts - self.n_published)


def _fold(visit: Visit, record: Record) -> None:
    """Add what a record says of its visit."""
    if record.kind == "visit":
        visit.announced_unix = record.unix if math.isnan(visit.announced_unix) else visit.announced_unix
        visit.n_detectors = int(record.numbers.get("n_detectors", visit.n_detectors))
        visit.instrument, visit.band = record.instrument or visit.instrument, record.band or visit.band
    elif record.kind == "visit_ended":
        visit.ended = True
    elif record.detector is not None and record.kind in ("step", "ended"):
        detector = visit.detectors.setdefault(record.detector, Detector())
        if record.kind == "step":
            if record.start_unix is not None and record.stop_unix is not None and visit.detailed:
                detector.steps.append((record.step, record.start_unix, record.stop_unix, record.worker))
            return
        # An end that is told again, after alerts were sent late, need not tell all of it again.
        numbers = {**detector.numbers, **record.numbers}
        detector.state, detector.cause, detector.step = record.outcome, record.cause, record.step
        detector.n_alerts = int(numbers.get("n_alerts", detector.n_alerts))
        detector.arrived_unix = numbers.get("arrived_unix", detector.arrived_unix)
        if "published_unix" in numbers:
            detector.latency_s = numbers["published_unix"] - detector.arrived_unix
            numbers["alert_latency_s"] = detector.latency_s
        if visit.detailed:
            detector.numbers = numbers
