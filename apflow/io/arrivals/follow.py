"""What is told of images, for whoever decides what is to be done about them."""

from __future__ import annotations

import select
import time
from collections import deque
from pathlib import Path
from typing import Self

from apflow.errors import ServiceError
from apflow.io.arrivals.announce import diary
from apflow.io.arrivals.board import Key, Place, open_board
from apflow.model.sighting import Sighting

#: An image that was told of this long ago is still of use to a listener that starts.
HOURS = 4.0
#: Who tells of an image has a clock that is right to better than this.
_BACK_S = 1800.0


class Follower:
    """Reads sightings as they are told; of one thread.

    Parameters
    ----------
    root : `str` or `pathlib.Path`
        Root of the repository.
    instrument : `str`
    hours : `float`
        Those of so many hours before are given first, so that one who was away
        misses none.
    """

    def __init__(self, root: str | Path, instrument: str, hours: float = HOURS) -> None:
        self._board = open_board(root)
        self._instrument = instrument
        self._since = time.time() - 3600.0 * hours
        self._places: set[Place] = set()
        self._seen: set[Key] = set()
        self._ready: deque[Sighting] = deque()
        self._due = 0.0

    def get(self, timeout_s: float) -> list[Sighting]:
        """Sightings since the last call, in the order in which they were told; none when the time is over.

        Raises
        ------
        ServiceError
            The board cannot be reached; asking again is harmless.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._look()
            except ServiceError:
                self._places = set()  # listen again
                raise
            if self._ready or time.monotonic() >= deadline:
                given, self._ready = list(self._ready), deque()
                return given
            poll = select.poll()
            if self._board.fileno() >= 0:
                poll.register(self._board.fileno(), select.POLLIN)
            poll.poll(1000.0 * max(0.0, min(deadline, self._due) - time.monotonic()))

    def _look(self) -> None:
        places = set(diary(self._instrument, self._since))
        if places != self._places:
            self._board.listen(places)
            self._places, self._due = places, 0.0
            self._seen = {key for key in self._seen if key.place in places}
        heard = self._board.heard()
        if heard is None or time.monotonic() >= self._due:
            heard = {Key(place, name) for place in self._places for name in self._board.names(place)}
            self._due = time.monotonic() + self._board.poll_s
        new = sorted(heard - self._seen, key=lambda key: (key.place.name, key.name))
        if new:
            pages = self._board.get(new)
            for key in new:
                if key in pages:
                    self._seen.add(key)
                    self._ready += map(Sighting.from_json, pages[key]["sightings"])
        self._since = max(self._since, time.time() - _BACK_S)

    def close(self) -> None:
        """Let go of the board."""
        self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def follow(root: str | Path, instrument: str, hours: float = HOURS) -> Follower:
    """Follow what is told of the images of an instrument; see `Follower`."""
    return Follower(root, instrument, hours)
