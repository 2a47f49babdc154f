"""Reliability: how likely a DiaSource is to be real, from the pixels about it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure
from apflow.model.products import Difference
from apflow.model.reliability import Model
from apflow.pixels.stamp_features import NAMES, features

F4 = NDArray[np.float32]


def reliability(difference: Difference, science: Exposure, sources: pd.DataFrame, model: Model) -> F4:
    """Probability of each DiaSource to be real: a point source that came, went, changed or moved.

    Each source is judged by its own pixels alone: the score does not depend
    on the other rows. The model that comes with apflow knows trails up to
    1.5 FWHM as real; longer ones look to it like pieces of a satellite's streak.

    Parameters
    ----------
    difference : `Difference`
    science : `Exposure`
        On the same grid.
    sources : `pandas.DataFrame`
        x, y (pixels), snr and isNegative, as `apflow.pixels.measure.measure` gives them.
    model : `Model`

    Returns
    -------
    reliability : `numpy.ndarray`, (n,), float32
        0 to 1; 0 for a source without a usable pixel.

    Raises
    ------
    DataError
        The difference has no PSF, or the model asks for a feature that is unknown.
    """
    unknown = [name for name in model.names if name not in NAMES]
    if unknown:
        raise DataError(
            f"reliability model {model.version!r} asks for the feature {unknown[0]!r}; accepted: {', '.join(NAMES)}"
        )
    rows = features(difference, science, sources)
    nothing = np.isnan(rows).all(1)
    chosen = rows[:, [NAMES.index(name) for name in model.names]]
    score = 1 / (1 + np.exp(-(model.slope * votes(chosen, model) + model.offset)))
    return np.where(nothing, 0.0, score).astype(np.float32)


def votes(rows: F4, model: Model) -> NDArray[np.float64]:
    """Sum of what all trees of a model say about features (n, nfeatures) in the model's order."""
    return np.asarray(_votes(np.ascontiguousarray(rows), model.feature, model.threshold, model.leaf))


@njit(cache=True, nogil=True)
def _votes(rows, feature, threshold, leaf):  # type: ignore[no-untyped-def]
    """Sum of what all trees say about each row (n, nfeatures)."""
    out = np.zeros(rows.shape[0])
    nodes = feature.shape[1]
    for i in range(rows.shape[0]):
        total = 0.0
        for t in range(feature.shape[0]):
            node = 0
            while node < nodes:
                node = 2 * node + (2 if rows[i, feature[t, node]] > threshold[t, node] else 1)
            total += leaf[t, node - nodes]
        out[i] = total
    return out
