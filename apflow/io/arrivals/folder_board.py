"""A board of small files, for all who share the file system."""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from apflow.io.arrivals.board import Board, Key, Message, Place
from apflow.io.arrivals.events import APPEARED, FolderEvents, is_heard
from apflow.io.atomic import atomic

_SUFFIX = ".json"
#: With events, and where there are none (NFS and the like).
_SLOW_S, _FAST_S = 1.0, 0.03


class FolderBoard(Board):
    """A folder a place, a file a message.

    Parameters
    ----------
    folder : `pathlib.Path`
        Need not exist.
    events : `bool`, optional
        Whether inotify tells of all changes; found out where it is not given.
    """

    def __init__(self, folder: Path, events: bool | None = None) -> None:
        self._folder = folder
        self._hears = is_heard(folder) if events is None else events
        self._events: FolderEvents | None = None
        self._places: dict[Path, Place] = {}
        self.poll_s = _SLOW_S if self._hears else _FAST_S

    def put(self, messages: Mapping[Key, Message]) -> None:
        """See `Board.put`."""
        for key, message in messages.items():
            known = self._read(key)
            if known is None or ("error" in known and "error" not in message):
                with atomic(self._file(key)) as file:
                    file.write(json.dumps(message).encode())

    def get(self, keys: Iterable[Key]) -> dict[Key, Message]:
        """See `Board.get`."""
        by_place: defaultdict[Place, list[Key]] = defaultdict(list)
        for key in keys:
            by_place[key.place].append(key)
        found = {}
        for place, of in by_place.items():
            # One listing is cheaper than many files that are not there.
            there = self.names(place) if len(of) > 1 else None
            for key in of:
                if there is None or key.name in there:
                    message = self._read(key)
                    if message is not None:
                        found[key] = message
        return found

    def names(self, place: Place) -> set[str]:
        """See `Board.names`."""
        try:
            files = os.listdir(self._path(place))
        except FileNotFoundError:
            return set()
        return {name.removesuffix(_SUFFIX) for name in files if _is_message(name)}

    def listen(self, places: Iterable[Place]) -> None:
        """See `Board.listen`; makes the folders, since only folders that exist can be watched."""
        if not self._hears:
            return
        wanted = {self._path(place): place for place in places}
        try:
            if self._events is None:
                self._events = FolderEvents(APPEARED)
            for folder in self._places.keys() - wanted.keys():
                self._events.forget(folder)
            for folder in wanted.keys() - self._places.keys():
                folder.mkdir(parents=True, exist_ok=True)
                self._events.watch(folder)
        except OSError:  # nobody may write here, or the kernel gives no more watches
            self.close()
            self._hears, self.poll_s = False, _FAST_S
            return
        self._places = wanted

    def fileno(self) -> int:
        """See `Board.fileno`."""
        return -1 if self._events is None else self._events.fileno()

    def heard(self) -> set[Key] | None:
        """See `Board.heard`."""
        files = set[Path]() if self._events is None else self._events.read()
        if files is None:
            return None
        return {
            Key(self._places[file.parent], file.name.removesuffix(_SUFFIX))
            for file in files
            if file.parent in self._places and _is_message(file.name)
        }

    def close(self) -> None:
        """See `Board.close`."""
        if self._events is not None:
            self._events.close()
            self._events = None
            self._places = {}

    def _path(self, place: Place) -> Path:
        # Group names hold colons and dots; a name of dots alone would be another folder.
        name = quote(place.name, safe=":+ ") if place.name.strip(".") else f"_{place.name}"
        return self._folder / place.instrument / place.kind / name

    def _file(self, key: Key) -> Path:
        return self._path(key.place) / (key.name + _SUFFIX)

    def _read(self, key: Key) -> Message | None:
        with contextlib.suppress(FileNotFoundError):
            message: Message = json.loads(self._file(key).read_bytes())
            return message
        return None


def _is_message(name: str) -> bool:
    return name.endswith(_SUFFIX) and not name.startswith(".")
