"""What is known of groups and exposures: a set of what was told, in whatever order it came."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field

from apflow.model.camera import Camera
from apflow.model.next_visit import NextVisit, StartIntegration
from apflow.model.sighting import Sighting
from apflow.model.sky import separation_arcsec
from apflow.model.visit import Visit
from apflow.operate.listen.actions import READOUT_S


@dataclass(eq=False)
class Group:
    """What was announced of a group.

    Attributes
    ----------
    event : `NextVisit` or `None`
        The newest.
    heard_unix : `float`
        When anything was first heard of the group; `event_unix`: of that event.
    cancelled, closed : `bool`
        Whether it was cancelled; whether its waiting is over, with or without an image.
    prepared : `Visit` or `None`
        What was prepared.
    """

    name: str
    heard_unix: float
    event: NextVisit | None = None
    event_unix: float = 0.0
    cancelled: bool = False
    closed: bool = False
    prepared: Visit | None = None


def is_newer(new: NextVisit, old: NextVisit | None) -> bool:
    """Whether an event replaces another: by when it was sent, not by when it came."""
    return old is None or _order(new) > _order(old)


def _order(event: NextVisit) -> tuple[float, int, str]:
    plain = dataclasses.replace(event, stamps=type(event.stamps)())
    return event.stamps.sent_tai, event.stamps.sequence, repr(plain)


@dataclass(frozen=True)
class Tolerance:
    """How far an image may be from what was announced."""

    pointing_deg: float
    angle_deg: float

    def difference(self, a: Visit | Sighting, b: Visit | Sighting) -> str:
        """How two descriptions of a pointing disagree; empty where they do not."""
        apart_deg = float(separation_arcsec(a.ra_deg, a.dec_deg, b.ra_deg, b.dec_deg)) / 3600.0
        turned_deg = abs(math.remainder(a.rotation_deg - b.rotation_deg, 360.0))
        if apart_deg > self.pointing_deg:
            return f"pointing off by {apart_deg:.2f} deg"
        if turned_deg > self.angle_deg:
            return f"sky angle off by {turned_deg:.2f} deg"
        if a.physical_filter != b.physical_filter:
            return f"filter {b.physical_filter}, not {a.physical_filter or 'told'}"
        return ""


@dataclass(eq=False)
class View:
    """Headers that agree with each other: one of them, and the detectors that told it."""

    header: Sighting
    detectors: set[int] = field(default_factory=set)

    def rank(self) -> tuple[int, int]:
        """More detectors first; of as many, those with the lowest id."""
        return -len(self.detectors), min(self.detectors)


@dataclass(eq=False)
class Shot:
    """What was told of one visit that is identified: of the exposure of its first snap, and the second.

    Attributes
    ----------
    first : `int`
        Exposure id of the first snap: the visit's id.
    integrations : `dict` [`int`, `StartIntegration`]
        By exposure.
    views : `list` [`View`]
        What headers said. One file may hold a wrong header: most detectors are right.
    seen_unix : `float`
        When the first header was seen; 0 before.
    running, graph : `Visit`, `str`
        What was started, and by which graph; `again`: in place of something
        else; `ended`: whether it came to its end, and `ended_unix` when.
    """

    first: int
    heard_unix: float
    integrations: dict[int, StartIntegration] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    groups: Counter[str] = field(default_factory=Counter)
    snaps: set[int] = field(default_factory=set)
    told: set[tuple[object, ...]] = field(default_factory=set)
    expected: tuple[int, ...] | None = None
    seen_unix: float = 0.0
    running: Visit | None = None
    graph: str = ""
    again: bool = False
    ended: bool = False
    ended_unix: float = 0.0

    @property
    def group(self) -> str:
        """The group: as the camera announced it, else as most headers say; empty where nobody did."""
        named = sorted(event.group for event in self.integrations.values() if event.group)
        if named:
            return named[0]
        return min(self.groups, key=lambda name: (-self.groups[name], name), default="")

    @property
    def header(self) -> Sighting | None:
        """What most headers say."""
        return min(self.views, key=View.rank).header if self.views else None

    def integrate(self, event: StartIntegration) -> bool:
        """Take the start of an integration; whether it is news."""
        if event.exposure in self.integrations:
            return False
        self.integrations[event.exposure] = event
        return True

    def see(self, sighting: Sighting, now_unix: float, tolerance: Tolerance) -> bool:
        """Take what a file told; whether it is news."""
        key = (sighting.detector, sighting.exposure, sighting.group, _values(sighting))
        if key in self.told:
            return False
        self.told.add(key)
        if sighting.expected is not None:
            self.expected = tuple(sorted({*(self.expected or ()), *sighting.expected}))
        if sighting.group:
            self.groups[sighting.group] += 1
        if is_header(sighting):
            self.seen_unix = self.seen_unix or now_unix
            self.snaps.add(sighting.snap)
            detector = -1 if sighting.detector is None else sighting.detector
            agreeing = next((v for v in self.views if not tolerance.difference(v.header, sighting)), None)
            if agreeing is None:
                agreeing = View(sighting)
                self.views.append(agreeing)
            agreeing.detectors.add(detector)
        return True

    def nsnaps(self, event: NextVisit | None) -> int:
        """Snaps of the visit: as the headers say, else the camera, else the announcement; 1 where nobody tells."""
        header = self.header
        if 2 in self.snaps or (header is not None and header.nsnaps == 2):
            return 2
        if header is not None and header.nsnaps == 1:
            return 1
        told = [integration.nsnaps for integration in self.integrations.values() if integration.nsnaps]
        announced = event.nimages if event is not None else 0
        return max(told) if told else announced or 1

    def exposure_time_s(self, event: NextVisit | None) -> float:
        """Open-shutter time of one snap, as well as it is known."""
        if self.header is not None and math.isfinite(self.header.exposure_time_s):
            return self.header.exposure_time_s
        if self.integrations:
            return self.integrations[min(self.integrations)].exposure_time_s
        if event is None:
            return 0.0
        return event.exposure_time_s or min(event.duration_s / self.nsnaps(event), 3600.0)

    def image_type(self, default: str) -> str:
        """Type of the images."""
        if self.header is not None and self.header.image_type:
            return self.header.image_type
        told = sorted(event.image_type for event in self.integrations.values() if event.image_type)
        return told[0] if told else default

    def exposing_s(self) -> float:
        """Until all images may be there: an exposure that began just now has them all before it."""
        if self.header is not None and self.running is not None and len(self.snaps) >= self.running.nsnaps:
            return 0.0
        return (self.running.exposure_time_s + READOUT_S) * self.running.nsnaps if self.running else 0.0


def first_exposure(sighting: Sighting) -> int:
    """Exposure id of the first snap of an image's visit."""
    return sighting.exposure - (sighting.snap - 1)


def is_header(sighting: Sighting) -> bool:
    """Whether a file told where the telescope looked, through which filter."""
    numbers = (sighting.ra_deg, sighting.dec_deg, sighting.rotation_deg)
    return all(math.isfinite(n) for n in numbers) and bool(sighting.physical_filter)


def visit_of(header: Sighting, first: int, group: str, images: tuple[str, ...], exposure_time_s: float) -> Visit:
    """The visit that a header tells of."""
    return Visit(
        instrument=header.instrument,
        visit=first,
        group=group,
        ra_deg=header.ra_deg,
        dec_deg=header.dec_deg,
        rotation_deg=header.rotation_deg,
        physical_filter=header.physical_filter,
        band=header.band,
        exposure_time_s=exposure_time_s,
        images=images,
    )


def fits(sighting: Sighting, camera: Camera) -> str:
    """Why a header is of no use with this camera; empty where it is."""
    if sighting.instrument != camera.instrument:
        return f"image {sighting.image} is of {sighting.instrument}, not {camera.instrument}"
    for name, value, low, high in (
        ("RA", sighting.ra_deg, 0.0, 360.0),
        ("Dec", sighting.dec_deg, -90.0, 90.0),
        ("exposure time", sighting.exposure_time_s, 0.0, 3600.0),
    ):
        if value < low or value > high:
            return f"{name} {value} of image {sighting.image} is out of range: {low:g} to {high:g}"
    if sighting.physical_filter and sighting.physical_filter not in {f.physical_filter for f in camera.filters}:
        return (
            f"image {sighting.image} has filter {sighting.physical_filter!r}, which {camera.instrument} does not have"
        )
    return ""


def _values(s: Sighting) -> tuple[object, ...]:
    return s.nsnaps, str(s.ra_deg), str(s.dec_deg), str(s.rotation_deg), s.physical_filter, s.expected
