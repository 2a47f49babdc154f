"""DiaObject versions: what the sources of an object say about it.

Columns that are null so far: ``*_fpFluxMean``, ``*_fpFluxMeanErr``,
``*_psfFluxMaxSlope`` and ``ra_dec_Cov``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.catalogs.positions import position_variance, unit_vectors
from apflow.model import schema
from apflow.model.products import History

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

BANDS = "ugrizy"
#: A version begins at least this much after the one before, days (1 ms): a late visit gives a newer version too.
_TICK_D = 1e-3 / 86400.0
_COLUMNS = [
    *("diaSourceId", "diaObjectId", "ra", "dec", "raErr", "decErr", "ra_dec_Cov", "midpointMjdTai", "band"),
    *("psfFlux", "psfFluxErr", "scienceFlux", "scienceFluxErr", "timeWithdrawnMjdTai"),
]


def new_versions(sources: pd.DataFrame, history: History, *, position_floor_arcsec: float) -> pd.DataFrame:
    """A new version of each DiaObject that got a source.

    Position: mean weighted by the inverse variance (floor included). Per band:
    weighted mean and its error, standard deviation, count, extremes and mean
    error of psfFlux (nJy), and weighted mean of scienceFlux, from the sources
    given and those of the history that are not withdrawn. The count of
    sources and the time of the first one go on from the version before, since
    the history ends after 12 months.

    Parameters
    ----------
    sources : `pandas.DataFrame`
        New DiaSources with diaObjectId.
    history : `History`
        Current versions and past sources.

    Returns
    -------
    `pandas.DataFrame`
        DiaObject rows ordered by diaObjectId; valid from the time of their
        newest source, or just after the version before if that is later.
    """
    ids, own = np.unique(sources["diaObjectId"].to_numpy(np.int64, na_value=-1), return_inverse=True)
    if not len(ids):
        return schema.empty("DiaObject")
    rows = _rows(sources, history, ids)
    group = np.searchsorted(ids, rows["diaObjectId"].to_numpy(np.int64))
    n = len(ids)
    columns: dict[str, NDArray[np.generic]] = {"diaObjectId": ids}
    columns |= _position(rows, group, n, position_floor_arcsec)
    band = rows["band"].to_numpy(object)
    fluxes = {c: rows[c].to_numpy(np.float64) for c in ("psfFlux", "psfFluxErr", "scienceFlux", "scienceFluxErr")}
    for b in BANDS:
        columns |= _band({c: v[band == b] for c, v in fluxes.items()}, group[band == b], n, b)
    columns |= _times(sources, own, history.objects, ids)
    return schema.conform(pd.DataFrame(columns), "DiaObject")


def _rows(sources: pd.DataFrame, history: History, ids: I8) -> pd.DataFrame:
    """New sources and past ones of the same objects, each once."""
    past = schema.bare(history.sources[_COLUMNS])
    keep = past["diaObjectId"].isin(ids) & past["timeWithdrawnMjdTai"].isna()
    keep &= ~past["diaSourceId"].isin(sources["diaSourceId"])
    parts = [f for f in (past[keep.to_numpy(bool, na_value=False)], schema.bare(sources[_COLUMNS])) if len(f)]
    return pd.concat(parts, ignore_index=True)


def _sum(group: I8, values: F8, n: int) -> F8:
    """Sum of values by group; floats even where there are none."""
    return np.bincount(group, values, n).astype(np.float64)


def _position(rows: pd.DataFrame, group: I8, n: int, floor_arcsec: float) -> dict[str, F8]:
    east, north, _ = position_variance(rows)
    weight = 1.0 / (0.5 * (east + north) + floor_arcsec**2)
    vectors = unit_vectors(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    x, y, z = (_sum(group, weight * v, n) for v in vectors.T)
    total = _sum(group, weight, n)
    errors = {
        name: np.sqrt(_sum(group, weight**2 * variance, n)) / total / 3600.0
        for name, variance in (("raErr", east), ("decErr", north))
    }
    ra = np.degrees(np.arctan2(y, x)) % 360.0
    # A tiny negative angle comes out of the modulo as 360 itself.
    return {"ra": np.where(ra >= 360.0, 0.0, ra), "dec": np.degrees(np.arctan2(z, np.hypot(x, y))), **errors}


def _band(fluxes: dict[str, F8], group: I8, n: int, band: str) -> dict[str, NDArray[np.generic]]:
    f, e, g = _good(fluxes, group, "psfFlux")
    count = np.bincount(g, minlength=n)
    mean, mean_error = _weighted_mean(f, e, g, n)
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, g, f)
    np.maximum.at(high, g, f)
    with np.errstate(invalid="ignore", divide="ignore"):
        plain = _sum(g, f, n) / count
        sigma = np.sqrt(_sum(g, (f - plain[g]) ** 2, n) / np.where(count > 1, count - 1, np.nan))
        error_mean = _sum(g, e, n) / count
    p = f"{band}_psfFlux"
    science = _weighted_mean(*_good(fluxes, group, "scienceFlux"), n)
    return {
        f"{p}Mean": mean,
        f"{p}MeanErr": mean_error,
        f"{p}Sigma": sigma,
        f"{p}Ndata": count,
        f"{p}Min": np.where(count > 0, low, np.nan),
        f"{p}Max": np.where(count > 0, high, np.nan),
        f"{p}ErrMean": error_mean,
        f"{band}_scienceFluxMean": science[0],
        f"{band}_scienceFluxMeanErr": science[1],
    }


def _good(fluxes: dict[str, F8], group: I8, name: str) -> tuple[F8, F8, I8]:
    flux, error = fluxes[name], fluxes[name + "Err"]
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    return flux[good], error[good], group[good]


def _weighted_mean(flux: F8, error: F8, group: I8, n: int) -> tuple[F8, F8]:
    weight = 1.0 / error**2
    total = _sum(group, weight, n)
    total[total == 0] = np.nan
    return _sum(group, weight * flux, n) / total, 1.0 / np.sqrt(total)


def _times(sources: pd.DataFrame, own: I8, known: pd.DataFrame, ids: I8) -> dict[str, NDArray[np.generic]]:
    times = sources["midpointMjdTai"].to_numpy()
    first, last = np.full(len(ids), np.inf), np.full(len(ids), -np.inf)
    np.minimum.at(first, own, times)
    np.maximum.at(last, own, times)
    names = ["validityStartMjdTai", "firstDiaSourceMjdTai", "lastDiaSourceMjdTai", "nDiaSources"]
    before = schema.bare(known[["diaObjectId", *names]]).set_index("diaObjectId").reindex(ids)
    start, previous_first, previous_last = (before[c].to_numpy(np.float64) for c in names[:3])
    count = np.bincount(own, minlength=len(ids)) + before["nDiaSources"].fillna(0).to_numpy(np.int64)
    return {
        "validityStartMjdTai": np.fmax(last, start + _TICK_D),
        "firstDiaSourceMjdTai": np.fmin(first, previous_first),
        "lastDiaSourceMjdTai": np.fmax(last, previous_last),
        "nDiaSources": count,
    }
