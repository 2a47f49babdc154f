"""DiaSources that hold the light of fakes, and which fakes were found.

A DiaSource with pixelFlags_injected is stored, and that is all: it has no
DiaObject and no SSObject, no alert, and no forced photometry. Nothing that is
read later as the history of an object can then hold a fake.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apflow.catalogs.positions import unit_vectors
from apflow.model.ap_metrics import INJECTION_SNR

Flags = NDArray[np.bool_]

#: A fake is found by a DiaSource this near.
MATCH_ARCSEC = 1.0


def is_injected(sources: pd.DataFrame) -> Flags:
    """Which DiaSources have pixels that the light of a fake touched."""
    return np.asarray(sources["pixelFlags_injected"].fillna(False).to_numpy(bool))


def found(injected: pd.DataFrame, sources: pd.DataFrame, radius_arcsec: float = MATCH_ARCSEC) -> Flags:
    """Which fakes have a DiaSource of positive flux, flagged as injected, within a radius.

    Parameters
    ----------
    injected : `pandas.DataFrame`
        ra, dec (degrees) of the fakes of one detector-visit.
    sources : `pandas.DataFrame`
        DiaSources of the same detector-visit.
    """
    ra, dec = (sources[c].to_numpy(float) for c in ("ra", "dec"))
    there = is_injected(sources) & np.isfinite(ra) & np.isfinite(dec)
    there &= ~sources["isNegative"].fillna(False).to_numpy(bool)
    if not there.any() or not len(injected):
        return np.zeros(len(injected), bool)
    tree = cKDTree(unit_vectors(ra[there], dec[there]))
    places = unit_vectors(injected["ra"].to_numpy(float), injected["dec"].to_numpy(float))
    chord = 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0)
    return np.asarray(np.isfinite(tree.query(places, distance_upper_bound=chord)[0]))


def injection_metrics(injected: pd.DataFrame, sources: pd.DataFrame) -> dict[str, float]:
    """How many fakes there were and were found, in all and by predicted S/N; those on good pixels count.

    Parameters
    ----------
    injected : `pandas.DataFrame`
        ra, dec, snr, good.
    sources : `pandas.DataFrame`
        DiaSources of the same detector-visit.
    """
    good, snr = injected["good"].to_numpy(bool), injected["snr"].to_numpy(float)
    hit = found(injected, sources) & good
    values = {"n_injected": float(good.sum()), "n_injected_found": float(hit.sum())}
    for low, high in itertools.pairwise((*INJECTION_SNR, np.inf)):
        inside = (snr > low) & (snr <= high)
        values[f"n_injected_snr{low}"] = float((good & inside).sum())
        values[f"n_injected_found_snr{low}"] = float((hit & inside).sum())
    return values
