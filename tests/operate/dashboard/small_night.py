"""A made-up night of a small camera."""

from __future__ import annotations

from apflow.model.camera import load_camera
from apflow.model.ids import exposure_id
from apflow.model.record import Record
from apflow.simulate.night_records import Troubles, made_up_night

DAY = 20260401
CAMERA = load_camera("comcam")
DETECTORS = CAMERA.select("science")


def visits(n: int, troubles: Troubles | None = None) -> list[Record]:
    """Records of a night of `n` visits, without its end."""
    return list(made_up_night(CAMERA, DETECTORS, n, DAY, troubles=troubles or Troubles(0.0, 0.0, 0.0)))[:-1]


def number(i: int) -> int:
    """Of the visit `i`, from 1."""
    return exposure_id(DAY, i)


def ended(visit: int, detector: int, state: str, unix: float = 100.0, **numbers: float) -> Record:
    """The end of a detector-visit."""
    return Record(unix, "ended", visit, detector, outcome=state, numbers=numbers)
