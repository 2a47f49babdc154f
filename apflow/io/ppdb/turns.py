"""Which detector-visits are under way, and waiting for those that come first on the same sky."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from apflow.errors import ServiceError
from apflow.model.region import Region
from apflow.model.sky import separation_arcsec

#: (instrument, visit, detector)
Key = tuple[str, int, int]
#: Pointing errors shift a detector by 2", and association reaches 1" further.
REACH_ARCSEC = 5.0


@dataclass(frozen=True, eq=False)
class Expected:
    """A region with the circle about it, and until when others wait for it."""

    region: Region
    ra: float
    dec: float
    radius_deg: float
    deadline_unix: float

    def near(self, other: Expected) -> bool:
        """Whether the circles about both regions meet: cheap, where most pairs end."""
        reach = self.radius_deg + other.radius_deg
        if abs(self.dec - other.dec) > reach:
            return False
        return bool(separation_arcsec(self.ra, self.dec, other.ra, other.dec) <= reach * 3600.0)

    def overlaps(self, other: Expected) -> bool:
        """Whether the regions share a point."""
        return self.near(other) and self.region.overlaps(other.region)


def expected(region: Region, deadline_unix: float) -> Expected:
    """A region that is waited for."""
    return Expected(region, *region.centre, region.radius_deg, deadline_unix)


class Turns:
    """The detector-visits that are expected and neither stored nor ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._expected: dict[Key, Expected] = {}
        self._opened: list[tuple[str, int]] = []  # instrument and visit of each announcement
        self._closed = False

    def announce(self, regions: Iterable[tuple[Key, Region]], deadline_unix: float) -> None:
        """Add detector-visits."""
        new = {key: expected(region, deadline_unix) for key, region in regions}
        with self._changed:
            self._expected.update(new)
            self._opened += sorted({key[:2] for key in new})
            self._changed.notify_all()

    def announced(self, visit: int, detector: int, instrument: str | None) -> list[tuple[Key, Region]]:
        """A detector-visit with its region, of each instrument or one; none where it is not expected any more."""
        with self._changed:
            names = {name for name, _ in self._opened} if instrument is None else {instrument}
            keys = [(name, visit, detector) for name in sorted(names)]
            return [(key, self._expected[key].region) for key in keys if key in self._expected]

    def end(self, keys: Iterable[Key]) -> None:
        """Take away detector-visits that are stored or ended."""
        with self._changed:
            for key in keys:
                self._expected.pop(key, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Wake everybody: those who wait get `ServiceError`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, key: Key, region: Region, timeout_s: float) -> bool:
        """See `Ppdb.awaitTurn`."""
        mine = expected(region.grown(REACH_ARCSEC), 0.0)
        until = time.monotonic() + timeout_s
        with self._changed:
            seen, before = len(self._opened), self._before(key, mine)
            while True:
                if self._closed:
                    raise ServiceError(
                        f"the PPDB was closed while visit {key[1]} detector {key[2]} waited for its turn"
                    )
                news, seen = self._opened[seen:], len(self._opened)
                if any(instrument == key[0] and visit < key[1] for instrument, visit in news):
                    before = self._before(key, mine)
                now = time.time()
                deadlines = (self._expected[k].deadline_unix for k in before if k in self._expected)
                next_deadline = min((d for d in deadlines if d > now), default=math.inf)
                if next_deadline == math.inf:
                    return True
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, next_deadline - now) + 0.001)

    def _before(self, key: Key, mine: Expected) -> list[Key]:
        instrument, visit, _ = key
        return [k for k, e in self._expected.items() if k[0] == instrument and k[1] < visit and e.overlaps(mine)]


def to_text(region: Region) -> str:
    """A region as STC-S, the VO's text for polygons."""
    return "POLYGON ICRS " + " ".join(repr(float(v)) for v in region.vertices.ravel())


def from_text(text: str) -> Region:
    """The region of `to_text`."""
    return Region(np.array(text.split()[2:], float).reshape(-1, 2))
