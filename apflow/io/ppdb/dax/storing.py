"""Storing in an Apdb once, whoever is killed: under locks, after a note, and finished by whoever comes next.

A batch is stored in five steps: take the locks of its sky; ask the Apdb whether
what it was associated with still stands; note in the companion all that will
be written; store it in the Apdb; commit ledger, outbox and matches in the
companion, and take the note away. A note whose locks are free has lost its
writer between two steps: what is missing of it is written before anybody
reads or stores on that sky.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from apflow.errors import DataError
from apflow.io.ppdb import guard
from apflow.io.ppdb.batch import Batch, prepare
from apflow.io.ppdb.dax import intent
from apflow.io.ppdb.dax.door import PATIENCE_S, Door, about
from apflow.io.ppdb.dax.intent import Intent
from apflow.io.ppdb.dax.locks import Busy, Locks, numbers_of
from apflow.io.ppdb.interface import Ppdb, StoreReport
from apflow.io.ppdb.parts import ROW_ID
from apflow.io.ppdb.postgres.connect import retrying
from apflow.io.ppdb.tables import to_frame
from apflow.io.ppdb.turns import Key
from apflow.model.products import DetectorResult, OutboxRow
from apflow.model.region import Region

_log = logging.getLogger(__name__)
_ROWS = ("DiaObject", "DiaSource", "DiaForcedSource")
#: How long the same sky may be written by others: a store of a raft takes a second.
_LOCK_WAIT_S = 120.0


class Store:
    """The stores of one Apdb with its companion."""

    def __init__(self, door: Door, companion: Ppdb, locks: Locks) -> None:
        self._door = door
        self._companion = companion
        self._locks = locks

    def store(
        self,
        results: Sequence[DetectorResult],
        outbox: Sequence[OutboxRow],
        processed_mjd_tai: float,
        radius_arcsec: float,
    ) -> StoreReport:
        """See `Ppdb.storeBatch`."""
        batch = prepare(results, outbox, processed_mjd_tai, radius_arcsec)
        guard.check_radius(batch)
        numbers = numbers_of(batch)
        while True:
            self.recover(numbers)
            with self._locks.held(self._to_lock(numbers), _LOCK_WAIT_S):
                if not self._left(numbers):  # else somebody died while this waited
                    return self._locked(batch, results, numbers)

    def recover(self, numbers: Iterable[int] | None = None, wait: bool = True) -> None:
        """Finish what killed processes began to store on some sky, or anywhere.

        Parameters
        ----------
        numbers
            Locks whose holders are asked for; None for all.
        wait
            Wait for those that are at work; else they are left to it.
        """
        for name, held in self._left(numbers).items():
            try:
                with self._locks.held(self._to_lock(held), _LOCK_WAIT_S if wait else 0.0):
                    begun = intent.load(self._companion, name, held)
                    if begun is not None:
                        _log.warning("finishing a store of %d detectors whose process ended", len(begun.stubs))
                        self._write(begun, fresh=False)
                        self._commit(begun)
            except Busy:
                if wait:
                    raise

    def _left(self, numbers: Iterable[int] | None) -> dict[str, frozenset[int]]:
        wanted = None if numbers is None else frozenset(numbers)
        return {n: held for n, held in intent.noted(self._companion).items() if wanted is None or held & wanted}

    def _to_lock(self, numbers: Iterable[int]) -> Iterable[int]:
        return [0] if self._door.one_writer else numbers

    def _locked(self, batch: Batch, results: Sequence[DetectorResult], numbers: frozenset[int]) -> StoreReport:
        new, already = guard.split_stored(batch.keys, self._stored(batch.keys))
        accepted, lost = guard.judge(batch, new, self._current(batch))
        if accepted:
            self._check_free(batch, accepted)
            begun = Intent.of(batch, accepted, results, numbers)
            begun.save(self._companion)
            try:
                self._write(begun, fresh=True)
            except DataError as error:
                if not self._door.transactional:
                    raise
                begun.forget(self._companion)
                raise DataError(f"{error}; {_ids_told(begun)}") from error
            self._commit(begun)
        stored, before, late = (tuple(batch.keys[i][1:] for i in which) for which in (accepted, already, lost))
        return StoreReport(stored, before, late)

    def _stored(self, keys: Sequence[Key]) -> set[Key]:
        _, visits, detectors = zip(*keys, strict=True)
        rows = self._companion.table("ledger", {"visit": sorted(set(visits)), "detector": sorted(set(detectors))})
        rows = rows[rows["stored_unix"].notna()]
        return {
            (str(i), int(v), int(d))
            for i, v, d in zip(rows["instrument"], rows["visit"], rows["detector"], strict=True)
        }

    def _current(self, batch: Batch) -> pa.Table:
        """Current versions of all objects near the sources of a batch; those of its guards are among them."""
        columns = list(guard.VERSION_COLUMNS)
        place = _place([batch.rows["DiaSource"].table, batch.rows["DiaObject"].table])
        found = self._door.objects(place)[columns] if place else pd.DataFrame(columns=columns)
        kinds = batch.rows["DiaObject"].table.select(columns).schema
        return pa.table({c: pa.array(found[c].to_numpy(), kinds.field(c).type) for c in columns})

    def _check_free(self, batch: Batch, accepted: Sequence[int]) -> None:
        """Refuse what one of the two databases would refuse when the other has it already."""
        for name, column in ROW_ID.items():
            ids, count = np.unique(batch.rows[name].of(accepted).column(column).to_numpy(), return_counts=True)
            if (count > 1).any():
                raise DataError(f"PPDB {name}: {column} {ids[count > 1][0]} is there twice")
        mine = {batch.keys[i][1:] for i in accepted}
        alerts = [a.alert_id for a in batch.outbox if (a.visit, a.detector) in mine]
        taken = self._companion.table("outbox", {"alert_id": alerts})["alert_id"].tolist() if alerts else []
        if taken:
            raise DataError(f"PPDB outbox: alert_id {taken[0]} is stored already")
        for visit, detector in sorted(mine):
            if self._door.contains(visit, detector):
                raise DataError(
                    f"visit {visit} detector {detector}: the Apdb has rows of it that the companion knows nothing of; "
                    "accepted: detector-visits that are stored through this companion only"
                )

    def _write(self, begun: Intent, fresh: bool) -> None:
        """Store the rows in the Apdb; those that may be there are looked for unless this is the first attempt."""
        attempt = itertools.count(0 if fresh else 1)

        def once() -> None:
            frames = {name: to_frame(begun.rows[name], name) for name in _ROWS}
            if next(attempt) and self._door.transactional:  # others write a row in the place of the same row
                frames = self._missing(frames)
            self._store(frames)

        retrying(once, PATIENCE_S)

    def _missing(self, frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        place = _place(frames.values())
        if place is None:
            return dict(frames)
        current = self._door.objects(place)
        objects = frames["DiaObject"]
        starts = dict(zip(current["diaObjectId"], current["validityStartMjdTai"], strict=True))
        newest = objects["diaObjectId"].map(starts).to_numpy(float, na_value=-np.inf)
        missing = {"DiaObject": objects[objects["validityStartMjdTai"].to_numpy() > newest]}
        for name, column in ROW_ID.items():
            rows = frames[name]
            if len(rows):
                ids = None if name == "DiaSource" else rows["diaObjectId"].unique().tolist()
                time = rows["midpointMjdTai"]
                found = self._door.history(name, place, ids, time.min(), time.max())[column]
                rows = rows[~rows[column].isin(found)]
            missing[name] = rows
        return missing

    def _store(self, frames: Mapping[str, pd.DataFrame]) -> None:
        """An Apdb gives all objects of a call one time: a call for each time, earliest first.

        Sources go with the first: on SQL that is one transaction, and what it
        may refuse is refused before there is anything.
        """
        objects, sources, forced = (frames[name].reset_index(drop=True) for name in _ROWS)
        starts = sorted(objects["validityStartMjdTai"].unique().tolist())
        if not starts and len(sources) + len(forced):
            starts = [float(pd.concat([sources["midpointMjdTai"], forced["midpointMjdTai"]]).max())]
        for start in starts:
            mine = objects[objects["validityStartMjdTai"] == start].reset_index(drop=True)
            self._door.store(start, mine, sources, forced)
            sources, forced = sources.iloc[:0], forced.iloc[:0]

    def _commit(self, begun: Intent) -> None:
        """Ledger, outbox and matches, and the ends of turns, in the companion's own transaction."""
        self._companion.storeBatch(begun.results(), begun.outbox, 0.0)
        begun.finish(self._companion)


def _place(tables: Iterable[pa.Table | pd.DataFrame]) -> Region | None:
    """A region that holds all rows of some tables; None where there are none."""
    filled = [t for t in tables if len(t)]
    if not filled:
        return None
    ra, dec = (np.concatenate([np.asarray(t[c]) for t in filled]) for c in ("ra", "dec"))
    return about(ra, dec)


def _ids_told(begun: Intent) -> str:
    """The ids of a store that an Apdb refused without saying which."""
    told = []
    for name, column in ROW_ID.items():
        ids = begun.rows[name].column(column).to_numpy()
        if len(ids):
            told.append(f"{name}.{column} {ids.min()} to {ids.max()}")
    return "refused with " + ", ".join(told)
