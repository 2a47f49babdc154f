"""``apflow night doctor``: whether a night can begin, and what to do where it cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from astropy.time import Time

from apflow.errors import ApflowError, BadRequest
from apflow.model.camera import load_camera
from apflow.model.ids import exposure_id, mid_night
from apflow.operate.night.doctor_machine import check_machine, needed_cores
from apflow.operate.night.doctor_repository import Field, check_repository, read_fields
from apflow.operate.night.doctor_services import check_cluster, check_services
from apflow.operate.night.finding import Finding, failure
from apflow.operate.night.ranges import load_ranges
from apflow.operate.repository import repository_config


@dataclass(frozen=True)
class Patient:
    """What the doctor is asked about.

    Attributes
    ----------
    butler, ppdb : `str`
        The repository, and a PPDB where it is not the configured one.
    kafka : `str`
        ``host:port[/topic]`` where it is not the configured one.
    cluster : `str`
        Kind of cluster, or the address of a scheduler.
    cadence_s : `float`
        Between visits.
    fields : sequence of `Field`
        Where the telescope will point.
    visits : `pathlib.Path` or `None`
        File with more of these.
    night : `str`
        Day of observation whose middle is meant; empty: now.
    """

    butler: str
    ppdb: str = ""
    kafka: str = ""
    cluster: str = "local"
    cadence_s: float = 37.0
    fields: Sequence[Field] = ()
    visits: Path | None = None
    night: str = ""


def diagnose(patient: Patient) -> Iterator[Finding]:
    """Every check in turn; one that fails keeps no other from being made.

    Raises
    ------
    BadRequest
        The file of visits cannot be read, or the night is no date.
    """
    try:
        config = repository_config(patient.butler, patient.ppdb, f"kafka://{patient.kafka}" if patient.kafka else "")
        camera = load_camera(config.camera, config.size)
    except ApflowError as error:
        yield failure("configuration", str(error), f"apflow init {patient.butler}, or correct its apflow.toml")
        return
    root = Path(config.butler)
    fields = [*patient.fields, *(read_fields(patient.visits, camera) if patient.visits else ())]
    yield from check_machine(root, camera, patient.cadence_s, patient.cluster)
    if patient.cluster.startswith(("tcp://", "tls://")):
        yield from check_cluster(patient.cluster, needed_cores(camera, patient.cadence_s))
    yield from check_repository(root, fields, _when(patient.night))
    yield from check_services(config)
    try:
        load_ranges(config.night.ranges)
    except ApflowError as error:
        yield failure("ranges", str(error), "correct the file of [night] ranges")


def _when(night: str) -> Time:
    """The middle of a night, or now; TAI."""
    if not night:
        return Time.now().tai
    try:
        datetime.strptime(night, "%Y%m%d")
    except ValueError as error:
        raise BadRequest(f"--night {night!r} is not accepted: a date as YYYYMMDD") from error
    return Time(mid_night(exposure_id(int(night), 0)), format="mjd", scale="tai")
