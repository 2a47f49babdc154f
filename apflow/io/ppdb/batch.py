"""A batch of detectors, made ready by the caller so that the owner of the database only inserts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from apflow.errors import DataError
from apflow.io.ppdb.blocks import joined
from apflow.io.ppdb.tables import BATCH_TABLES, MATCHES, to_arrow
from apflow.io.ppdb.turns import Key
from apflow.model import schema
from apflow.model.products import DetectorResult, OutboxRow

_FRAMES = {
    **{"DiaSource": "sources", "DiaObject": "objects", "DiaForcedSource": "forced"},
    **{MATCHES: "matches", "SSSource": "ss_sources"},
}


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one table; those of the i-th detector are ``offsets[i]:offsets[i + 1]``."""

    table: pa.Table
    offsets: tuple[int, ...]

    def of(self, which: Sequence[int]) -> pa.Table:
        """Rows of some detectors."""
        if len(which) == len(self.offsets) - 1:
            return self.table
        parts = [self.table.slice(self.offsets[i], self.offsets[i + 1] - self.offsets[i]) for i in which]
        return pa.concat_tables(parts) if parts else self.table.slice(0, 0)

    def numpy(self, column: str, i: int) -> np.ndarray:
        """A column of one detector's rows."""
        part = self.table.column(column).slice(self.offsets[i], self.offsets[i + 1] - self.offsets[i])
        return np.asarray(part.to_numpy())


@dataclass(frozen=True, eq=False)
class Batch:
    """What `Ppdb.storeBatch` sends to the database."""

    keys: tuple[Key, ...]
    guards: tuple[Mapping[int, float], ...]
    arrived_unix: tuple[float, ...]
    rows: Mapping[str, Rows]
    outbox: tuple[OutboxRow, ...]
    radius_arcsec: float


class _Lazy(Mapping[str, Rows]):
    """Tables of a batch, each made when it is first asked for, by the thread that asks; others wait for it."""

    def __init__(self, make: Callable[[str], Rows]) -> None:
        self._make = make
        self._made: dict[str, Rows] = {}
        self._locks = {name: threading.Lock() for name in BATCH_TABLES}

    def __getitem__(self, name: str) -> Rows:
        with self._locks[name]:
            if name not in self._made:
                self._made[name] = self._make(name)
            return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(BATCH_TABLES)

    def __len__(self) -> int:
        return len(BATCH_TABLES)


def prepare(
    results: Sequence[DetectorResult],
    outbox: Sequence[OutboxRow],
    processed_mjd_tai: float,
    radius_arcsec: float,
    *,
    lazily: bool = False,
) -> Batch:
    """Check and convert the tables of a batch.

    Parameters
    ----------
    results, outbox, processed_mjd_tai, radius_arcsec
        See `Ppdb.storeBatch`.
    lazily : `bool`
        Each table is made where it is first asked for, and `DataError` raised
        there; such a batch cannot be sent to another process.

    Raises
    ------
    DataError
        A table does not conform; the message begins with visit and detector.
    """
    rows: Mapping[str, Rows] = _Lazy(lambda name: _rows(name, results, processed_mjd_tai))
    if not lazily:
        rows = dict(rows)
    return Batch(
        tuple((r.visit.instrument, r.visit.visit, r.detector) for r in results),
        tuple(dict(r.guard) for r in results),
        tuple(r.arrived_unix for r in results),
        rows,
        tuple({a.alert_id: a for a in outbox}.values()),
        radius_arcsec,
    )


def _rows(name: str, results: Sequence[DetectorResult], processed_mjd_tai: float) -> Rows:
    frames = [getattr(r, _FRAMES[name]) for r in results]
    merged = _merge(frames, name, results)
    if name in ("DiaSource", "DiaForcedSource"):
        _check_owner(merged, [len(f) for f in frames], results)
        merged["timeProcessedMjdTai"] = processed_mjd_tai
    return Rows(to_arrow(merged, name), (0, *(int(n) for n in np.cumsum([len(f) for f in frames]))))


def _check_owner(merged: pd.DataFrame, lengths: Sequence[int], results: Sequence[DetectorResult]) -> None:
    for column, values in (
        ("visit", [r.visit.visit for r in results]),
        ("detector", [r.detector for r in results]),
    ):
        found, expected = merged[column].to_numpy(), np.repeat(values, lengths)
        if (bad := np.flatnonzero(found != expected)).size:
            result = results[np.repeat(np.arange(len(results)), lengths)[bad[0]]]
            raise DataError(
                f"visit {result.visit.visit} detector {result.detector}: a row has {column} {found[bad[0]]}; "
                f"accepted: {expected[bad[0]]}"
            )


def _merge(frames: Sequence[pd.DataFrame], name: str, results: Sequence[DetectorResult]) -> pd.DataFrame:
    filled = [f for f in frames if len(f)]
    merged = joined(filled, name) if filled else schema.empty(name)
    if merged is None:
        merged = pd.concat(filled, ignore_index=True)
    try:
        if tuple(merged.dtypes) != schema.table(name).dtypes:
            # Frames of unlike types have met, and ids may have become floats.
            merged = pd.concat([_conform_one(f, name, r) for f, r in zip(frames, results, strict=True)])
        return schema.conform(merged, name)
    except DataError:
        for frame, result in zip(frames, results, strict=True):
            _conform_one(frame, name, result)
        raise


def _conform_one(frame: pd.DataFrame, name: str, result: DetectorResult) -> pd.DataFrame:
    try:
        return schema.conform(frame, name)
    except DataError as error:
        raise DataError(f"visit {result.visit.visit} detector {result.detector}: {error}") from error
