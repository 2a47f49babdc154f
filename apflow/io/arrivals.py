"""Raw images that land, and those who wait for them (DMTN-092 section 4).

`Ingestor` takes files from a landing folder, registers them and announces
them; `await_images` blocks until that has happened. The two share nothing but
a file system, so the waiters may be in any process on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apflow.errors import DataError, ImageTimeout, VisitCancelled
from apflow.io.announce import CANCELLED, locations, read
from apflow.io.atomic import atomic
from apflow.io.butler import paths
from apflow.io.hub import Hub
from apflow.io.ingestor import Ingestor
from apflow.model.products import RawRef, Snaps

__all__ = ["Ingestor", "await_images", "await_named_images", "cancel"]

_hub = Hub()


def await_images(
    root: str | Path,
    instrument: str,
    group: str,
    detector: int,
    *,
    nsnaps: int,
    timeout_s: float,
    images: Sequence[str],
) -> Snaps:
    """Block until the raw images of a detector-visit are registered.

    Parameters
    ----------
    root : `str` or `pathlib.Path`
        Root of the repository.
    instrument, group : `str`
    detector : `int`
    nsnaps : `int`
    timeout_s : `float`
    images : sequence of `str`
        Names of the images, one a snap.

    Returns
    -------
    snaps : `Snaps`
        `missing` names those that did not come, or were rejected, while another did.

    Raises
    ------
    ImageTimeout
        No image came in time.
    DataError
        Every image that was to come was rejected.
    VisitCancelled
        The visit was cancelled.
    """
    wanted = {
        snap: tuple(locations(root, instrument, group, image, snap, detector))
        for snap, image in zip(range(1, nsnaps + 1), images, strict=True)
    }
    marker = paths.group_folder(root, instrument, group) / CANCELLED
    found: dict[int, Mapping[str, Any]] = {}
    deadline = time.monotonic() + timeout_s
    with _hub.waiting([marker, *(place for of in wanted.values() for place in of)]) as appeared:
        while True:
            appeared.clear()
            late = time.monotonic() >= deadline
            if marker.exists():
                raise VisitCancelled(f"visit of group {group!r} was cancelled while detector {detector} waited")
            for snap in wanted.keys() - found.keys():
                message = _announced(wanted[snap])
                if message is not None:
                    found[snap] = message
            if late or len(found) == nsnaps:
                break
            appeared.wait(max(0.0, deadline - time.monotonic()))
    return _snaps(Path(root), found, images, detector, timeout_s)


def _announced(places: Sequence[Path]) -> dict[str, Any] | None:
    """What is known of an image, a good one before a rejected one."""
    known = [message for place in places if (message := read(place)) is not None]
    return min(known, key=lambda message: "error" in message, default=None)


def _snaps(
    root: Path, found: Mapping[int, Mapping[str, Any]], images: Sequence[str], detector: int, timeout_s: float
) -> Snaps:
    good = {snap: message for snap, message in found.items() if "error" not in message}
    if good:
        raws = tuple(
            RawRef(str(root / m["path"]), int(m["exposure"]), snap, float(m["arrived_unix"]))
            for snap, m in sorted(good.items())
        )
        return Snaps(raws, tuple(name for snap, name in enumerate(images, 1) if snap not in good))
    if found:
        raise DataError("; ".join(message["error"] for message in found.values()))
    names = " and ".join(images)
    raise ImageTimeout(f"image {names} of detector {detector} did not arrive within {timeout_s:g} s")


def await_named_images(
    root: str | Path, instrument: str, images: Sequence[str], detector: int, timeout_s: float
) -> str:
    """Block until one of several images is registered, whatever its group; returns its path.

    Raises
    ------
    ImageTimeout
        None came in time.
    DataError
        All were rejected.
    """
    places = [next(locations(root, instrument, "", image, 1, detector)) for image in images]
    deadline = time.monotonic() + timeout_s
    with _hub.waiting(places) as appeared:
        while True:
            appeared.clear()
            late = time.monotonic() >= deadline
            messages = [message for place in places if (message := read(place)) is not None]
            for message in messages:
                if "error" not in message:
                    return str(Path(root) / message["path"])
            if len(messages) == len(images):
                raise DataError("; ".join(message["error"] for message in messages))
            if late:
                raise ImageTimeout(
                    f"image {' and '.join(images)} of detector {detector} did not arrive within {timeout_s:g} s"
                )
            appeared.wait(max(0.0, deadline - time.monotonic()))


def cancel(root: str | Path, instrument: str, group: str) -> None:
    """End every wait for the images of a group, now and later, with `VisitCancelled`."""
    with atomic(paths.group_folder(root, instrument, group) / CANCELLED):
        pass
