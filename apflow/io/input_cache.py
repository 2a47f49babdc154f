"""Calibs, templates and reference stars, from where they are fastest to be had (DMTN-092 section 3).

First this process's memory, decoded; then the fast store; then the main one.
Each stands in for the others: an input is lost only where none of them has it.
What was read from the main store is kept in the others.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from apflow import config_tables
from apflow.errors import ApflowError, ServiceError
from apflow.io.fast_store import FastStore, Stamp, State
from apflow.model.exposure import Exposure
from apflow.model.products import Inputs

#: What is counted of the inputs of a detector-visit. An input failed over when it did not come from where it should
#: have: its copy is damaged, the fast store does not work, or the main store is gone.
COUNTS = (
    "n_inputs_memory",
    "n_inputs_fast",
    "n_inputs_main",
    "n_inputs_failed_over",
    "inputs_memory_bytes",
    "inputs_fast_bytes",
    "inputs_main_bytes",
)
_MIB = 2**20
#: Detector-visits whose counts are kept until they are taken; those of detectors that fail never are.
_UNTAKEN = 1000


@dataclass
class _Held:
    stamp: Stamp
    value: Any
    size: int
    asked_s: float


class Memory:
    """Decoded inputs within a number of bytes; thread-safe.

    Those not asked for the longest make room for others, but none that was
    asked for in the last `stay_s` seconds does: where a worker has more
    detectors than there is room for, each visit would else push out what the
    next one begins with, and none would find anything.
    """

    def __init__(self, limit_bytes: float = 0.0, stay_s: float = 120.0) -> None:
        self._limit, self._stay_s = limit_bytes, stay_s
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self.held_bytes = 0

    def resize(self, limit_bytes: float) -> None:
        """Set the limit."""
        with self._lock:
            self._limit = limit_bytes
            self._shrink(limit_bytes, float("inf"))

    def get(self, key: tuple[str, str], stamp: Stamp | None) -> tuple[Any, int] | None:
        """What was decoded from the file with that stamp (None: from whatever was there), and its size."""
        with self._lock:
            found = self._held.get(key)
            if found is None or stamp not in (None, found.stamp):
                return None
            found.asked_s = time.monotonic()
            self._held.move_to_end(key)
            return found.value, found.size

    def put(self, key: tuple[str, str], stamp: Stamp, value: Any, size: int) -> None:
        """Hold a value, if there is room; nobody changes it from now on."""
        now = time.monotonic()
        with self._lock:
            if key in self._held:
                self.held_bytes -= self._held.pop(key).size
            if size > self._limit:
                return
            self._shrink(self._limit - size, now - self._stay_s)
            if self.held_bytes + size <= self._limit:
                self._held[key] = _Held(stamp, value, size, now)
                self.held_bytes += size

    def _shrink(self, to_bytes: float, before_s: float) -> None:
        """Let go of the oldest until `to_bytes` are held, but only of those last asked for before a time."""
        while self.held_bytes > to_bytes:
            key, oldest = next(iter(self._held.items()))
            if oldest.asked_s > before_s:
                return
            del self._held[key]
            self.held_bytes -= oldest.size


class _Process:
    """What the readers of this process share."""

    def __init__(self) -> None:
        self.memory, self.store = Memory(), FastStore(0.0)
        self.counts: OrderedDict[tuple[int, int], Counter[str]] = OrderedDict()


_process = _Process()


def forget() -> None:
    """Begin anew, as a new process would."""
    global _process
    _process = _Process()


def held_bytes() -> int:
    """How much this process holds in memory."""
    return _process.memory.held_bytes


class InputReader:
    """Reads the inputs of one detector-visit.

    Parameters
    ----------
    inputs : `Inputs`
    settings : `apflow.config_tables.Inputs`
    visit, detector : `int`
        For `take_counts`.
    """

    def __init__(self, inputs: Inputs, settings: config_tables.Inputs, visit: int, detector: int) -> None:
        self._copies = inputs.copies
        self._counts = _process.counts.setdefault((visit, detector), Counter())
        while len(_process.counts) > _UNTAKEN:
            _process.counts.popitem(last=False)
        _process.memory.resize(settings.memory_mib * _MIB)
        _process.store.limit_bytes = settings.fast_mib * _MIB

    def read[T](self, path: str, reader: Callable[[str], T]) -> T:
        """What `reader` makes of a file of the main store; nobody may change it.

        Raises
        ------
        ServiceError
            Neither the file nor a good copy can be reached.
        Exception
            As `reader`, of the file.
        """
        key, original = (path, reader.__qualname__), Stamp.of(path)
        held = _process.memory.get(key, original)
        if held is not None:
            self._count("memory", held[1], original is None)
            found: T = held[0]
            return found
        value, place, failed_over = self._from_stores(path, reader, original)
        size = size_of(value)
        self._count(place, size, failed_over)
        # Without its stamp nobody could tell whether it is out of date once the main store is there again.
        if original is not None:
            _process.memory.put(key, original, value, size)
        return value

    def _from_stores[T](self, path: str, reader: Callable[[str], T], original: Stamp | None) -> tuple[T, str, bool]:
        copy = self._copies.get(path, "")
        state = _process.store.state(copy, original) if copy else State.ABSENT
        if state is State.GOOD:
            try:
                return reader(copy), "fast", original is None
            except (ApflowError, OSError):
                state = State.DAMAGED  # or another process just made room
        if original is None:
            fast = f"nor can a copy of it in the fast store: {copy}" if copy else "and there is no fast store"
            raise ServiceError(f"{path} of the main store cannot be read, {fast}")
        value = reader(path)
        works = _process.store.keep(path, copy) if copy else True
        return value, "main", state is State.DAMAGED or not works

    def _count(self, place: str, size: int, failed_over: bool) -> None:
        self._counts.update({f"n_inputs_{place}": 1, f"inputs_{place}_bytes": size})
        self._counts["n_inputs_failed_over"] += failed_over


def take_counts(visit: int, detector: int) -> dict[str, float]:
    """What this process read for a detector-visit since this was last asked: `COUNTS`."""
    counts = _process.counts.pop((visit, detector), Counter[str]())
    return {name: float(counts[name]) for name in COUNTS}


def size_of(value: Any) -> int:
    """Bytes of an array, an exposure or a table in memory."""
    match value:
        case np.ndarray():
            return value.nbytes
        case pd.DataFrame():
            return int(value.memory_usage(deep=True).sum())
        case Exposure():
            return value.image.nbytes + value.variance.nbytes + value.mask.nbytes
    raise TypeError(f"size of {type(value).__name__} is not known; accepted: arrays, exposures, tables")
