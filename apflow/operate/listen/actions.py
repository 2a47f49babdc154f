"""What the desk decides; the service does it."""

from __future__ import annotations

from dataclasses import dataclass

from apflow.model.calibration import CalibrationExposure
from apflow.model.next_visit import NextVisit
from apflow.model.visit import Visit

#: What a graph is run for.
Target = Visit | CalibrationExposure
#: From the end of an exposure to its image.
READOUT_S = 2.5


@dataclass(frozen=True)
class Prepare:
    """Make ready for a visit whose exposure id is not known yet: that of `visit` tells its night alone."""

    group: str
    visit: Visit
    graph: str


@dataclass(frozen=True)
class Start:
    """Run a graph for a visit, or for a calibration exposure.

    Attributes
    ----------
    visit : `Visit` or `CalibrationExposure`
    graph : `str`
    detectors : `tuple` [`int`, ...] or `None`
        Those whose images are expected; None where nobody told.
    exposing_s : `float`
        Until the last image can be expected; it is waited for after that.
    """

    visit: Target
    graph: str
    detectors: tuple[int, ...] | None = None
    exposing_s: float = 0.0


@dataclass(frozen=True)
class Restart(Start):
    """Give up what runs, and run it anew with other values."""

    instead_of: Target | None = None
    reason: str = ""


@dataclass(frozen=True)
class Cancel:
    """End the waiting for a group at once, and what was started for it, if anything was.

    Of a calibration exposure the group is empty: others of its group go on.
    """

    group: str
    visit: Target | None
    reason: str


@dataclass(frozen=True)
class TimedOut:
    """No image of an announced visit came: each of its detectors ends as image_timeout."""

    group: str
    event: NextVisit


@dataclass(frozen=True)
class Ignore:
    """Nothing is done, and why; `kept`: it is known now all the same, and may count later."""

    what: str
    reason: str
    kept: bool = False


Action = Prepare | Start | Restart | Cancel | TimedOut | Ignore
