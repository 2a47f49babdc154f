"""How well a run found what was truly there, be it simulated or injected."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.simulate.scenario import NJY_MAG
from apflow.simulate.score_match import attributed, isolated, match
from apflow.simulate.score_statistics import half_point, interval, share

F8 = NDArray[np.float64]
Flags = NDArray[np.bool_]
Scores = dict[str, Any]

SNR_CUT = 6.0
BRIGHT_SNR = 20.0
SNR_BINS = (5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, np.inf)
#: Width of the bins of magnitude.
_MAG_BIN = 0.5
#: The half point is fitted to changes of this S/N: below, chance matches count; above, other losses.
_THRESHOLD_SNR = (2.0, 15.0)


def score(
    truth: pd.DataFrame,
    diasources: pd.DataFrame,
    expected: Iterable[tuple[int, int]],
    min_reliability: float = 0.0,
) -> Scores:
    """Compare DiaSources with the truth.

    Parameters
    ----------
    truth : `pandas.DataFrame`
        Columns of `apflow.simulate.truth.truth_table`.
    diasources : `pandas.DataFrame`
        visit, detector, ra, dec (degrees), snr, psfFlux (nJy), as apdb.yaml
        spells them; where they are there, reliability, ssObjectId and
        pixelFlags_injected count: a source with the light of a fake may find a
        true change, but is neither real nor false.
    expected : iterable of `tuple` [`int`, `int`]
        Every (visit, detector) that should have been processed; those that
        failed count as having found nothing.
    min_reliability : `float`
        DiaSources that are less reliable, or of unknown reliability, are left
        out; 0 takes all.

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
        snr50, mag50
            Predicted S/N and magnitude at which half of the changes are found.
        flux_bias
            Median of measured over true flux, less 1, at S/N above 20.
        zeropoint_bias_mag
            Median of -2.5 log10(measured / true flux), isolated, S/N above 20.
        zeropoint_bias_error_mag
            Its standard error, from the scatter; what the sources of a
            detector have in common makes it larger.
        astrometric_scatter_arcsec
            1.4826 times the median absolute deviation of the offsets of an
            axis, both axes pooled, S/N above 20.
        ss_attributed, n_ss_found, n_ss_wrong
            Of the predicted Solar System objects that were found the share
            that has its ssObjectId, their number, and how many DiaSources have
            an ssObjectId that is not theirs. Only with ssObjectId in both tables.
        by_snr, by_mag
            For each bin of S/N, or of magnitude, its low and high edge,
            completeness by predicted and purity by measured values with
            one-sigma limits (Wilson), and the numbers behind them.
        n_true, n_sources
            Numbers behind completeness_snr6 and purity.

        A figure without data is NaN. Flux and position errors leave out trails.
    """
    keys = set(expected)
    truth = truth[_among(truth, keys)].reset_index(drop=True)
    sources = diasources[_among(diasources, keys)]
    if min_reliability > 0:
        sources = sources[(sources["reliability"].fillna(-1.0) >= min_reliability).to_numpy(bool)]
    sources = sources.reset_index(drop=True)
    found, real, pairs = match(truth, sources)
    good, own = truth["good"].to_numpy(bool), ~_flag(sources, "pixelFlags_injected")
    snr_true, snr_seen = truth["snr"].to_numpy(float), np.abs(sources["snr"].to_numpy(float))
    mag_true, mag_seen = _mag(truth["flux_njy"]), _mag(sources["psfFlux"])
    above, seen = good & (snr_true > SNR_CUT), own & (snr_seen > SNR_CUT)
    fitted = good & (snr_true > _THRESHOLD_SNR[0]) & (snr_true < _THRESHOLD_SNR[1])
    faint = good & (snr_true > _THRESHOLD_SNR[0])
    return {
        "completeness_snr6": share(found[above]),
        "purity": share(real[seen]),
        "snr50": half_point(snr_true[fitted], found[fitted]),
        "mag50": -half_point(-mag_true[faint], found[faint]),
        **_errors(truth, sources, pairs[own[pairs[:, 1]]]),
        "n_true": int(above.sum()),
        "n_sources": int(seen.sum()),
        **_solar_system(truth, sources, found),
        "by_snr": _bins("snr", SNR_BINS, (snr_true[good], found[good]), (snr_seen[own], real[own])),
        "by_mag": _bins("mag", _mag_bins(mag_true[faint]), (mag_true[good], found[good]), (mag_seen[own], real[own])),
    }


def _among(table: pd.DataFrame, keys: set[tuple[int, int]]) -> Flags:
    pairs = zip(table["visit"].to_numpy(), table["detector"].to_numpy(), strict=True)
    return np.array([(int(v), int(d)) in keys for v, d in pairs], bool)


def _flag(table: pd.DataFrame, name: str) -> Flags:
    return np.asarray(table[name].fillna(False).to_numpy(bool)) if name in table else np.zeros(len(table), bool)


def _mag(flux_njy: pd.Series) -> F8:
    """AB magnitude of the size of fluxes."""
    with np.errstate(divide="ignore"):
        return np.asarray(NJY_MAG - 2.5 * np.log10(np.abs(flux_njy.to_numpy(float))))


def _mag_bins(mag: F8) -> list[float]:
    """Edges that hold all magnitudes."""
    mag = mag[np.isfinite(mag)]
    if not len(mag):
        return []
    low, high = np.floor(mag.min() / _MAG_BIN), np.floor(mag.max() / _MAG_BIN) + 1
    return [float(edge) * _MAG_BIN for edge in np.arange(low, high + 1)]


def _bins(name: str, edges: Sequence[float], true: tuple[F8, Flags], seen: tuple[F8, Flags]) -> list[Scores]:
    """Completeness and purity by bin; `true` and `seen` are values and whether they were found, or are real."""
    rows = []
    for low, high in itertools.pairwise(edges):
        row: Scores = {f"{name}_low": low, f"{name}_high": high}
        for what, count, (values, hits) in (("completeness", "n_true", true), ("purity", "n_sources", seen)):
            inside = hits[(values > low) & (values <= high)]
            lower, upper = interval(inside)
            row |= {what: share(inside), f"{what}_low": lower, f"{what}_high": upper, count: len(inside)}
        rows.append(row)
    return rows


def _errors(truth: pd.DataFrame, sources: pd.DataFrame, pairs: NDArray[np.int64]) -> Scores:
    """Flux and position errors of bright matches on good pixels."""
    bright = (truth["snr"].to_numpy() > BRIGHT_SNR) & truth["good"].to_numpy(bool)
    pairs = pairs[bright[pairs[:, 0]]]
    t, s = truth.iloc[pairs[:, 0]], sources.iloc[pairs[:, 1]]
    ratio = s["psfFlux"].to_numpy(float) / t["flux_njy"].to_numpy()
    alone = isolated(truth)[pairs[:, 0]] & (ratio > 0)
    delta_mag = -2.5 * np.log10(ratio[alone])
    east = (s["ra"].to_numpy() - t["ra"].to_numpy() + 180.0) % 360.0 - 180.0
    offsets = 3600.0 * np.stack(
        [east * np.cos(np.radians(t["dec"].to_numpy())), s["dec"].to_numpy() - t["dec"].to_numpy()]
    )
    return {
        "flux_bias": _median(ratio - 1),
        "zeropoint_bias_mag": _median(delta_mag),
        "zeropoint_bias_error_mag": _median_error(delta_mag),
        "astrometric_scatter_arcsec": 1.4826 * _median(np.abs(offsets - _medians(offsets))),
        "astrometric_bias_arcsec": float(np.hypot(*_medians(offsets)[:, 0])),
        "n_bright": len(pairs),
    }


def _solar_system(truth: pd.DataFrame, sources: pd.DataFrame, found: Flags) -> Scores:
    """How the predicted Solar System objects fared, where anybody predicted any."""
    if "ssObjectId" not in truth or "ssObjectId" not in sources:
        return {}
    right, wrong = attributed(truth, sources)
    there = found & (truth["ssObjectId"].fillna(0).to_numpy(np.int64) != 0)
    return {"ss_attributed": share(right[there]), "n_ss_found": int(there.sum()), "n_ss_wrong": int(wrong.sum())}


def _median(values: F8) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")


def _median_error(values: F8) -> float:
    """Standard error of the median of values with normal errors: sqrt(pi / 2) times that of the mean."""
    values = values[np.isfinite(values)]
    spread = 1.4826 * _median(np.abs(values - _median(values)))
    return float(np.sqrt(np.pi / 2) * spread / np.sqrt(values.size)) if values.size else float("nan")


def _medians(offsets: F8) -> F8:
    """Median of each row (n, 1)."""
    return np.array([[_median(row)] for row in offsets])
