"""What the summit announces: nextVisit, its cancellation, and the start of an integration.

Fields and codes are those of Rubin's SAL events ``ScriptQueue.logevent_nextVisit``,
``ScriptQueue.logevent_nextVisitCanceled`` and ``MTCamera.logevent_startIntegration``.
Fields that are not named here are left alone: the summit adds some now and then.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from apflow.errors import BadRequest
from apflow.model.camera import Camera
from apflow.model.ids import image_name
from apflow.model.message import Fields
from apflow.model.visit import Visit

#: Images of the sky; there is no nextVisit for others (DMTN-092 section 2.3).
SCIENCE = "OBJECT"


class CoordinateSystem(enum.IntEnum):
    """What `position` of nextVisit is in."""

    NONE = 1
    ICRS = 2
    OBSERVED = 3
    MOUNT = 4


class RotationSystem(enum.IntEnum):
    """What `cameraAngle` of nextVisit is in."""

    NONE = 1
    SKY = 2
    HORIZON = 3
    MOUNT = 4


class Dome(enum.IntEnum):
    """How the dome must be."""

    CLOSED = 1
    OPEN = 2
    EITHER = 3


@dataclass(frozen=True)
class Stamps:
    """The private_* fields: who sent an event, and when (TAI, seconds since 1970; 0 where unknown)."""

    sent_tai: float = 0.0
    received_tai: float = 0.0
    efd_tai: float = 0.0
    kafka_tai: float = 0.0
    sequence: int = 0
    origin: int = 0
    identity: str = ""
    revision: str = ""

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """Those of an event."""
        return cls(
            sent_tai=fields.number("private_sndStamp", 0.0, low=0.0),
            received_tai=fields.number("private_rcvStamp", 0.0, low=0.0),
            efd_tai=fields.number("private_efdStamp", 0.0, low=0.0),
            kafka_tai=fields.number("private_kafkaStamp", 0.0, low=0.0),
            sequence=fields.whole("private_seqNum", 0),
            origin=fields.whole("private_origin", 0),
            identity=fields.text("private_identity", ""),
            revision=fields.text("private_revCode", ""),
        )


@dataclass(frozen=True)
class NextVisit:
    """The event nextVisit.

    Attributes
    ----------
    sal_index, script_sal_index : `int`
        Of the script queue, and of the script that will take the images.
    group : `str`
        Ties the event to its images; it carries neither their names nor an exposure id.
    coordinate_system : `CoordinateSystem`
    position : `tuple` [`float`, `float`]
        Degrees; right ascension and declination where the system is ICRS.
    start_tai : `float`
        When the visit will begin, TAI seconds since 1970; 0 where unknown.
    rotation_system : `RotationSystem`
    camera_angle_deg : `float`
        Position angle of the focal plane's +Y, East of North, where the system is the sky.
    filters : `tuple` [`str`, ...]
        Those that may be used; empty for any.
    dome : `Dome`
    duration_s : `float`
        Expected length of the visit.
    nimages : `int`
        Images (snaps) of the visit, 0 where unknown.
    instrument, survey : `str`
    total_checkpoints : `int`
    exposure_time_s : `float`, optional
        Open-shutter time of one image. The summit's event has no such field.
    stamps : `Stamps`
    """

    sal_index: int
    script_sal_index: int
    group: str
    coordinate_system: CoordinateSystem
    position: tuple[float, float]
    start_tai: float
    rotation_system: RotationSystem
    camera_angle_deg: float
    filters: tuple[str, ...]
    dome: Dome
    duration_s: float
    nimages: int
    instrument: str
    survey: str
    total_checkpoints: int
    exposure_time_s: float | None = None
    stamps: Stamps = Stamps()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read an event.

        Raises
        ------
        BadRequest
            A field is missing or not accepted; the message names it, its
            value and what is accepted.
        """
        fields = Fields("nextVisit", record)
        system = fields.code("coordinateSystem", CoordinateSystem)
        icrs = system is CoordinateSystem.ICRS
        return cls(
            sal_index=fields.whole("salIndex", 0, low=0),
            script_sal_index=fields.whole("scriptSalIndex", 0, low=0),
            group=fields.name("groupId"),
            coordinate_system=system,
            position=fields.pair("position", ((0.0, 360.0), (-90.0, 90.0)) if icrs else None),
            start_tai=fields.number("startTime", 0.0, low=0.0),
            rotation_system=fields.code("rotationSystem", RotationSystem),
            camera_angle_deg=fields.number("cameraAngle", low=-360.0, high=360.0),
            filters=tuple(f for f in (f.strip() for f in fields.text("filters", "").split(",")) if f),
            dome=fields.code("dome", Dome, Dome.EITHER),
            duration_s=fields.number("duration", 0.0, low=0.0, high=86_400.0),
            nimages=fields.whole("nimages", 0, low=0, high=2),
            instrument=fields.name("instrument"),
            survey=fields.text("survey", ""),
            total_checkpoints=fields.whole("totalCheckpoints", 0, low=0),
            exposure_time_s=fields.optional_number("exposureTime", low=0.0, high=3600.0),
            stamps=Stamps.read(fields),
        )

    @property
    def unfit(self) -> str:
        """Why no science visit can be prepared from this event; empty where one can. That is no error."""
        if self.coordinate_system is not CoordinateSystem.ICRS:
            return f"nextVisit of group {self.group!r}: coordinateSystem {self.coordinate_system.name}, not ICRS"
        if self.rotation_system is not RotationSystem.SKY:
            return f"nextVisit of group {self.group!r}: rotationSystem {self.rotation_system.name}, not SKY"
        if self.dome is Dome.CLOSED:
            return f"nextVisit of group {self.group!r}: dome CLOSED"
        return ""

    def age_s(self, now_tai: float) -> float:
        """Seconds since the event was sent, or since the visit was to begin where that is all that is known."""
        told = self.stamps.sent_tai or self.start_tai
        return now_tai - told if told else 0.0

    def check(self, camera: Camera) -> None:
        """Refuse what the camera does not have.

        Raises
        ------
        BadRequest
            Another instrument, or a filter that the camera does not have.
        """
        if self.instrument != camera.instrument:
            raise BadRequest(f"nextVisit.instrument {self.instrument!r} is not accepted: {camera.instrument}")
        for name in self.filters:
            camera.filter(name)

    def visit(self, camera: Camera, exposure: int, nsnaps: int, exposure_time_s: float) -> Visit:
        """The visit that the event announced, once its first exposure is known.

        Parameters
        ----------
        camera : `Camera`
        exposure : `int`
            Exposure id of the first snap.
        nsnaps : `int`
            1 or 2.
        exposure_time_s : `float`
            Expected open-shutter time of one snap.

        Raises
        ------
        BadRequest
            See `check`; or more than one filter is open, which a header must tell first.
        """
        self.check(camera)
        if len(self.filters) > 1:
            raise BadRequest(
                f"nextVisit.filters {','.join(self.filters)!r} of group {self.group!r} leave it open which"
            )
        chosen = camera.filter(self.filters[0]) if self.filters else None
        return Visit(
            instrument=camera.instrument,
            visit=exposure,
            group=self.group,
            ra_deg=self.position[0],
            dec_deg=self.position[1],
            rotation_deg=self.camera_angle_deg,
            physical_filter=chosen.physical_filter if chosen else "",
            band=chosen.band if chosen else "",
            exposure_time_s=exposure_time_s,
            images=tuple(image_name(exposure + snap, camera.image_prefix) for snap in range(nsnaps)),
        )


@dataclass(frozen=True)
class NextVisitCanceled:
    """The event nextVisitCanceled: the visit of a group will not be."""

    sal_index: int
    script_sal_index: int
    group: str
    stamps: Stamps = Stamps()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read an event; see `NextVisit.from_record` for errors."""
        fields = Fields("nextVisitCanceled", record)
        return cls(
            fields.whole("salIndex", 0, low=0),
            fields.whole("scriptSalIndex", 0, low=0),
            fields.name("groupId"),
            Stamps.read(fields),
        )


@dataclass(frozen=True)
class StartIntegration:
    """The event startIntegration: the shutter opens for an image.

    Attributes
    ----------
    sal_index : `int`
    image : `str`
        Its name, such as ``MC_O_20250420_000123``.
    exposure : `int`
        Exposure id, from the name.
    exposure_time_s : `float`
    images_in_sequence : `int`
        Images that one command takes; 0 where unknown.
    image_index : `int`
        Which of them this is, from 1; 0 where unknown.
    image_type : `str`
        BIAS, DARK, FLAT, CBP, OBJECT ...; empty where unknown.
    group : `str`
        Empty where unknown.
    more : `dict` [`str`, `str`]
        All additional keys with their values.
    stamps : `Stamps`
    """

    sal_index: int
    image: str
    exposure: int
    exposure_time_s: float
    images_in_sequence: int
    image_index: int
    image_type: str
    group: str
    more: Mapping[str, str]
    stamps: Stamps = Stamps()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read an event; see `NextVisit.from_record` for errors."""
        fields = Fields("startIntegration", record)
        more = fields.additional("additionalKeys", "additionalValues")
        in_sequence = fields.whole("imagesInSequence", 0, low=0)
        image, parts = fields.image("imageName")
        return cls(
            sal_index=fields.whole("salIndex", 0, low=0),
            image=image,
            exposure=parts.exposure,
            exposure_time_s=fields.number("exposureTime", low=0.0, high=3600.0),
            images_in_sequence=in_sequence,
            image_index=fields.whole("imageIndex", 0, low=0, high=in_sequence or math.inf),
            image_type=more.get("imageType", "").upper(),
            group=Fields("startIntegration", more).name("groupId") if more.get("groupId") else "",
            more=more,
            stamps=Stamps.read(fields),
        )

    @property
    def nsnaps(self) -> int:
        """Snaps of the visit, 0 where the event does not tell: longer sequences are not snaps."""
        return self.images_in_sequence if self.images_in_sequence in (1, 2) else 0

    @property
    def first_exposure(self) -> int:
        """Exposure id of the visit's first snap."""
        return self.exposure - (self.nsnaps == 2 and self.image_index == 2)


Message = NextVisit | NextVisitCanceled | StartIntegration

#: What the doors call the events.
KINDS: Mapping[str, type[NextVisit] | type[NextVisitCanceled] | type[StartIntegration]] = {
    "nextVisit": NextVisit,
    "nextVisitCanceled": NextVisitCanceled,
    "startIntegration": StartIntegration,
}


def parse(kind: str, record: Any) -> Message:
    """Read an event of any kind.

    Raises
    ------
    BadRequest
        There is no such kind, it is no record, or a field is not accepted.
    """
    if kind not in KINDS:
        raise BadRequest(f"event {kind!r} is not accepted: {', '.join(KINDS)}")
    if not isinstance(record, Mapping):
        raise BadRequest(f"{kind}: {str(record)[:80]!r} is not accepted: a record of named fields")
    return KINDS[kind].from_record(record)
