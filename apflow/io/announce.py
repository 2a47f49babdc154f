"""Announcements of raw images: small files that say what has arrived, for whoever waits on this file system.

A raw is announced twice, under its group and under its image's name, since a
waiter may know only one of the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from apflow.io.atomic import atomic
from apflow.io.butler import paths

#: In the folder of a group: nobody needs to wait any longer.
CANCELLED = "cancelled"


def announce(
    root: str | Path,
    instrument: str,
    *,
    group: str,
    image: str,
    snap: int,
    detector: int,
    path: str = "",
    exposure: int = 0,
    arrived_unix: float = 0.0,
    error: str = "",
) -> None:
    """Say that a raw image is registered, or that it was rejected.

    The first announcement of a good image stands, so that one that lands again
    does not look late; a good image replaces a rejected one.

    Parameters
    ----------
    root : `str` or `pathlib.Path`
        Root of the repository.
    instrument : `str`
    group, image : `str`
        Either may be empty where it is not known.
    snap : `int`
        Counted from 1.
    detector : `int`
    path : `str`
        Relative to `root`.
    exposure : `int`
    arrived_unix : `float`
    error : `str`
        Why the image was rejected.
    """
    message = {"snap": snap, "detector": detector}
    message |= (
        {"error": error} if error else {"path": path, "exposure": exposure, "arrived_unix": arrived_unix}  # type: ignore[dict-item]
    )
    text = json.dumps(message).encode()
    for target in locations(root, instrument, group, image, snap, detector):
        known = read(target)
        if known is None or ("error" in known and not error):
            with atomic(target) as file:
                file.write(text)


def locations(root: str | Path, instrument: str, group: str, image: str, snap: int, detector: int) -> Iterator[Path]:
    """Where an announcement stands."""
    if group:
        yield paths.group_folder(root, instrument, group) / f"{snap}_{detector}.json"
    if image:
        yield paths.image_folder(root, instrument, image) / f"{detector}.json"


def read(path: Path) -> dict[str, Any] | None:
    """An announcement, None while there is none."""
    with suppress(FileNotFoundError):
        message: dict[str, Any] = json.loads(path.read_bytes())
        return message
    return None
