"""DiaObjects that were made twice for one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apflow.errors import BadRequest
from apflow.io.ppdb.interface import Ppdb, Statement
from apflow.io.ppdb.sky_index import chord, unit_vectors
from apflow.io.ppdb.tables import stored_columns, to_arrow
from apflow.model.sky import separation_arcsec

#: A version begins at least this much after the one before, days (1 ms).
_TICK_D = 1e-3 / 86400.0
_IDS = 10_000
_MAX_RADIUS_ARCSEC = 10.0


@dataclass(frozen=True)
class Duplicate:
    """Two current DiaObjects that no visit has seen apart.

    Attributes
    ----------
    kept, dropped
        diaObjectIds; the kept one has the earlier first DiaSource.
    kept_start, dropped_start
        validityStartMjdTai of their current versions.
    separation_arcsec
        Between their positions.
    n_sources
        DiaSources of the dropped one.
    """

    kept: int
    dropped: int
    kept_start: float
    dropped_start: float
    separation_arcsec: float
    n_sources: int

    @property
    def at_mjd_tai(self) -> float:
        """When the dropped one ends, and the kept one's version with all DiaSources begins."""
        return max(self.kept_start, self.dropped_start) + _TICK_D


def find_duplicates(ppdb: Ppdb, radius_arcsec: float) -> list[Duplicate]:
    """Pairs of current DiaObjects within a radius that have no visit in common, closest first.

    Two objects that one visit saw side by side are two things. An object is in
    one pair only: merge, and look again.

    Raises
    ------
    BadRequest
        The radius is not between 0 and 10 arcsec.
    """
    if not 0.0 < radius_arcsec <= _MAX_RADIUS_ARCSEC:
        raise BadRequest(f"radius {radius_arcsec:g} arcsec; accepted: up to {_MAX_RADIUS_ARCSEC:g}")
    last = ppdb.select(
        'SELECT "diaObjectId", "validityStartMjdTai", "firstDiaSourceMjdTai", ra, dec FROM "DiaObjectLast"'
    )
    ids, start, first, ra, dec = (last.column(i).to_numpy() for i in range(5))
    if len(ids) < 2:
        return []
    pairs = cKDTree(unit_vectors(ra, dec)).query_pairs(chord(radius_arcsec), output_type="ndarray")
    apart = separation_arcsec(ra[pairs[:, 0]], dec[pairs[:, 0]], ra[pairs[:, 1]], dec[pairs[:, 1]])
    visits = _visits(ppdb, ids[np.unique(pairs)])
    found: list[Duplicate] = []
    taken: set[int] = set()
    for k in np.argsort(apart, kind="stable"):
        i, j = sorted(pairs[k].tolist(), key=lambda n: (first[n], ids[n]))
        mine, theirs = visits.get(int(ids[i]), []), visits.get(int(ids[j]), [])
        if taken & {i, j} or set(mine) & set(theirs):
            continue
        taken |= {i, j}
        pair = (int(ids[i]), int(ids[j]), float(start[i]), float(start[j]))
        found.append(Duplicate(*pair, float(apart[k]), len(theirs)))
    return found


def _visits(ppdb: Ppdb, ids: NDArray[np.int64]) -> dict[int, list[int]]:
    """The visit of each DiaSource of some objects."""
    found: dict[int, list[int]] = {}
    for i in range(0, len(ids), _IDS):
        listed = ", ".join(map(str, ids[i : i + _IDS].tolist()))
        rows = ppdb.select(f'SELECT "diaObjectId", visit FROM "DiaSource" WHERE "diaObjectId" IN ({listed})')
        for k, visit in zip(*(c.to_pylist() for c in rows.columns), strict=True):
            found.setdefault(k, []).append(visit)
    return found


def merge(ppdb: Ppdb, duplicates: Sequence[Duplicate], versions: pd.DataFrame) -> None:
    """Give the DiaSources of each dropped DiaObject to the kept one, and end the dropped one; all or nothing.

    DiaForcedSources follow them, but where the kept object was forced in the
    same detector-visit: such stay and are withdrawn.

    Parameters
    ----------
    duplicates
        As `find_duplicates` gives them.
    versions
        A version of each kept object that counts all DiaSources, valid from
        `Duplicate.at_mjd_tai`; columns of DiaObject, in the order of `duplicates`.

    Raises
    ------
    BadRequest
        One of the objects has changed since; nothing was written.
    """
    if duplicates:
        statements = [s for d in duplicates for s in _statements(d)]
        ppdb.change([*statements, *_new_versions(to_arrow(versions, "DiaObject"))])


def _statements(d: Duplicate) -> list[Statement]:
    at = repr(d.at_mjd_tai)
    twice = f'(visit, detector) IN (SELECT visit, detector FROM "DiaForcedSource" WHERE "diaObjectId" = {d.kept})'
    close = [
        f'UPDATE "DiaObject" SET "validityEndMjdTai" = {at} WHERE "diaObjectId" = {k} '
        f'AND "validityStartMjdTai" = {start!r} AND "validityEndMjdTai" IS NULL'
        for k, start in ((d.kept, d.kept_start), (d.dropped, d.dropped_start))
    ]
    kept_stands = (
        f'UPDATE "DiaObjectLast" SET "validityStartMjdTai" = {at} '
        f'WHERE "diaObjectId" = {d.kept} AND "validityStartMjdTai" = {d.kept_start!r}'
    )
    gone = (
        f'DELETE FROM "DiaObjectLast" WHERE "diaObjectId" = {d.dropped} AND "validityStartMjdTai" = {d.dropped_start!r}'
    )
    return [
        Statement(kept_stands, rows=1),
        Statement(gone, rows=1),
        *(Statement(text, rows=1) for text in close),
        Statement(
            f'UPDATE "DiaSource" SET "diaObjectId" = {d.kept} WHERE "diaObjectId" = {d.dropped}', rows=d.n_sources
        ),
        Statement(
            f'UPDATE "DiaForcedSource" SET "timeWithdrawnMjdTai" = {at} '
            f'WHERE "diaObjectId" = {d.dropped} AND "timeWithdrawnMjdTai" IS NULL AND {twice}'
        ),
        Statement(
            f'UPDATE "DiaForcedSource" SET "diaObjectId" = {d.kept} WHERE "diaObjectId" = {d.dropped} AND NOT {twice}'
        ),
    ]


def _new_versions(rows: pa.Table) -> list[Statement]:
    listed = ", ".join(f'"{c}"' for c in rows.column_names)
    names = [c.name for c in stored_columns("DiaObjectLast") if c.name != "diaObjectId"]
    last = ", ".join(f'"{n}" = n."{n}"' for n in names)
    return [
        Statement(f'INSERT INTO "DiaObject" ({listed}) SELECT {listed} FROM new_rows', {"new_rows": rows}),
        Statement(
            f'UPDATE "DiaObjectLast" SET {last} FROM new_rows n WHERE "DiaObjectLast"."diaObjectId" = n."diaObjectId"',
            {"new_rows": rows},
        ),
    ]
