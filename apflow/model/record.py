"""Records of a night: one structured event for each thing that happened, of which dashboard and report are made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from apflow.errors import DataError

#: visit: announced or started. step: one run of a step of a detector-visit. batch: of a step that gathers detectors.
#: ended: a detector-visit came to its end. visit_ended: all of a visit's did. worker, cluster: lost, restarted, up ...
#: shed: optional work left out. rerun: begun on another worker as well. late: missed its batch. unsent: alerts wait.
#: night: start, stop, resumed.
KINDS = (
    "visit",
    "step",
    "batch",
    "ended",
    "visit_ended",
    "worker",
    "cluster",
    "shed",
    "rerun",
    "late",
    "unsent",
    "night",
)


@dataclass(frozen=True)
class Record:
    """One event.

    Attributes
    ----------
    unix : `float`
        When it was noticed, Unix seconds.
    kind : `str`
        One of `KINDS`.
    visit, detector : `int` or `None`
        What it is about; None where it is about all.
    step : `str`
        Name of the step that ran, or at which a detector-visit ended.
    start_unix, stop_unix : `float` or `None`
        Of what took time.
    core_s : `float` or `None`
        CPU seconds.
    worker : `str`
        Where.
    outcome : `str`
        Terminal state of what ended, or what happened (``lost``, ``resumed``).
    cause : `str`
        Why.
    attempt : `int`
        1 for the first.
    numbers : mapping of `str` to `float`
        Metrics, counts and times by name; what is not known is not there.
    instrument, group, band : `str`
        Of a visit.
    """

    unix: float
    kind: str
    visit: int | None = None
    detector: int | None = None
    step: str = ""
    start_unix: float | None = None
    stop_unix: float | None = None
    core_s: float | None = None
    worker: str = ""
    outcome: str = ""
    cause: str = ""
    attempt: int = 1
    numbers: Mapping[str, float] = field(default_factory=dict)
    instrument: str = ""
    group: str = ""
    band: str = ""

    def to_line(self) -> str:
        """One line of JSON, its end included; what has its default is left out, as are numbers that are not finite."""
        values: dict[str, Any] = {"unix": self.unix, "kind": self.kind}
        for name, default in _OPTIONAL:
            value = getattr(self, name)
            if value != default and not (isinstance(value, float) and not math.isfinite(value)):
                values[name] = value
        if self.numbers:
            values["numbers"] = {name: float(v) for name, v in self.numbers.items() if math.isfinite(v)}
        return json.dumps(values, allow_nan=False, separators=(",", ":")) + "\n"

    @classmethod
    def from_line(cls, line: str | bytes) -> Record:
        """Read what `to_line` wrote.

        Raises
        ------
        DataError
            It is no record.
        """
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(f"{line[:80]!r} is no record of a night: {error}") from error


_OPTIONAL = tuple((f.name, f.default) for f in fields(Record) if f.name not in ("unix", "kind", "numbers"))
