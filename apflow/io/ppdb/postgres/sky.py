"""Patches of sky as ranges of pixels, which a B-tree finds."""

from __future__ import annotations

from collections.abc import Sequence

import hpgeom
import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from apflow.io.ppdb.sky_index import ORDER, distinct
from apflow.model.region import Region

I8 = NDArray[np.int64]

#: Each range is a descent of the index, and some microseconds of planning.
_MOST_RANGES = 128
#: Pixels of a detector's region, 1.7': a quarter more sky than the region has, in a dozen ranges.
_REGION_ORDER = 11


def pixels(region: Region, order: int) -> I8:
    """HEALPix pixels of an order, nested, that hold every point of a region."""
    ra, dec = region.vertices.T
    return np.asarray(hpgeom.query_polygon(2**order, ra, dec, inclusive=True), np.int64)


def regions_condition(regions: Sequence[Region]) -> sql.SQL:
    """SQL that holds for the pixelId of every point of some regions; the caller cuts exactly."""
    return cells_condition(np.concatenate([pixels(r, _REGION_ORDER) for r in regions]), _REGION_ORDER)


def region_ranges(regions: Sequence[Region]) -> I8:
    """First and last pixelId of ranges that hold every point of some regions, shape (n, 2)."""
    return _ranges(np.concatenate([pixels(r, _REGION_ORDER) for r in regions]), _REGION_ORDER)


def cells_condition(cells: I8, order: int) -> sql.SQL:
    """SQL that holds for the pixelId of every point in some HEALPix pixels of an order.

    OR of BETWEEN: PostgreSQL plans it as a bitmap of index scans; a join with
    VALUES it does not.
    """
    ranges = [f'"pixelId" BETWEEN {low} AND {high}' for low, high in _ranges(cells, order).tolist()]
    return sql.SQL("(" + (" OR ".join(ranges) or "false") + ")")


def _ranges(cells: I8, order: int) -> I8:
    """First and last pixel of order 20 of each run of cells; cells are made larger until the runs are few."""
    cells = distinct(cells)
    runs = _runs(cells)
    while len(runs) > _MOST_RANGES:
        cells, order = distinct(cells >> 2), order - 1
        runs = _runs(cells)
    shift = 2 * (ORDER - order)
    return np.stack([runs[:, 0] << shift, ((runs[:, 1] + 1) << shift) - 1], -1)


def _runs(cells: I8) -> I8:
    """First and last of each run of consecutive numbers, shape (n, 2)."""
    edges = np.flatnonzero(np.diff(cells) > 1)
    if not len(cells):
        return np.empty((0, 2), np.int64)
    return np.stack([cells[np.append(0, edges + 1)], cells[np.append(edges, len(cells) - 1)]], -1)
