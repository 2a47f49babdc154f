"""What the association of detectors reads: two statements a few detectors, whatever their tables hold."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.io.ppdb.drp import DRP_MARGIN_ARCSEC
from apflow.io.ppdb.interface import Wanted
from apflow.io.ppdb.parts import I8, ROW_ID, history_order, ids_near
from apflow.io.ppdb.postgres.packed import Packed, array_text, packed_sql, rows_of
from apflow.io.ppdb.postgres.pool import Connection, Pool
from apflow.io.ppdb.postgres.sky import region_ranges
from apflow.io.ppdb.sky_index import distinct, members
from apflow.model.products import History

#: DiaSources of detectors that one statement reads together: what the caches of a processor hold goes through them
#: once, as bytes and as columns. As many as the current objects tell of.
_TOGETHER = 2_000
#: Connections that read at once: more, and they would take the server from others.
_ABREAST = 4
#: DiaSources of one detector that one statement reads, a tenth of what a value can hold.
_MOST = 80_000

# OFFSET 0 keeps the planner from any other way than to look up each range or version in an index.
_IN_RANGES = (
    "unnest(%s::int8[], %s::int8[]) AS w (low, high) "
    'CROSS JOIN LATERAL (SELECT * FROM "{0}" WHERE "pixelId" BETWEEN w.low AND w.high OFFSET 0) t'
)
_VERSIONS = (
    "unnest(%s::int8[], %s::float8[]) AS w (id, start) CROSS JOIN LATERAL "
    '(SELECT * FROM "DiaObject" WHERE "diaObjectId" = w.id AND "validityStartMjdTai" = w.start OFFSET 0) t'
)
_SINCE = (
    '"{0}" t WHERE t."diaObjectId" = ANY(%s::int8[]) AND t."midpointMjdTai" BETWEEN %s AND %s '
    'AND t."timeWithdrawnMjdTai" IS NULL'
)
_SKY = tuple((name, packed_sql(name, _IN_RANGES.format(name))) for name in ("DiaObjectLast", "DrpObject"))
_HISTORY = (
    ("DiaObject", packed_sql("DiaObject", _VERSIONS)),
    *((name, packed_sql(name, _SINCE.format(name))) for name in ROW_ID),
)


@dataclass(frozen=True, eq=False)
class _Piece:
    """What of a detector one statement reads: versions of objects, and objects whose history is wanted."""

    wanted: Wanted
    versions: I8
    starts: NDArray[np.float64]
    near: I8
    n_rows: int


@dataclass(frozen=True, eq=False)
class _Frames:
    """What became of a piece."""

    objects: pd.DataFrame
    sources: pd.DataFrame
    forced: pd.DataFrame


def histories(
    con: Connection, pool: Pool, wanted: Sequence[Wanted], margin_arcsec: float, radius_arcsec: float, days: float
) -> list[History]:
    """See `Ppdb.getHistory`; within the `LOOK_UP` that `con` has open, with more connections of its pool for many."""
    wide = [w.region.grown(DRP_MARGIN_ARCSEC) for w in wanted]
    ranges = [array_text(column) for column in region_ranges(wide).T]
    last, drp = rows_of(con, _SKY, [*ranges, *ranges])
    pieces = _pieces(last, wanted, margin_arcsec, radius_arcsec)
    frames = _read(con, pool, [piece for of_one in pieces for piece in of_one], days)
    joined = [_joined(list(itertools.islice(frames, len(of_one)))) for of_one in pieces]
    objects = _inside(drp, wide)
    return [History(f.objects, f.sources, f.forced, d) for f, d in zip(joined, objects, strict=True)]


def _inside(drp: Packed, regions: Sequence[Any]) -> list[pd.DataFrame]:
    """The DRP Objects inside each region, by id."""
    order = np.argsort(drp.column("objectId"))
    which = members(drp.column("ra")[order], drp.column("dec")[order], regions)
    return [drp.frame(order[i]) for i in which]


def _pieces(last: Packed, wanted: Sequence[Wanted], margin_arcsec: float, radius_arcsec: float) -> list[list[_Piece]]:
    """What to read for each detector: mostly one piece, more where objects have very many DiaSources."""
    names = ("diaObjectId", "validityStartMjdTai", "ra", "dec", "nDiaSources")
    order = np.argsort(last.column(names[0]))
    ids, start, ra, dec, count = (last.column(c)[order] for c in names)
    inside = members(ra, dec, [w.region.grown(margin_arcsec) for w in wanted])
    near = ids_near(wanted, [ids[i] for i in inside], ids, ra, dec, radius_arcsec)
    pieces = []
    for w, mine, objects in zip(wanted, inside, near, strict=True):
        rows = count[np.searchsorted(ids, objects)].astype(np.int64)
        cuts = np.flatnonzero(np.diff(np.cumsum(rows) // _MOST)) + 1
        parts = zip(np.split(objects, cuts), np.split(rows, cuts), strict=True)
        pieces.append(
            [
                _Piece(w, ids[at], start[at], part, int(n.sum()))
                for i, (part, n) in enumerate(parts)
                for at in [mine if i == 0 else mine[:0]]
            ]
        )
    return pieces


def _read(con: Connection, pool: Pool, pieces: Sequence[_Piece], days: float) -> Iterator[_Frames]:
    """The frames of each piece; several server processes work at once while those before are made into frames."""
    together = list(_batched(pieces))
    if len(together) == 1:
        return iter(_frames(_ask(con, pieces, days), pieces, days))
    with pool.helpers(con, min(len(together), _ABREAST) - 1) as helpers:
        free = SimpleQueue[Connection]()
        for one in (con, *helpers):
            free.put(one)

        def read(some: list[_Piece]) -> list[_Frames]:
            asking = free.get()
            try:
                rows = _ask(asking, some, days)
            finally:
                free.put(asking)
            return _frames(rows, some, days)

        with ThreadPoolExecutor(len(helpers) + 2) as threads:
            return itertools.chain.from_iterable(list(threads.map(read, together)))


def _batched(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    some: list[_Piece] = []
    for piece in pieces:
        if some and sum(p.n_rows for p in some) + piece.n_rows > _TOGETHER:
            yield some
            some = []
        some.append(piece)
    yield some


def _ask(con: Connection, pieces: Sequence[_Piece], days: float) -> list[Packed]:
    """The rows of some pieces, none twice."""
    versions, at = np.unique(np.concatenate([p.versions for p in pieces]), return_index=True)
    starts = np.concatenate([p.starts for p in pieces])[at]
    ids = array_text(distinct(np.concatenate([p.near for p in pieces])))
    until = [p.wanted.mjd_tai for p in pieces]
    span = [ids, min(until) - days, max(until)]
    return rows_of(con, _HISTORY, [array_text(versions), array_text(starts), *span, *span])


def _frames(rows: Sequence[Packed], pieces: Sequence[_Piece], days: float) -> list[_Frames]:
    versions, *histories = rows
    until = np.array([p.wanted.mjd_tai for p in pieces])
    near = [p.near for p in pieces]
    columns = [_of_versions(versions, pieces)]
    for packed in histories:
        row_id, mjd, objects = (packed.column(c) for c in (ROW_ID[packed.name], "midpointMjdTai", "diaObjectId"))
        take, offsets = history_order(row_id, mjd, objects, near, until - days, until)
        columns.append([packed.frame(take[a:b]) for a, b in itertools.pairwise(offsets.tolist())])
    return [_Frames(*frames) for frames in zip(*columns, strict=True)]


def _of_versions(rows: Packed, pieces: Sequence[_Piece]) -> list[pd.DataFrame]:
    found = rows.column("diaObjectId")
    order = np.argsort(found)
    found = found[order]
    frames = []
    for piece in pieces:
        at = np.searchsorted(found, piece.versions)
        missing = (
            found[np.minimum(at, len(found) - 1)] != piece.versions if len(found) else piece.versions == piece.versions
        )
        if missing.any():
            raise DataError(
                f"PPDB DiaObject {piece.versions[missing][0]} has not the current version that DiaObjectLast names; "
                "see: apflow ppdb check"
            )
        frames.append(rows.frame(order[at]))
    return frames


def _joined(pieces: Sequence[_Frames]) -> _Frames:
    if len(pieces) == 1:
        return pieces[0]
    sources, forced = (
        pd.concat([getattr(p, what) for p in pieces]).sort_values(["midpointMjdTai", row_id], ignore_index=True)
        for what, row_id in zip(("sources", "forced"), ROW_ID.values(), strict=True)
    )
    return _Frames(pieces[0].objects, sources, forced)
