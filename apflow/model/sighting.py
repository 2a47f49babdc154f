"""What was told of an image: by its header, its sidecar, or the list of its expected sensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Sighting:
    """One word about one image, from whichever file was seen first, or again later.

    What a file does not tell is empty: `expectedSensors.json` names an image and
    its detectors, and neither group nor pointing.

    Attributes
    ----------
    instrument : `str`
    group : `str`
        Ties the image to its nextVisit (GROUPID); empty where it is not told.
    exposure : `int`
        Exposure id.
    image : `str`
        Observation id, ``MC_O_20250420_000123``.
    snap : `int`
        Counted from 1 (CURINDEX).
    nsnaps : `int`
        Snaps of the visit (MAXINDEX); 0 where it is not told.
    detector : `int` or `None`
        Whose file it was; None for one about the whole image.
    ra_deg, dec_deg : `float`
        Boresight, ICRS, degrees; NaN where it is not told.
    rotation_deg : `float`
        Position angle of the focal plane's +Y, East of North, degrees; NaN
        where it is not told.
    physical_filter, band : `str`
        Empty where they are not told.
    exposure_time_s : `float`
        NaN where it is not told.
    image_type : `str`
        IMGTYPE (OBJECT, BIAS, ...); empty where it is not told.
    arrived_unix : `float`
        When the file was complete, Unix seconds.
    registered : `bool`
        Whether it is the raw image itself, registered, and not a file about it.
    expected : `tuple` [`int`, ...] or `None`
        Detectors whose images are to come; None where it is not told.
    """

    instrument: str
    group: str
    exposure: int
    image: str
    snap: int
    nsnaps: int
    detector: int | None
    ra_deg: float
    dec_deg: float
    rotation_deg: float
    physical_filter: str
    band: str
    exposure_time_s: float
    image_type: str
    arrived_unix: float
    registered: bool = False
    expected: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads back: numbers that are not told are null."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Sighting:
        """Of what `to_json` gave, after JSON."""
        known = dict(tree)
        for name in ("ra_deg", "dec_deg", "rotation_deg", "exposure_time_s"):
            known[name] = math.nan if known[name] is None else float(known[name])
        if known["expected"] is not None:
            known["expected"] = tuple(known["expected"])
        return cls(**known)
