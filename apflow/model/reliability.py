"""The model that tells real DiaSources from bogus ones: a forest of boosted decision trees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apflow.errors import DataError

#: Most characters of reliabilityVersion in apdb.yaml.
VERSION_LENGTH = 7


@dataclass(frozen=True, eq=False)
class Model:
    """Trees of one depth d that each ask d questions and whose answers are added up (Friedman 2001).

    Node i of a tree is followed by 2 i + 1 where its feature is at most its
    threshold or not a number, else by 2 i + 2. The probability that a source
    is real is 1 / (1 + exp(-(slope * sum + offset))).

    Attributes
    ----------
    version : `str`
        What DiaSources get as reliabilityVersion: 1 to 7 characters.
    names : `tuple` [`str`, ...]
        Features by which it judges, in this order.
    feature : `numpy.ndarray`, (ntrees, 2**d - 1), int16
        Index of each node's feature.
    threshold : `numpy.ndarray`, (ntrees, 2**d - 1), float32
    leaf : `numpy.ndarray`, (ntrees, 2**d), float32
        What each end of a tree adds.
    slope, offset : `float`
        Calibration of the sum, so that the result is a probability (Platt 1999).

    Raises
    ------
    DataError
        The version is too long, or the arrays do not fit together.
    """

    version: str
    names: tuple[str, ...]
    feature: NDArray[np.int16]
    threshold: NDArray[np.float32]
    leaf: NDArray[np.float32]
    slope: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.version) <= VERSION_LENGTH:
            raise DataError(f"version of a reliability model is {self.version!r}; accepted: 1 to 7 characters")
        ntrees, nleaves = self.leaf.shape
        nodes = (ntrees, nleaves - 1)
        if nleaves & (nleaves - 1) or self.feature.shape != nodes or self.threshold.shape != nodes:
            raise DataError(
                f"reliability model {self.version!r}: features of shape {self.feature.shape}, thresholds of shape "
                f"{self.threshold.shape} and leaves of shape {self.leaf.shape} make no trees; accepted: "
                "(n, 2^d - 1), (n, 2^d - 1) and (n, 2^d)"
            )
        used = self.feature
        if used.size and not (used.min() >= 0 and used.max() < len(self.names)):
            raise DataError(f"reliability model {self.version!r} uses features that its {len(self.names)} names lack")
        if not (np.isfinite(self.leaf).all() and np.isfinite([self.slope, self.offset]).all()):
            raise DataError(f"reliability model {self.version!r} has values that are no finite numbers")
