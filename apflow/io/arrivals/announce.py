"""Announcements: what is put up on the board of a raw image, or of one that will not come.

A raw is announced twice, under its group and under its image's name, since a
waiter may know only one of the two.
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
import time
from collections.abc import Iterable, Iterator

from apflow.io.arrivals.board import GROUPS, IMAGES, SIGHTINGS, Key, Message, Place
from apflow.model.sighting import Sighting

_counter = itertools.count()
_HOUR_S = 3600.0


def image_keys(instrument: str, group: str, image: str, snap: int, detector: int) -> list[Key]:
    """Where an announcement stands; group or image may be empty where it is not known."""
    keys = []
    if group:
        keys.append(Key(Place(instrument, GROUPS, group), f"{snap}_{detector}"))
    if image:
        keys.append(Key(Place(instrument, IMAGES, image), str(detector)))
    return keys


def arrived(sighting: Sighting, path: str) -> dict[Key, Message]:
    """A raw image is registered.

    Parameters
    ----------
    sighting : `Sighting`
        What its header tells.
    path : `str`
        Relative to the root of the repository.
    """
    assert sighting.detector is not None
    message = {"path": path, "sighting": sighting.to_json()}
    one = sighting
    return dict.fromkeys(image_keys(one.instrument, one.group, one.image, one.snap, sighting.detector), message)


def rejected(
    instrument: str, group: str, image: str, snap: int, detector: int, error: str, *, absent: bool = False
) -> dict[Key, Message]:
    """A raw image cannot be used, or, where it is `absent`, will not come; a good one makes up for it."""
    message = {"error": error, "absent": absent}
    return dict.fromkeys(image_keys(instrument, group, image, snap, detector), message)


def told(instrument: str, sightings: Iterable[Sighting]) -> dict[Key, Message]:
    """A page of the diary of sightings."""
    page = [sighting.to_json() for sighting in sightings]
    if not page:
        return {}
    now = time.time()
    name = f"{time.time_ns()}-{os.uname().nodename}-{os.getpid()}-{next(_counter)}"
    return {Key(Place(instrument, SIGHTINGS, _hour(now)), name): {"sightings": page}}


def diary(instrument: str, since_unix: float) -> Iterator[Place]:
    """Places of the sightings from a time until now, and of the hour to come."""
    hours = int((time.time() - since_unix) // _HOUR_S) + 2
    for hour in range(hours + 1):
        yield Place(instrument, SIGHTINGS, _hour(since_unix + hour * _HOUR_S))


def _hour(unix: float) -> str:
    return dt.datetime.fromtimestamp(unix, dt.UTC).strftime("%Y%m%dT%H")
