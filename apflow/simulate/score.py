"""How well a run found what was truly there."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apflow.model.sky import project

F8 = NDArray[np.float64]

MATCH_RADIUS_ARCSEC = 1.0
SNR_CUT = 6.0
BRIGHT_SNR = 20.0
SNR_BINS = (5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, np.inf)
#: Longer trails are no point sources: their flux and position are left out of the errors.
_POINT_ARCSEC = 0.3
#: An isolated change has no other within this distance.
_ISOLATED_ARCSEC = 5.0


def score(truth: pd.DataFrame, diasources: pd.DataFrame, expected: Iterable[tuple[int, int]]) -> dict[str, object]:
    """Compare DiaSources with the truth.

    Parameters
    ----------
    truth : `pandas.DataFrame`
        Columns of `apflow.simulate.truth.truth_table`.
    diasources : `pandas.DataFrame`
        visit, detector, ra, dec (degrees), snr, psfFlux (nJy), as apdb.yaml spells them.
    expected : iterable of `tuple` [`int`, `int`]
        Every (visit, detector) that should have been processed; those that
        failed count as having found nothing.

    Returns
    -------
    score : `dict`
        completeness_snr6
            Share of true changes on good pixels with a predicted S/N above 6
            that have a DiaSource within 1". A trail is found by a source
            within 1" of the line it drew; it counts like any other change.
        purity
            Share of DiaSources with S/N above 6 within 1" of a true change of
            any kind, brightness and pixel quality (of the line, for trails).
        flux_bias
            Median of measured over true flux, less 1, at S/N above 20.
        zeropoint_bias_mag
            Median of -2.5 log10(measured / true flux), isolated, S/N above 20.
        astrometric_scatter_arcsec
            1.4826 times the median absolute deviation of the offsets of an
            axis, both axes pooled, S/N above 20.
        by_snr
            For each bin of S/N its low and high edge, completeness by
            predicted and purity by measured S/N, and the numbers behind them.
        n_true, n_sources
            Numbers behind completeness_snr6 and purity.

        A figure without data is NaN. Flux and position errors leave out trails.
    """
    keys = set(expected)
    truth = truth[_among(truth, keys)].reset_index(drop=True)
    sources = diasources[_among(diasources, keys)].reset_index(drop=True)
    found, real, pairs = _match(truth, sources)
    counted = truth["good"].to_numpy(bool)
    snr_true, snr_seen = truth["snr"].to_numpy(float), np.abs(sources["snr"].to_numpy(float))
    above, seen = counted & (snr_true > SNR_CUT), snr_seen > SNR_CUT
    return {
        "completeness_snr6": _share(found[above]),
        "purity": _share(real[seen]),
        **_errors(truth, sources, pairs),
        "n_true": int(above.sum()),
        "n_sources": int(seen.sum()),
        "by_snr": [
            {
                "snr_low": low,
                "snr_high": high,
                "completeness": _share(found[counted & (snr_true > low) & (snr_true <= high)]),
                "n_true": int((counted & (snr_true > low) & (snr_true <= high)).sum()),
                "purity": _share(real[(snr_seen > low) & (snr_seen <= high)]),
                "n_sources": int(((snr_seen > low) & (snr_seen <= high)).sum()),
            }
            for low, high in itertools.pairwise(SNR_BINS)
        ],
    }


def _among(table: pd.DataFrame, keys: set[tuple[int, int]]) -> NDArray[np.bool_]:
    pairs = zip(table["visit"].to_numpy(), table["detector"].to_numpy(), strict=True)
    return np.array([(int(v), int(d)) in keys for v, d in pairs], bool)


def _share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")


def _match(
    truth: pd.DataFrame, sources: pd.DataFrame
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Which changes were found, which sources are real, and pairs (truth row, source row) of nearest points."""
    found, real = np.zeros(len(truth), bool), np.zeros(len(sources), bool)
    pairs: list[NDArray[np.int64]] = []
    rows_of = sources.groupby(["visit", "detector"]).indices
    for key, t in truth.groupby(["visit", "detector"]).indices.items():
        if key not in rows_of:
            continue
        s = np.asarray(rows_of[key])
        here, seen = truth.iloc[t], sources.iloc[s]
        centre = float(here["ra"].iloc[0]), float(here["dec"].iloc[0])
        places = np.stack(project(seen["ra"].to_numpy(float), seen["dec"].to_numpy(float), *centre), -1) * 3600.0
        lines, which = _lines(here, centre)
        finite = np.isfinite(places).all(-1)
        if not finite.any():
            continue
        s, places = s[finite], places[finite]
        distance, nearest = cKDTree(places).query(lines, distance_upper_bound=MATCH_RADIUS_ARCSEC)
        hit = np.isfinite(distance)
        found[t[which[hit]]] = True
        near, _ = cKDTree(lines).query(places, distance_upper_bound=MATCH_RADIUS_ARCSEC)
        real[s[np.isfinite(near)]] = True
        point = hit & (here["trail_length_arcsec"].to_numpy()[which] <= _POINT_ARCSEC)
        pairs.append(np.stack([t[which[point]], s[nearest[point]]], -1))
    return found, real, np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)


def _lines(truth: pd.DataFrame, centre: tuple[float, float]) -> tuple[F8, NDArray[np.int64]]:
    """Points (n, 2) along every change, arcsec about `centre`, and the row that each belongs to."""
    places = np.stack(project(truth["ra"].to_numpy(), truth["dec"].to_numpy(), *centre), -1) * 3600.0
    length, angle = truth["trail_length_arcsec"].to_numpy(), np.radians(truth["trail_angle_deg"].to_numpy())
    n = 2 * np.ceil(length / 0.2).astype(int) + 1
    n[length <= _POINT_ARCSEC] = 1
    which = np.repeat(np.arange(len(truth)), n)
    step = np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n) - (n[which] - 1) / 2
    along = step / np.maximum(n[which] - 1, 1) * length[which]
    return places[which] + along[:, None] * np.stack([np.sin(angle), np.cos(angle)], -1)[which], which


def _errors(truth: pd.DataFrame, sources: pd.DataFrame, pairs: NDArray[np.int64]) -> dict[str, object]:
    """Flux and position errors of bright matches on good pixels."""
    bright = (truth["snr"].to_numpy() > BRIGHT_SNR) & truth["good"].to_numpy(bool)
    pairs = pairs[bright[pairs[:, 0]]]
    t, s = truth.iloc[pairs[:, 0]], sources.iloc[pairs[:, 1]]
    ratio = s["psfFlux"].to_numpy(float) / t["flux_njy"].to_numpy()
    alone = _isolated(truth)[pairs[:, 0]] & (ratio > 0)
    east = (s["ra"].to_numpy() - t["ra"].to_numpy() + 180.0) % 360.0 - 180.0
    offsets = 3600.0 * np.stack(
        [east * np.cos(np.radians(t["dec"].to_numpy())), s["dec"].to_numpy() - t["dec"].to_numpy()]
    )
    return {
        "flux_bias": _median(ratio - 1),
        "zeropoint_bias_mag": _median(-2.5 * np.log10(ratio[alone])),
        "astrometric_scatter_arcsec": 1.4826 * _median(np.abs(offsets - _medians(offsets))),
        "astrometric_bias_arcsec": float(np.hypot(*_medians(offsets)[:, 0])),
        "n_bright": len(pairs),
    }


def _isolated(truth: pd.DataFrame) -> NDArray[np.bool_]:
    alone = np.ones(len(truth), bool)
    for rows in truth.groupby(["visit", "detector"]).indices.values():
        here = truth.iloc[rows]
        centre = float(here["ra"].iloc[0]), float(here["dec"].iloc[0])
        places = np.stack(project(here["ra"].to_numpy(), here["dec"].to_numpy(), *centre), -1) * 3600.0
        if len(rows) > 1:
            alone[rows] = cKDTree(places).query(places, k=2)[0][:, 1] > _ISOLATED_ARCSEC
    return alone


def _median(values: F8) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")


def _medians(offsets: F8) -> F8:
    """Median of each row (n, 1)."""
    return np.array([[_median(row)] for row in offsets])
