"""The records of a night as tables: 189,000 detector-visits and their millions of steps fit into columns."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from apflow.model.ledger import State
from apflow.model.record import Record

#: Kinds of records that are kept as they are.
_EVENTS = ("worker", "cluster", "shed", "rerun", "late", "night", "unsent", "visit_ended")
_TIMES = ("arrived_unix", "stored_unix", "published_unix")
_NUMBERS = ("n_sources", "n_alerts", *_TIMES)
_STATES = frozenset(State)


@dataclass(frozen=True, eq=False)
class NightTables:
    """A night.

    Attributes
    ----------
    visits : `pandas.DataFrame`
        Index visit, in order of their announcement: instrument, band, group,
        announced_unix, n_detectors and the other numbers of the announcement.
    detectors : `pandas.DataFrame`
        One row a detector-visit, in the columns of a replay's ledger: visit,
        detector, band, state, step, cause, n_sources, n_alerts, arrived_unix,
        stored_unix, published_unix, worker, n_ended (how often it came to an
        end), first_state, first_cause, and each metric.
    steps : `pandas.DataFrame`
        One row a run of a step: visit, detector (-1: of the whole visit),
        step, start_unix, stop_unix, core_s, worker, outcome, attempt.
    events : `list` [`Record`]
        What is neither: workers, cluster, shed work, re-runs, late detectors.
    """

    visits: pd.DataFrame
    detectors: pd.DataFrame
    steps: pd.DataFrame
    events: list[Record]


@dataclass
class _Names:
    """Texts as small numbers."""

    codes: dict[str, int] = field(default_factory=dict)

    def code(self, text: str) -> int:
        return self.codes.setdefault(text, len(self.codes))

    def column(self, codes: array[int]) -> Any:
        return pd.Categorical.from_codes(
            np.asarray(codes, np.int32), categories=pd.Index(list(self.codes), dtype=object)
        )


class _Columns:
    """Rows of numbers by name, of which each may lack some."""

    def __init__(self) -> None:
        self.values: dict[str, array[float]] = {}
        self.n = 0

    def put(self, row: int, name: str, value: float) -> None:
        column = self.values.setdefault(name, array("d"))
        if len(column) <= row:
            column.extend([math.nan] * (row + 1 - len(column)))
        column[row] = value

    def clear(self, row: int) -> None:
        for column in self.values.values():
            if len(column) > row:
                column[row] = math.nan

    def frame(self, n: int) -> dict[str, Any]:
        for column in self.values.values():
            column.extend([math.nan] * (n - len(column)))
        return {name: np.frombuffer(column, float) for name, column in self.values.items()}


class Collector:
    """Takes records one by one, in the order in which they were written."""

    def __init__(self) -> None:
        self._visits: dict[int, dict[str, Any]] = {}
        self._rows: dict[tuple[int, int], int] = {}
        self._texts: list[list[str]] = []  # state, step, cause, worker, first state, first cause
        self._ends = array("i")
        self._numbers = _Columns()
        self._names, self._workers, self._outcomes = _Names(), _Names(), _Names()
        self._integers = {name: array("q") for name in ("visit", "detector", "step", "worker", "outcome", "attempt")}
        self._floats = {name: array("d") for name in ("start_unix", "stop_unix", "core_s")}
        self._events: list[Record] = []

    def take(self, record: Record) -> None:
        """Add a record; what is said of a detector-visit later stands for what was said before."""
        if record.kind in ("step", "batch"):
            self._step(record)
        elif record.kind == "ended" and record.visit is not None and record.detector is not None:
            self._ended(record, record.visit, record.detector)
        elif record.kind == "visit" and record.visit is not None:
            self._visit(record, record.visit)
        elif record.kind in _EVENTS:
            self._events.append(record)

    def tables(self) -> NightTables:
        """All that was taken."""
        visits = pd.DataFrame.from_dict(self._visits, orient="index")
        visits.index.name = "visit"
        for column, empty in (
            ("band", ""),
            ("instrument", ""),
            ("n_detectors", math.nan),
            ("announced_unix", math.nan),
        ):
            if column not in visits:
                visits[column] = empty
        if len(visits):
            visits = visits.sort_values("announced_unix", kind="stable")
        steps = pd.DataFrame(
            {
                "visit": np.asarray(self._integers["visit"]),
                "detector": np.asarray(self._integers["detector"]).astype(np.int16),
                "step": self._names.column(self._integers["step"]),
                **{name: np.asarray(values) for name, values in self._floats.items()},
                "worker": self._workers.column(self._integers["worker"]),
                "outcome": self._outcomes.column(self._integers["outcome"]),
                "attempt": np.asarray(self._integers["attempt"]).astype(np.int16),
            }
        )
        return NightTables(visits, self._detectors(visits), steps, self._events)

    def _visit(self, record: Record, visit: int) -> None:
        found = self._visits.setdefault(visit, {"announced_unix": record.unix})
        texts = {"instrument": record.instrument, "group": record.group, "band": record.band}
        found.update({name: text for name, text in texts.items() if text or name not in found})
        found.update(record.numbers)

    def _step(self, record: Record) -> None:
        integers = self._integers
        integers["visit"].append(record.visit or 0)
        integers["detector"].append(-1 if record.detector is None else record.detector)
        integers["step"].append(self._names.code(record.step))
        integers["worker"].append(self._workers.code(record.worker))
        integers["outcome"].append(self._outcomes.code(record.outcome))
        integers["attempt"].append(record.attempt)
        for name in self._floats:
            value = getattr(record, name)
            self._floats[name].append(math.nan if value is None else value)

    def _ended(self, record: Record, visit: int, detector: int) -> None:
        known = self._rows.get((visit, detector))
        row = self._rows.setdefault((visit, detector), len(self._rows))
        texts = [record.outcome, record.step, record.cause, record.worker]
        if known is None:
            self._texts.append([*texts, record.outcome, record.cause])
            self._ends.append(1)
        else:
            self._texts[row][:4] = texts
            self._ends[row] += 1
            if record.outcome != State.DONE:
                self._numbers.clear(row)
        for name, value in record.numbers.items():
            self._numbers.put(row, name, value)

    def _detectors(self, visits: pd.DataFrame) -> pd.DataFrame:
        keys = np.array(list(self._rows), dtype=np.int64).reshape(-1, 2)
        names = ("state", "step", "cause", "worker", "first_state", "first_cause")
        texts = list(zip(*self._texts, strict=True)) or [()] * len(names)
        data: dict[str, Any] = {"visit": keys[:, 0], "detector": keys[:, 1]}
        data |= {name: np.array(column, dtype=object) for name, column in zip(names, texts, strict=True)}
        data["n_ended"] = np.asarray(self._ends)
        frame = pd.DataFrame(data | self._numbers.frame(len(keys)))
        missing = {name: 0.0 if name.startswith("n_") else math.nan for name in _NUMBERS if name not in frame}
        frame = frame.assign(**missing, band=frame["visit"].map(visits["band"]).fillna(""))
        frame[["n_sources", "n_alerts"]] = frame[["n_sources", "n_alerts"]].fillna(0.0)
        return frame.sort_values(["visit", "detector"], ignore_index=True)


def collect(records: Iterable[Record]) -> NightTables:
    """Tables of records, in the order in which they were written."""
    collector = Collector()
    for record in records:
        collector.take(record)
    return collector.tables()


def unknown_states(detectors: pd.DataFrame) -> Iterator[str]:
    """States that are no terminal ones."""
    yield from sorted(set(detectors["state"]) - _STATES)
