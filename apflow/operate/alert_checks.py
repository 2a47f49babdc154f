"""What must hold of every alert, checked with readers that share nothing with the writer but the schema."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fastavro
import numpy as np

from apflow.errors import DataError
from apflow.operate.alert_stamps import STAMPS, Stamp, read_stamp

#: What is checked, in the order of the table.
CHECKS = {
    "framing": "the bytes are those that were archived, or framed as Confluent's clients want them",
    "schema": "the whole packet decodes as its schema says",
    "ids": "one id for alert, source, object, key and history",
    "stamps": "three FITS files of equal planes, header of one block, the source in the middle",
    "history": "in order of time, not after the source, no longer than the history is kept",
    "values": "the DiaSource as the PPDB has it",
    "once": "one alert for every stored DiaSource, and none without",
}
_STAMP_PX = (30, 102)
#: The source's pixel is the middle one, rounding and the stamp's even side included.
_OFF_CENTRE_PX = 1.5
_SAME_TIME_DAYS = 1e-9


@dataclass
class Report:
    """Counts of what was checked, and what was wrong.

    Attributes
    ----------
    checked : `dict`
        Number of alerts by check.
    problems : `dict`
        What was wrong, by check.
    """

    checked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CHECKS, 0))
    problems: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in CHECKS})
    notes: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """Whether nothing was wrong."""
        return not any(self.problems.values())

    def add(self, name: str, problems: Sequence[str] | Iterator[str], checked: int = 1) -> None:
        """Count alerts, and keep what was wrong with them."""
        self.checked[name] += checked
        self.problems[name] += problems


def decode(datum: bytes, definition: Any) -> dict[str, Any]:
    """The record of a datum that holds nothing else, by the schema that it was written with.

    Raises
    ------
    DataError
        It does not fit the schema.
    """
    file = io.BytesIO(datum)
    try:
        record: Any = fastavro.schemaless_reader(file, definition, None)
    except (ValueError, EOFError, IndexError, KeyError, UnicodeDecodeError, StopIteration) as error:
        raise DataError(f"{type(error).__name__} {error}".strip()) from error
    if file.tell() != len(datum):
        raise DataError(f"{len(datum) - file.tell()} bytes are left over")
    return dict(record)


def check_alert(report: Report, alert: Mapping[str, Any], alert_id: int, object_id: int, history_days: float) -> None:
    """Check ids, stamps and history of one decoded alert, which should bear these ids."""
    report.add("ids", [f"alert {alert_id}: {p}" for p in _ids(alert, alert_id, object_id)])
    report.add("stamps", [f"alert {alert_id}: {p}" for p in _stamps(alert)])
    report.add("history", [f"alert {alert_id}: {p}" for p in _history(alert, history_days)])


def _ids(alert: Mapping[str, Any], alert_id: int, object_id: int) -> Iterator[str]:
    source, known = alert["diaSource"], alert["diaObject"]
    for name, found in (("diaSourceId", alert["diaSourceId"]), ("diaSource.diaSourceId", source["diaSourceId"])):
        if found != alert_id:
            yield f"{name} is {found}"
    if source["diaObjectId"] is None and source["ssObjectId"] is None:
        yield "neither diaObjectId nor ssObjectId"
    if object_id not in (source["diaObjectId"] or 0, source["ssObjectId"] or 0):
        yield f"of object {object_id} by its key or index; diaObjectId is {source['diaObjectId']}"
    if (known["diaObjectId"] if known else None) != source["diaObjectId"]:
        yield f"diaSource.diaObjectId {source['diaObjectId']}, diaObject {known and known['diaObjectId']}"
    for name, key in (("prvDiaSources", "diaSourceId"), ("prvDiaForcedSources", "diaForcedSourceId")):
        rows = alert.get(name) or ()
        strangers = {row["diaObjectId"] for row in rows} - {source["diaObjectId"]}
        if strangers:
            yield f"{name} holds rows of object {min(map(str, strangers))}"
        if len({row[key] for row in rows}) != len(rows):
            yield f"{name} holds a row twice"
    if any(row["diaSourceId"] == alert_id for row in alert.get("prvDiaSources") or ()):
        yield "the source is among its own prvDiaSources"


def _history(alert: Mapping[str, Any], days: float) -> Iterator[str]:
    now = alert["diaSource"]["midpointMjdTai"]
    for name in ("prvDiaSources", "prvDiaForcedSources"):
        times = np.array([row["midpointMjdTai"] for row in alert.get(name) or ()], float)
        if (np.diff(times) < 0).any():
            yield f"{name} is not in order of time"
        if len(times) and times.max() > now + _SAME_TIME_DAYS:
            yield f"{name} reaches {times.max() - now:.6f} days beyond the source"
        if len(times) and times.min() < now - days - _SAME_TIME_DAYS:
            yield f"{name} goes back {now - times.min():.1f} days; accepted: {days:g}"


def _stamps(alert: Mapping[str, Any]) -> Iterator[str]:
    for name, column in STAMPS.items():
        data = alert[column]
        if data is None:
            yield f"no {name} stamp"
            continue
        try:
            problems = [*_stamp(read_stamp(data), alert["diaSource"])]
        except DataError as error:
            problems = [str(error)]
        yield from (f"{name}: {p}" for p in problems)


def _stamp(stamp: Stamp, source: Mapping[str, Any]) -> Iterator[str]:
    if stamp.header_blocks != 1:
        yield f"the primary header takes {stamp.header_blocks} blocks of 2,880 bytes; accepted: 1"
    shape = stamp.image.shape
    if len(shape) != 2 or not all(_STAMP_PX[0] <= n <= _STAMP_PX[1] for n in shape):
        yield f"of shape {shape}; accepted: {_STAMP_PX[0]} to {_STAMP_PX[1]} pixels a side"
        return
    for plane in ("UNCERT", "MASK"):
        if plane not in stamp.planes:
            yield f"no {plane}"
        elif stamp.planes[plane].shape != shape:
            yield f"{plane} of shape {stamp.planes[plane].shape}, the image {shape}"
    psf = stamp.planes.get("PSFIMAGE")
    if psf is not None and not abs(float(psf.sum()) - 1) < 0.05:
        yield f"the PSF's sum is {float(psf.sum()):.3f}; accepted: 1"
    if stamp.wcs is None:
        yield f"no WCS; CTYPE1 is {stamp.header.get('CTYPE1')!r}"
        return
    x, y = (float(v) for v in stamp.wcs.sky_to_pixel(source["ra"], source["dec"]))
    off = max(abs(x - shape[1] / 2 + 0.5), abs(y - shape[0] / 2 + 0.5))
    if not off < _OFF_CENTRE_PX:
        yield f"the source lies at ({x:.1f}, {y:.1f}) of {shape[1]} x {shape[0]} pixels by the WCS"
