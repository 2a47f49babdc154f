"""Merging DiaObjects that were made twice for one thing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from apflow.catalogs.diaobject import new_versions, with_forced_fluxes
from apflow.io.ppdb import Ppdb
from apflow.io.ppdb.operations_dedup import Duplicate, find_duplicates, merge
from apflow.model import schema
from apflow.model.products import History


def dedup(ppdb: Ppdb, radius_arcsec: float, position_floor_arcsec: float, *, apply: bool) -> list[Duplicate]:
    """Find DiaObjects made twice, and merge them where `apply` is true; see `find_duplicates` and `merge`.

    Of three for one thing two pairs come up one after the other: with `apply`
    all are merged and told of.
    """
    found = find_duplicates(ppdb, radius_arcsec)
    told = list(found)
    while apply and found:
        merge(ppdb, found, _versions(ppdb, found, position_floor_arcsec))
        found = find_duplicates(ppdb, radius_arcsec)
        told += found
    return told


def _versions(ppdb: Ppdb, duplicates: Sequence[Duplicate], position_floor_arcsec: float) -> pd.DataFrame:
    """A version of each kept object from all DiaSources of both."""
    kept_for = {k: d.kept for d in duplicates for k in (d.kept, d.dropped)}
    sources, forced = (_of(ppdb, name, kept_for) for name in ("DiaSource", "DiaForcedSource"))
    standing = sources[sources["timeWithdrawnMjdTai"].isna()]
    without = set(sources["diaObjectId"]) - set(standing["diaObjectId"])
    counted = pd.concat([standing, sources[sources["diaObjectId"].isin(without)]], ignore_index=True)
    past = History(schema.empty("DiaObject"), schema.empty("DiaSource"), schema.empty("DiaForcedSource"))
    versions = new_versions(counted, past, position_floor_arcsec=position_floor_arcsec)
    forced = forced.drop_duplicates(["diaObjectId", "visit", "detector"])
    versions = with_forced_fluxes(versions, schema.empty("DiaForcedSource"), forced)
    ordered = versions.set_index("diaObjectId").loc[[d.kept for d in duplicates]].reset_index()
    times = sources.groupby(sources["diaObjectId"].to_numpy(np.int64))["midpointMjdTai"]
    kept = ordered["diaObjectId"].to_numpy()
    return schema.conform(
        ordered.assign(
            validityStartMjdTai=[d.at_mjd_tai for d in duplicates],
            nDiaSources=times.size().loc[kept].to_numpy(),
            firstDiaSourceMjdTai=times.min().loc[kept].to_numpy(),
            lastDiaSourceMjdTai=times.max().loc[kept].to_numpy(),
        ),
        "DiaObject",
    )


def _of(ppdb: Ppdb, name: str, kept_for: dict[int, int]) -> pd.DataFrame:
    """Rows of both objects of each pair, the kept one's first, as those of the kept one."""
    rows = schema.bare(ppdb.table(name, {"diaObjectId": list(kept_for)}))
    own = rows["diaObjectId"].to_numpy(np.int64)
    kept = np.array([kept_for[k] for k in own.tolist()], np.int64)
    order = np.argsort(own != kept, kind="stable")
    return schema.conform(rows.assign(diaObjectId=kept).iloc[order], name)
