"""What became of each detector of each visit: one terminal state, with a cause."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class State(enum.StrEnum):
    """Terminal states of a detector-visit."""

    DONE = "done"
    NO_TEMPLATE = "no_template"
    NO_CALIB = "no_calib"
    IMAGE_TIMEOUT = "image_timeout"
    BAD_DATA = "bad_data"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class StepRecord:
    """One run of one step: when (Unix seconds), its CPU seconds, where."""

    step: str
    start_unix: float
    stop_unix: float
    core_s: float
    worker: str


@dataclass(frozen=True)
class Failure:
    """How a step ended that did not give a value: the value's stand-in downstream."""

    state: State
    step: str
    cause: str


@dataclass(frozen=True)
class Outcome:
    """The end of one detector-visit, as the ledger keeps it."""

    instrument: str
    visit: int
    detector: int
    state: State
    cause: str = ""
    step: str = ""
    n_sources: int = 0
    n_alerts: int = 0
    arrived_unix: float | None = None
    stored_unix: float | None = None
    published_unix: float | None = None
    steps: tuple[StepRecord, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Ended:
    """A detector chain that came to its end, as the gathers receive it: a value or a failure.

    `measured` is what the steps before a failure measured; a value has it itself.
    """

    detector: int
    value: Any = None  # DetectorResult
    failure: Failure | None = None
    steps: tuple[StepRecord, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)
