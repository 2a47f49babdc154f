"""Histories that are waited for at once are read at once: a scan for many detectors costs little more than for one."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apflow.errors import ApflowError
from apflow.io.ppdb.interface import Wanted
from apflow.io.ppdb.parts import Part

#: What `Ppdb.getHistory` gives, by table.
Parts = Mapping[str, Part]


@dataclass(eq=False)
class _Asked:
    """One request, and its answer once somebody has read it."""

    wanted: Sequence[Wanted]
    terms: tuple[float, ...]
    parts: Parts | None = None

    def joins(self, other: _Asked) -> bool:
        """Whether both are of one visit and on the same terms, so that one scan holds little that is not wanted."""
        times = {w.mjd_tai for w in (*self.wanted, *other.wanted)}
        return self.terms == other.terms and len(times) == 1


class Together:
    """Whoever gets the database reads for all that wait for it.

    Parameters
    ----------
    database
        Lock of the database.
    read
        ``read(wanted, *terms)`` reads the history of some detectors; the lock is held.
    """

    def __init__(self, database: contextlib.AbstractContextManager[Any], read: Callable[..., Parts]) -> None:
        self._database, self._read = database, read
        self._lock = threading.Lock()
        self._waiting: list[_Asked] = []

    @property
    def waiting(self) -> int:
        """Number of requests that nobody has taken up."""
        return len(self._waiting)

    def histories(self, wanted: Sequence[Wanted], *terms: float) -> Parts:
        """What ``read(wanted, *terms)`` gives."""
        mine = _Asked(wanted, terms)
        with self._lock:
            self._waiting.append(mine)
        with self._database:
            return self._answer(mine) if mine.parts is None else mine.parts

    def _answer(self, mine: _Asked) -> Parts:
        with self._lock:
            others = [a for a in self._waiting if a is not mine and a.joins(mine)]
            self._waiting = [a for a in self._waiting if a is not mine and a not in others]
        if others:
            # An error may be about one of the others only: then each reads its own.
            with contextlib.suppress(ApflowError):
                every = [mine, *others]
                parts = self._read([w for a in every for w in a.wanted], *mine.terms)
                found = list(_split(parts, [len(a.wanted) for a in every]))
                for asked, answer in zip(others, found[1:], strict=True):
                    asked.parts = answer
                return found[0]
        return self._read(mine.wanted, *mine.terms)


def _split(parts: Parts, counts: Sequence[int]) -> Iterator[Parts]:
    """The parts of consecutive groups of detectors, each with its own rows only."""
    for a, b in itertools.pairwise(np.cumsum([0, *counts]).tolist()):
        yield {name: _some(part, a, b) for name, part in parts.items()}


def _some(part: Part, a: int, b: int) -> Part:
    offsets = part.offsets[a : b + 1]
    take = part.take[offsets[0] : offsets[-1]]
    return Part(part.rows.take(take), np.arange(len(take)), offsets - offsets[0])
