"""A visit: one pointing of the telescope with one or two snaps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from apflow.errors import BadRequest


@dataclass(frozen=True)
class Visit:
    """What is announced of a visit before its images exist.

    Attributes
    ----------
    instrument : `str`
    visit : `int`
        Visit id: the exposure id of its first snap.
    group : `str`
        Ties nextVisit, images and outputs together.
    ra_deg, dec_deg : `float`
        Boresight, ICRS, degrees.
    rotation_deg : `float`
        Position angle of the focal plane's +Y, East of North, degrees.
    physical_filter, band : `str`
        Empty when the announcement leaves the filter open.
    exposure_time_s : `float`
        Expected open-shutter time of one snap.
    images : `tuple` [`str`, ...]
        Names of the images, one a snap.
    """

    instrument: str
    visit: int
    group: str
    ra_deg: float
    dec_deg: float
    rotation_deg: float
    physical_filter: str
    band: str
    exposure_time_s: float
    images: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("RA", self.ra_deg, 0.0, 360.0),
            ("Dec", self.dec_deg, -90.0, 90.0),
            ("exposure time", self.exposure_time_s, 0.0, 3600.0),
        ):
            if not (math.isfinite(value) and low <= value <= high):
                raise BadRequest(f"{name} {value} of visit {self.visit} is out of range: {low:g} to {high:g}")
        if not math.isfinite(self.rotation_deg):
            raise BadRequest(f"rotation {self.rotation_deg} of visit {self.visit} is not a number")
        if len(self.images) not in (1, 2):
            raise BadRequest(f"visit {self.visit} has {len(self.images)} images; accepted: 1 or 2")

    @property
    def nsnaps(self) -> int:
        """Number of snaps, 1 or 2."""
        return len(self.images)
