"""DiaObject versions: what the sources of an object say about it.

An object whose whole life lies in the history (12 months) is computed from its
rows, without those that were withdrawn. An older one, and one that a late
visit adds to, goes on from the version before: exactly for Mean, MeanErr,
Ndata, Min, Max and ErrMean of the fluxes; the position counts as that of
nDiaSources sources with equal errors. Sigma, MaxSlope and fpFlux do not follow
from earlier values: they are of the history always. nDiaSources and the time
of the first source are of the whole life, withdrawn sources included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.catalogs import grouped
from apflow.catalogs.positions import Places, inverse, moved, offsets_arcsec
from apflow.model import schema
from apflow.model.products import History

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Flags = NDArray[np.bool_]
Columns = dict[str, NDArray[Any]]

BANDS = "ugrizy"
#: A version begins at least this much after the one before, days (1 ms): a late visit gives a newer version too.
_TICK_D = 1e-3 / 86400.0
_POSITION = ("ra", "dec", "raErr", "decErr", "ra_dec_Cov")
_COLUMNS = [
    *("diaSourceId", "diaObjectId", *_POSITION, "midpointMjdTai", "band"),
    *("psfFlux", "psfFluxErr", "scienceFlux", "scienceFluxErr", "timeWithdrawnMjdTai"),
]
_TIMES = ["validityStartMjdTai", "firstDiaSourceMjdTai", "lastDiaSourceMjdTai", "nDiaSources"]


def new_versions(
    sources: pd.DataFrame, history: History, *, position_floor_arcsec: float, history_days: float = 365.0
) -> pd.DataFrame:
    """A new version of each DiaObject that got a source; see the module for what goes on from the version before.

    Position: mean weighted by the inverse of covariance and floor, with its
    covariance. Per band: weighted mean, its error, standard deviation, count,
    extremes, mean error and steepest rise of psfFlux (nJy), and weighted mean
    of scienceFlux. `with_forced_fluxes` adds fpFlux.

    Parameters
    ----------
    sources : `pandas.DataFrame`
        New DiaSources; those without diaObjectId are left out.
    history : `History`
        Current versions and past sources.
    history_days : `float`
        How far past sources reach back from the new ones.

    Returns
    -------
    `pandas.DataFrame`
        DiaObject rows ordered by diaObjectId; valid from the time of their
        newest source, or just after the version before if that is later.
    """
    new = schema.bare(sources[_COLUMNS])
    new = new[new["diaObjectId"].notna()].sort_values("diaSourceId", kind="stable", ignore_index=True)
    ids, own = np.unique(new["diaObjectId"].to_numpy(np.int64), return_inverse=True)
    n = len(ids)
    if not n:
        return schema.empty("DiaObject")
    before = _before(history.objects, ids)
    times = _times(new["midpointMjdTai"].to_numpy(), own, before)
    newest = grouped.highest(own, new["midpointMjdTai"].to_numpy(), n)
    # All of its life is in the history; else the rows of the history are in the version before already.
    first, last = (before[c].to_numpy() for c in ("firstDiaSourceMjdTai", "lastDiaSourceMjdTai"))
    whole = ~(first < newest - history_days) & ~(last > newest)
    past = _past(history.sources, new, ids)
    rows = pd.concat([past, new], ignore_index=True) if len(past) else new
    group = np.concatenate([np.searchsorted(ids, past["diaObjectId"].to_numpy(np.int64)), own])
    counts = whole[group] | (np.arange(len(rows)) >= len(past))
    before.loc[whole] = np.nan
    columns: Columns = {"diaObjectId": ids, **times}
    columns |= _position(Places.of(rows[counts]), group[counts], before, position_floor_arcsec)
    columns |= _fluxes(rows, group, counts, before)
    return schema.conform(pd.DataFrame(columns), "DiaObject")


def with_forced_fluxes(objects: pd.DataFrame, past: pd.DataFrame, forced: pd.DataFrame) -> pd.DataFrame:
    """DiaObject versions with the weighted mean of the forced fluxes of each band.

    Parameters
    ----------
    objects : `pandas.DataFrame`
        New versions, ordered by diaObjectId.
    past, forced : `pandas.DataFrame`
        DiaForcedSources of the history and of this visit.
    """
    ids, n = objects["diaObjectId"].to_numpy(np.int64), len(objects)
    columns = ["diaObjectId", "diaForcedSourceId", "band", "psfFlux", "psfFluxErr", "timeWithdrawnMjdTai"]
    parts = [schema.bare(f[columns]) for f in (past, forced) if len(f)]
    if not n or not parts:
        return objects
    rows = pd.concat(parts, ignore_index=True).sort_values("diaForcedSourceId", kind="stable")
    rows = rows[rows["diaObjectId"].isin(ids) & rows["timeWithdrawnMjdTai"].isna()]
    group = np.searchsorted(ids, rows["diaObjectId"].to_numpy(np.int64))
    flux, error, cell, _ = _good(rows, group, "psfFlux")
    mean, mean_error = grouped.weighted_mean(cell, flux, error, n * len(BANDS))
    return objects.assign(
        **{
            f"{band}_{name}": values[k :: len(BANDS)].astype(np.float32)
            for name, values in (("fpFluxMean", mean), ("fpFluxMeanErr", mean_error))
            for k, band in enumerate(BANDS)
        }
    )


def _before(known: pd.DataFrame, ids: I8) -> pd.DataFrame:
    """The current version of each object, row by row, as floats; NaN where it is new."""
    stems = ("psfFluxMean", "psfFluxMeanErr", "psfFluxNdata", "psfFluxMin", "psfFluxMax", "psfFluxErrMean")
    names = [f"{b}_{s}" for b in BANDS for s in (*stems, "scienceFluxMean", "scienceFluxMeanErr")]
    rows = np.flatnonzero(np.isin(known["diaObjectId"], ids))
    at = np.searchsorted(ids, known["diaObjectId"].to_numpy(np.int64)[rows])
    bare = schema.bare(known)
    table = np.full((len(ids), len(_TIMES) + len(_POSITION) + len(names)), np.nan)
    columns = [*_TIMES, *_POSITION, *names]
    for k, name in enumerate(columns):
        table[at, k] = bare[name].to_numpy(np.float64)[rows]
    return pd.DataFrame(table, columns=columns)


def _past(past: pd.DataFrame, new: pd.DataFrame, ids: I8) -> pd.DataFrame:
    """Valid sources of the history, of the objects, that are not new; ordered by id."""
    rows = schema.bare(past[_COLUMNS])
    keep = rows["diaObjectId"].isin(ids).to_numpy(bool, na_value=False) & rows["timeWithdrawnMjdTai"].isna().to_numpy()
    keep &= ~np.isin(rows["diaSourceId"], new["diaSourceId"])
    return rows[keep].sort_values("diaSourceId", kind="stable", ignore_index=True)


def _times(midpoint: F8, own: I8, before: pd.DataFrame) -> Columns:
    n = len(before)
    start, first, last, count = (before[c].to_numpy() for c in _TIMES)
    newest = grouped.highest(own, midpoint, n)
    return {
        "validityStartMjdTai": np.fmax(newest, start + _TICK_D),
        "firstDiaSourceMjdTai": np.fmin(grouped.lowest(own, midpoint, n), first),
        "lastDiaSourceMjdTai": np.fmax(newest, last),
        "nDiaSources": np.bincount(own, minlength=n) + np.nan_to_num(count).astype(np.int64),
    }


def _position(rows: Places, group: I8, before: pd.DataFrame, floor_arcsec: float) -> Columns:
    """Mean position; an earlier version is one more row, whose floor is that of the mean of its sources."""
    n = len(before)
    held = np.flatnonzero(before["ra"].notna())
    earlier = Places.of(before.iloc[held])
    group = np.concatenate([group, held])
    n_sources = np.concatenate([np.ones(len(rows)), np.maximum(before["nDiaSources"].to_numpy()[held], 1.0)])
    ra, dec, xx, yy, xy = (
        np.concatenate([getattr(p, c) for p in (rows, earlier)]) for c in ("ra", "dec", "xx", "yy", "xy")
    )
    _, start = np.unique(group, return_index=True)
    ra0, dec0 = ra[start], dec[start]
    x, y = offsets_arcsec(ra, dec, ra0[group], dec0[group])
    floor = floor_arcsec**2 / n_sources
    # Weights W = (C + floor)^-1; the errors are those that the measurements claim, without the floor.
    wxx, wyy, wxy = inverse(xx + floor, yy + floor, xy)
    axx, ayy, axy = inverse(*(grouped.total(group, w, n) for w in (wxx, wyy, wxy)))
    bx = grouped.total(group, wxx * x + wxy * y, n)
    by = grouped.total(group, wxy * x + wyy * y, n)
    dx, dy = axx * bx + axy * by, axy * bx + ayy * by
    mxx, mxy, myx, myy = wxx * xx + wxy * xy, wxx * xy + wxy * yy, wxy * xx + wyy * xy, wxy * xy + wyy * yy
    products = (mxx * wxx + mxy * wxy, myx * wxy + myy * wyy, mxx * wxy + mxy * wyy)
    sxx, syy, sxy = (grouped.total(group, p, n) for p in products)
    vxx = axx * (axx * sxx + 2 * axy * sxy) + axy * axy * syy
    vyy = ayy * (ayy * syy + 2 * axy * sxy) + axy * axy * sxx
    vxy = axx * axy * sxx + (axx * ayy + axy * axy) * sxy + axy * ayy * syy
    mean_ra, mean_dec = moved(ra0, dec0, dx, dy)
    return {
        "ra": mean_ra,
        "dec": mean_dec,
        "raErr": np.sqrt(vxx) / 3600.0,
        "decErr": np.sqrt(vyy) / 3600.0,
        "ra_dec_Cov": vxy / 3600.0**2,
    }


def _good(rows: pd.DataFrame, group: I8, name: str) -> tuple[F8, F8, I8, I8]:
    """Flux, error, cell (group and band) and index of the rows where both are known."""
    flux, error = (rows[c].to_numpy(np.float64) for c in (name, name + "Err"))
    band = np.full(len(rows), -1)
    for k, b in enumerate(BANDS):
        band[(rows["band"] == b).to_numpy(bool, na_value=False)] = k
    good = np.flatnonzero(np.isfinite(flux) & (error > 0) & np.isfinite(error) & (band >= 0))
    return flux[good], error[good], group[good] * len(BANDS) + band[good], good


def _fluxes(rows: pd.DataFrame, group: I8, counts: Flags, before: pd.DataFrame) -> Columns:
    """Flux statistics by band; `counts` marks rows that are not in the version before."""
    n = len(before) * len(BANDS)

    def earlier(name: str) -> F8:
        return before[[f"{b}_{name}" for b in BANDS]].to_numpy().ravel()

    flux, error, cell, index = _good(rows, group, "psfFlux")
    out = {
        "psfFluxSigma": grouped.deviation(cell, flux, n),
        "psfFluxMaxSlope": grouped.steepest(cell, flux, rows["midpointMjdTai"].to_numpy()[index], n),
    }
    kept = counts[index]
    flux, error, cell = flux[kept], error[kept], cell[kept]
    count0 = np.nan_to_num(earlier("psfFluxNdata"))
    count = np.bincount(cell, minlength=n) + count0
    errors = grouped.total(cell, error, n) + count0 * np.nan_to_num(earlier("psfFluxErrMean"))
    out |= {
        "psfFluxNdata": count.astype(np.int64),
        "psfFluxMin": np.fmin(grouped.lowest(cell, flux, n), earlier("psfFluxMin")),
        "psfFluxMax": np.fmax(grouped.highest(cell, flux, n), earlier("psfFluxMax")),
        "psfFluxErrMean": errors / np.where(count > 0, count, np.nan),
    }
    science = _good(rows[counts], group[counts], "scienceFlux")[:3]
    for name, new in (("psfFlux", (flux, error, cell)), ("scienceFlux", science)):
        mean, mean_error = earlier(f"{name}Mean"), earlier(f"{name}MeanErr")
        held = np.flatnonzero(np.isfinite(mean) & (mean_error > 0))
        f, e, c = (np.concatenate(p) for p in zip(new, (mean[held], mean_error[held], held), strict=True))
        out[f"{name}Mean"], out[f"{name}MeanErr"] = grouped.weighted_mean(c, f, e, n)
    return {f"{band}_{name}": v[k :: len(BANDS)] for name, v in out.items() for k, band in enumerate(BANDS)}
