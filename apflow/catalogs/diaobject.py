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
from apflow.catalogs.positions import Places, mean_places
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
_FLUXES = ("psfFlux", "psfFluxErr", "scienceFlux", "scienceFluxErr")
#: What later versions can go on from.
_KEPT = (
    *("validityStartMjdTai", "firstDiaSourceMjdTai", "lastDiaSourceMjdTai", "nDiaSources"),
    *_POSITION,
    *(f"{b}_psfFlux{s}" for b in BANDS for s in ("Mean", "MeanErr", "Ndata", "Min", "Max", "ErrMean")),
    *(f"{b}_scienceFlux{s}" for b in BANDS for s in ("Mean", "MeanErr")),
)


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
    new = _rows(sources, sources["diaObjectId"].notna().to_numpy())
    ids, own = np.unique(new["diaObjectId"], return_inverse=True)
    n = len(ids)
    if not n:
        return schema.empty("DiaObject")
    before = _before(history.objects, ids)
    times = _times(new["midpointMjdTai"], own, before)
    newest = grouped.highest(own, new["midpointMjdTai"], n)
    # All of its life is in the history; else the rows of the history are in the version before already.
    whole = ~(before["firstDiaSourceMjdTai"] < newest - history_days) & ~(before["lastDiaSourceMjdTai"] > newest)
    before = {c: np.where(whole, np.nan, v) for c, v in before.items()}
    past = _rows(
        history.sources, _valid(history.sources, ids) & ~np.isin(history.sources["diaSourceId"], new["diaSourceId"])
    )
    rows = {c: np.concatenate([past[c], new[c]]) for c in new}
    group = np.searchsorted(ids, rows["diaObjectId"])
    counts = whole[group] | (np.arange(len(group)) >= len(group) - len(own))
    columns: Columns = {"diaObjectId": ids, **times}
    columns |= _position({c: rows[c][counts] for c in _POSITION}, group[counts], before, position_floor_arcsec)
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
    ids, n = objects["diaObjectId"].to_numpy(np.int64), len(objects) * len(BANDS)
    parts = [_rows(f, _valid(f, ids), "diaForcedSourceId", _FLUXES[:2]) for f in (past, forced)]
    rows = {c: np.concatenate([p[c] for p in parts]) for c in parts[0]}
    flux, error, cell, _ = _good(rows, np.searchsorted(ids, rows["diaObjectId"]), "psfFlux")
    mean, mean_error = grouped.weighted_mean(cell, flux, error, n)
    by_band = _by_band({"fpFluxMean": mean.astype(np.float32), "fpFluxMeanErr": mean_error.astype(np.float32)})
    return objects.assign(**by_band)


def _valid(table: pd.DataFrame, ids: I8) -> Flags:
    """Rows of some objects that are not withdrawn."""
    objects = table["diaObjectId"].to_numpy(np.int64, na_value=-1)
    return np.isin(objects, ids) & np.isnan(table["timeWithdrawnMjdTai"].to_numpy())


def _rows(
    table: pd.DataFrame, keep: Flags, key: str = "diaSourceId", names: tuple[str, ...] = (*_POSITION, *_FLUXES)
) -> Columns:
    """Some rows as arrays in the order of their ids, so that sums do not depend on that of the table."""
    bare = schema.bare(table[[key, "diaObjectId", "midpointMjdTai", "band", *names]])
    rows = np.flatnonzero(keep)
    ids = bare[key].to_numpy(np.int64)
    rows = rows[np.argsort(ids[rows], kind="stable")]
    band = np.select([(bare["band"] == b).to_numpy(bool, na_value=False) for b in BANDS], range(len(BANDS)), -1)
    out: Columns = {c: bare[c].to_numpy(np.float64)[rows] for c in ("midpointMjdTai", *names)}
    return out | {
        key: ids[rows],
        "diaObjectId": bare["diaObjectId"].to_numpy(np.int64, na_value=-1)[rows],
        "band": band[rows],
    }


def _before(known: pd.DataFrame, ids: I8) -> Columns:
    """The current version of each object, row by row, as floats; NaN where it is new."""
    bare, known_ids = schema.bare(known), known["diaObjectId"].to_numpy(np.int64)
    rows = np.flatnonzero(np.isin(known_ids, ids))
    at = np.searchsorted(ids, known_ids[rows])
    table = np.full((len(_KEPT), len(ids)), np.nan)
    for k, name in enumerate(_KEPT):
        table[k, at] = bare[name].to_numpy(np.float64)[rows]
    return dict(zip(_KEPT, table, strict=True))


def _times(midpoint: F8, own: I8, before: Columns) -> Columns:
    start, first, last, count = (before[c] for c in _KEPT[:4])
    n = len(count)
    newest = grouped.highest(own, midpoint, n)
    return {
        "validityStartMjdTai": np.fmax(newest, start + _TICK_D),
        "firstDiaSourceMjdTai": np.fmin(grouped.lowest(own, midpoint, n), first),
        "lastDiaSourceMjdTai": np.fmax(newest, last),
        "nDiaSources": np.bincount(own, minlength=n) + np.nan_to_num(count).astype(np.int64),
    }


def _position(rows: Columns, group: I8, before: Columns, floor_arcsec: float) -> Columns:
    """Mean position; an earlier version is one more row, whose floor is that of the mean of its sources."""
    held = np.flatnonzero(np.isfinite(before["ra"]))
    places = Places.of({c: np.concatenate([rows[c], before[c][held]]) for c in _POSITION})
    averaged = np.concatenate([np.ones(len(group)), np.maximum(before["nDiaSources"][held], 1.0)])
    mean = mean_places(places, floor_arcsec**2 / averaged, np.concatenate([group, held]), len(before["ra"]))
    return {
        "ra": mean.ra,
        "dec": mean.dec,
        "raErr": np.sqrt(mean.xx) / 3600.0,
        "decErr": np.sqrt(mean.yy) / 3600.0,
        "ra_dec_Cov": mean.xy / 3600.0**2,
    }


def _good(rows: Columns, group: I8, name: str) -> tuple[F8, F8, I8, I8]:
    """Flux, error, cell (group and band) and index of the rows where all are known."""
    flux, error, band = rows[name], rows[name + "Err"], rows["band"]
    good = np.flatnonzero(np.isfinite(flux) & (error > 0) & np.isfinite(error) & (band >= 0))
    return flux[good], error[good], group[good] * len(BANDS) + band[good], good


def _by_band(cells: Columns) -> Columns:
    """Columns of each band from values by cell."""
    return {f"{band}_{name}": v[k :: len(BANDS)] for name, v in cells.items() for k, band in enumerate(BANDS)}


def _fluxes(rows: Columns, group: I8, counts: Flags, before: Columns) -> Columns:
    """Flux statistics by band; `counts` marks rows that are not in the version before."""
    n = len(before["ra"]) * len(BANDS)

    def earlier(name: str) -> F8:
        return np.stack([before[f"{b}_{name}"] for b in BANDS], 1).ravel()

    flux, error, cell, index = _good(rows, group, "psfFlux")
    out: Columns = {
        "psfFluxSigma": grouped.deviation(cell, flux, n),
        "psfFluxMaxSlope": grouped.steepest(cell, flux, rows["midpointMjdTai"][index], n),
    }
    fresh = counts[index]
    flux, error, cell = flux[fresh], error[fresh], cell[fresh]
    count0 = np.nan_to_num(earlier("psfFluxNdata"))
    count = np.bincount(cell, minlength=n) + count0
    errors = grouped.total(cell, error, n) + count0 * np.nan_to_num(earlier("psfFluxErrMean"))
    out |= {
        "psfFluxNdata": count.astype(np.int64),
        "psfFluxMin": np.fmin(grouped.lowest(cell, flux, n), earlier("psfFluxMin")),
        "psfFluxMax": np.fmax(grouped.highest(cell, flux, n), earlier("psfFluxMax")),
        "psfFluxErrMean": errors / np.where(count > 0, count, np.nan),
    }
    science = _good(rows, group, "scienceFlux")
    fresh = counts[science[3]]
    for name, new in (("psfFlux", (flux, error, cell)), ("scienceFlux", tuple(v[fresh] for v in science[:3]))):
        mean, mean_error = earlier(f"{name}Mean"), earlier(f"{name}MeanErr")
        held = np.flatnonzero(np.isfinite(mean) & (mean_error > 0))
        # A weighted mean of earlier rows counts as one more row with its error.
        f, e, c = (np.concatenate(p) for p in zip(new, (mean[held], mean_error[held], held), strict=True))
        out[f"{name}Mean"], out[f"{name}MeanErr"] = grouped.weighted_mean(c, f, e, n)
    return _by_band(out)
