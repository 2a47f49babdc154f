"""The blocking get of science images (DMTN-092 section 4)."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apflow.errors import DataError, ImageTimeout, Misannounced, VisitCancelled
from apflow.io.arrivals.announce import image_keys
from apflow.io.arrivals.board import CANCELLED, GROUPS, Key, Message, Place, open_board
from apflow.io.arrivals.hub import Hub
from apflow.model.calibration import is_calibration
from apflow.model.products import RawRef, Snaps
from apflow.model.sighting import Sighting
from apflow.model.sky import separation_arcsec
from apflow.model.visit import Visit

#: How far an image may be from what was announced, degrees.
POINTING_TOLERANCE_DEG = 0.5
ANGLE_TOLERANCE_DEG = 1.0

_hubs: dict[str, Hub] = {}
_lock = threading.Lock()
# A process that was forked has the hubs, but not their threads.
os.register_at_fork(after_in_child=_hubs.clear)


def hub_of(root: str | Path) -> Hub:
    """This process's hub of a repository."""
    path = str(Path(root).resolve())
    with _lock:
        if path not in _hubs:
            _hubs[path] = Hub(lambda: open_board(path))
        return _hubs[path]


def await_images(
    root: str | Path,
    instrument: str,
    group: str,
    detector: int,
    *,
    nsnaps: int,
    timeout_s: float,
    images: Sequence[str],
    announced: Visit | None = None,
    pointing_tolerance_deg: float = POINTING_TOLERANCE_DEG,
    angle_tolerance_deg: float = ANGLE_TOLERANCE_DEG,
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
    announced : `Visit`, optional
        What the headers are to agree with.
    pointing_tolerance_deg, angle_tolerance_deg : `float`
        How far the boresight and the sky angle may be from those announced.

    Returns
    -------
    snaps : `Snaps`
        `missing` names those that did not come, or were rejected, while another did.

    Raises
    ------
    ImageTimeout
        No image came in time, or none is expected of this detector.
    DataError
        Every image that was to come was rejected.
    Misannounced
        An image came that is not what was announced.
    VisitCancelled
        The visit was cancelled.
    """
    wanted = {
        snap: image_keys(instrument, group, image, snap, detector)
        for snap, image in zip(range(1, nsnaps + 1), images, strict=True)
    }
    marker = Key(Place(instrument, GROUPS, group), CANCELLED)
    deadline = time.monotonic() + timeout_s

    def settled(known: Mapping[Key, Message]) -> dict[int, Message] | None:
        if marker in known:
            raise VisitCancelled(f"visit of group {group!r} was cancelled while detector {detector} waited")
        found = {snap: message for snap, keys in wanted.items() if (message := _best(known, keys)) is not None}
        for snap, message in found.items():
            if "error" not in message:
                _check_group(Sighting.from_json(message["sighting"]), group, images[snap - 1])
                if announced is not None:
                    sighting = Sighting.from_json(message["sighting"])
                    check_announced(sighting, announced, pointing_tolerance_deg, angle_tolerance_deg)
        return found if len(found) == nsnaps or time.monotonic() >= deadline else None

    found = _await(root, [marker, *(key for keys in wanted.values() for key in keys)], settled, deadline)
    return _snaps(Path(root), found, images, detector, timeout_s)


def _await[T](root: str | Path, keys: Sequence[Key], settled: Any, deadline: float) -> Any:
    """What `settled` makes of the messages, as soon as it is not None; at the deadline with a last look of its own."""
    with hub_of(root).waiting(keys) as watch:
        while (left_s := deadline - time.monotonic()) > 0:
            if (outcome := settled(watch.wait(left_s))) is not None:
                return outcome
    with open_board(root) as board:
        return settled(board.get(keys))


def _best(known: Mapping[Key, Message], keys: Sequence[Key]) -> Message | None:
    """What is known of an image, a good one before a rejected one before one that is not expected."""
    messages = [known[key] for key in keys if key in known]
    return min(messages, key=lambda m: ("error" in m, m.get("absent", False)), default=None)


def _snaps(root: Path, found: Mapping[int, Message], images: Sequence[str], detector: int, timeout_s: float) -> Snaps:
    good = {snap: message for snap, message in found.items() if "error" not in message}
    if good:
        raws = tuple(
            RawRef(str(root / m["path"]), m["sighting"]["exposure"], snap, m["sighting"]["arrived_unix"])
            for snap, m in sorted(good.items())
        )
        return Snaps(raws, tuple(name for snap, name in enumerate(images, 1) if snap not in good))
    _raise_rejected(found.values())
    names = " and ".join(images)
    raise ImageTimeout(f"image {names} of detector {detector} did not arrive within {timeout_s:g} s")


def _raise_rejected(messages: Sequence[Message] | Any) -> None:
    """Raise what rejected images are, if there are any."""
    messages = list(messages)
    bad = [message["error"] for message in messages if not message.get("absent")]
    if bad:
        raise DataError("; ".join(bad))
    if messages:
        raise ImageTimeout("; ".join(message["error"] for message in messages))


def _check_group(sighting: Sighting, group: str, image: str) -> None:
    """Whether an image is of this group, and the group's of this name: either alone is what was found."""
    if group and sighting.group != group:
        raise Misannounced(
            f"image {sighting.image} of detector {sighting.detector} is of group {sighting.group!r}, "
            f"its visit was announced as group {group!r}"
        )
    if image and sighting.image != image:
        raise Misannounced(
            f"snap {sighting.snap} of group {sighting.group!r} is image {sighting.image}, it was announced as {image}"
        )


def check_announced(
    sighting: Sighting,
    visit: Visit,
    pointing_tolerance_deg: float = POINTING_TOLERANCE_DEG,
    angle_tolerance_deg: float = ANGLE_TOLERANCE_DEG,
) -> None:
    """Compare what an image's header tells with what was announced; what either leaves open agrees.

    Raises
    ------
    Misannounced
        They differ in physical filter, or by more than a tolerance in boresight
        or sky angle, or the image is a calibration; the message names both values.
    """
    who = f"image {sighting.image}"
    if is_calibration(sighting.image_type):
        raise Misannounced(f"{who} is a {sighting.image_type.lower()}, it was announced as visit {visit.visit}")
    if sighting.physical_filter and visit.physical_filter and sighting.physical_filter != visit.physical_filter:
        raise Misannounced(
            f"{who} is in filter {sighting.physical_filter}, its visit was announced in {visit.physical_filter}"
        )
    if not (math.isnan(sighting.ra_deg) or math.isnan(sighting.dec_deg)):
        off_deg = float(separation_arcsec(sighting.ra_deg, sighting.dec_deg, visit.ra_deg, visit.dec_deg)) / 3600.0
        if off_deg > pointing_tolerance_deg:
            raise Misannounced(
                f"{who} points at RA {sighting.ra_deg:.5f}, Dec {sighting.dec_deg:.5f}, {off_deg:.3f} degrees from "
                f"RA {visit.ra_deg:.5f}, Dec {visit.dec_deg:.5f} as announced; accepted: {pointing_tolerance_deg:g}"
            )
    if not math.isnan(sighting.rotation_deg):
        turned_deg = abs((sighting.rotation_deg - visit.rotation_deg + 180.0) % 360.0 - 180.0)
        if turned_deg > angle_tolerance_deg:
            raise Misannounced(
                f"{who} has sky angle {sighting.rotation_deg:.3f}, {turned_deg:.3f} degrees from "
                f"{visit.rotation_deg:.3f} as announced; accepted: {angle_tolerance_deg:g}"
            )


def await_named_images(
    root: str | Path, instrument: str, images: Sequence[str], detector: int, timeout_s: float
) -> str:
    """Block until one of several images is registered, whatever its group; returns its path.

    Raises
    ------
    ImageTimeout
        None came in time, or none is expected of this detector.
    DataError
        All were rejected.
    """
    keys = [key for image in images for key in image_keys(instrument, "", image, 1, detector)]
    deadline = time.monotonic() + timeout_s

    def settled(known: Mapping[Key, Message]) -> str | None:
        for key in keys:
            if key in known and "error" not in known[key]:
                return str(Path(root) / known[key]["path"])
        if len(known) == len(keys):
            _raise_rejected(known.values())
        if time.monotonic() < deadline:
            return None
        raise ImageTimeout(f"image {' and '.join(images)} of detector {detector} did not arrive within {timeout_s:g} s")

    path: str = _await(root, keys, settled, deadline)
    return path


def cancel(root: str | Path, instrument: str, group: str) -> None:
    """End every wait for the images of a group, now and later, with `VisitCancelled`."""
    with open_board(root) as board:
        board.put({Key(Place(instrument, GROUPS, group), CANCELLED): {}})
