"""Measurements as records of Sasquatch, and the Avro schema of a topic."""

from __future__ import annotations

import functools
import json
import math
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from astropy.time import Time

from apflow import __version__
from apflow.errors import BadRequest
from apflow.model.metrics import Measurement

#: What a record may be identified by: with the time they tell one point from another.
IDENTIFIERS = (
    "detector",
    "patch",
    "skymap",
    "visit",
    "tract",
    "physical_filter",
    "instrument",
    "band",
    "exposure",
    "group",
    "day_obs",
)
#: Fields before the identifiers, by Avro type.
HEAD = {
    "id": "string",
    "timestamp": "double",
    "dataset_tag": "string",
    "reference_package": "string",
    "reference_package_version": "string",
}
_LEGAL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ORIGIN = uuid.uuid5(uuid.NAMESPACE_DNS, "apflow")


@dataclass(frozen=True)
class Record:
    """A point in time of one topic.

    Attributes
    ----------
    action : `str`
        The topic, without its namespace.
    head : mapping
        The fields of `HEAD` and all `IDENTIFIERS`, which are "" where there is none.
    values : mapping of `str` to `float` or `None`
        The metrics.
    """

    action: str
    head: Mapping[str, str | float]
    values: Mapping[str, float | None]

    def json(self) -> str:
        """The record as Confluent's JSON encoding of Avro has it."""
        values = {name: None if v is None else {"double": v} for name, v in self.values.items()}
        return json.dumps({**self.head, **values}, allow_nan=False)


def record_of(measurement: Measurement, version: str = __version__) -> Record:
    """The record of a measurement.

    Its time is the midpoint of the exposure in seconds of Unix, which is UTC.
    What is not finite becomes null. The same measurement gives the same record
    whenever and wherever it is made, so that one sent twice is one point.

    Parameters
    ----------
    version : `str`, optional
        Of the apflow that measured.
    """
    identifiers = {key: str(measurement.identifiers.get(key, "")) for key in IDENTIFIERS}
    what = json.dumps([measurement.action, measurement.mjd_mid_tai, identifiers])
    head: dict[str, str | float] = {
        "id": str(uuid.uuid5(_ORIGIN, what)),
        "timestamp": unix_s(measurement.mjd_mid_tai),
        "dataset_tag": "prompt",
        "reference_package": "apflow",
        "reference_package_version": version,
    }
    values = {n: float(v) if v is not None and math.isfinite(v) else None for n, v in measurement.values.items()}
    return Record(measurement.action, head | identifiers, values)


def check(measurement: Measurement) -> None:
    """Whether a measurement can be a record.

    Raises
    ------
    BadRequest
        Avro does not allow the name of the action or of a metric, a metric is
        called as a field that every record has, an identifier is unknown, or
        the time is not finite.
    """
    if not math.isfinite(measurement.mjd_mid_tai):
        raise BadRequest(f"time of {measurement.action} is {measurement.mjd_mid_tai}; accepted: an MJD")
    unknown = set(measurement.identifiers) - set(IDENTIFIERS)
    if unknown:
        raise BadRequest(f"identifier {min(unknown)} of {measurement.action}; accepted: {', '.join(IDENTIFIERS)}")
    _check_names(measurement.action, tuple(measurement.values))


@functools.lru_cache(maxsize=256)
def _check_names(action: str, metrics: tuple[str, ...]) -> None:
    for name in (action, *metrics):
        if not _LEGAL.fullmatch(name):
            raise BadRequest(f"name {name!r} in action {action}; accepted: letters, digits and _, no digit first")
    if taken := {*HEAD, *IDENTIFIERS} & set(metrics):
        raise BadRequest(f"metric {min(taken)} of action {action} is called as a field that all records have")


@functools.lru_cache(maxsize=64)
def unix_s(mjd_tai: float) -> float:
    """A time as seconds of Unix, which is UTC, to the microsecond that an MJD tells."""
    return round(float(Time(mjd_tai, format="mjd", scale="tai").unix), 6)


@functools.lru_cache(maxsize=256)
def schema(namespace: str, action: str, metrics: tuple[str, ...]) -> str:
    """Avro schema of a topic as JSON.

    Metrics are null by default: a later schema may have more of them.
    """
    fields: list[dict[str, Any]] = [{"name": name, "type": kind} for name, kind in HEAD.items()]
    fields += [{"name": name, "type": "string", "default": ""} for name in IDENTIFIERS]
    fields += [{"name": name, "type": ["null", "double"], "default": None} for name in metrics]
    return json.dumps({"type": "record", "namespace": namespace, "name": action, "fields": fields})


def to_bytes(measurements: Iterable[Measurement]) -> bytes:
    """Content of a file of the spool."""
    rows = [[m.action, dict(m.values), dict(m.identifiers), m.mjd_mid_tai] for m in measurements]
    # Numbers of numpy are no numbers to json.
    return json.dumps({"version": __version__, "measurements": rows}, default=methodcaller("item")).encode()


def from_bytes(content: bytes) -> list[Record]:
    """Records of a file of the spool.

    Raises
    ------
    ValueError, TypeError
        It is none.
    """
    match json.loads(content):
        case {"version": str(version), "measurements": [*rows]}:
            return [record_of(Measurement(*row), version) for row in rows]
    raise ValueError("not the content of such a file")
