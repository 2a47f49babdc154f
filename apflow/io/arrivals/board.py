"""The board of a repository: what is known of images, put up once and read by whoever waits for it.

A repository whose registry is a file has its board in files beside it, which
inotify announces; one on PostgreSQL has it in a table there, which NOTIFY
announces. What was put up stays, so that nobody needs to have listened.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from apflow.errors import BadRequest

#: Kinds of places: groups and images hold what waiters look for, sightings are a diary by the hour.
GROUPS, IMAGES, SIGHTINGS = "groups", "images", "sightings"
#: In the place of a group: nobody needs to wait any longer.
CANCELLED = "cancelled"


class Place(NamedTuple):
    """Where messages about one thing are together."""

    instrument: str
    kind: str
    name: str


class Key(NamedTuple):
    """Of one message."""

    place: Place
    name: str


type Message = Mapping[str, Any]


class Board(ABC):
    """One thread's access to a board.

    Attributes
    ----------
    poll_s : `float`
        How often to look without having heard anything, seconds.
    """

    poll_s: float

    @abstractmethod
    def put(self, messages: Mapping[Key, Message]) -> None:
        """Put up messages that others see afterwards, and wake them.

        The first message of a key stands, except that one without ``error``
        replaces one with it.

        Raises
        ------
        ServiceError
            None, or some, are there; again is harmless.
        """

    @abstractmethod
    def get(self, keys: Iterable[Key]) -> dict[Key, Message]:
        """Those of the messages that are there."""

    @abstractmethod
    def names(self, place: Place) -> set[str]:
        """Names of the messages in a place."""

    @abstractmethod
    def listen(self, places: Iterable[Place]) -> None:
        """Hear of these places from now on, and of no others."""

    @abstractmethod
    def fileno(self) -> int:
        """A descriptor that is readable when there is something to hear; -1 where nothing is ever heard."""

    @abstractmethod
    def heard(self) -> set[Key] | None:
        """Keys that were put up since; None where that is not known."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections; opened again on demand."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_board(root: str | Path) -> Board:
    """The board of a repository.

    Raises
    ------
    BadRequest
        Its registry is neither SQLite nor PostgreSQL.
    """
    url, namespace = _registry(Path(root).resolve())
    if url.startswith("postgresql"):
        from apflow.io.arrivals.database_board import DatabaseBoard

        return DatabaseBoard(url, namespace)
    from apflow.io.arrivals.folder_board import FolderBoard

    return FolderBoard(Path(root) / "arrivals")


def _registry(root: Path) -> tuple[str, str]:
    """URL and namespace of a repository's registry; SQLite where there is no repository yet."""
    try:
        status = os.stat(root / "butler.yaml")
    except FileNotFoundError:
        return "sqlite://", ""
    return _read_registry(root, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=8)
def _read_registry(root: Path, _mtime_ns: int, _inode: int) -> tuple[str, str]:
    registry = (yaml.safe_load((root / "butler.yaml").read_text()) or {}).get("registry") or {}
    url = str(registry.get("db") or "sqlite://")
    if not url.startswith(("sqlite", "postgresql")):
        raise BadRequest(f"registry of {root} is {url.partition(':')[0]}; accepted: sqlite, postgresql")
    return url, str(registry.get("namespace") or "")
