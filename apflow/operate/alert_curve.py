"""The light curve of an alert: what its packet says of the object's past."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Colours of bands as Rubin publishes them for white grounds (RTN-045).
BAND_COLOURS = {"u": "#1600EA", "g": "#31A21F", "r": "#B52626", "i": "#370201", "z": "#BA52FF", "y": "#61A2B3"}
OTHER_COLOUR = "#555555"


@dataclass(frozen=True, eq=False)
class Curve:
    """Difference fluxes of an object.

    Attributes
    ----------
    days : `numpy.ndarray`
        Time relative to the alert's DiaSource; its own is 0.
    flux, error : `numpy.ndarray`
        psfFlux and psfFluxErr, nJy; an unknown error is NaN.
    band : `list` [`str`]
    forced : `numpy.ndarray` of `bool`
        Forced photometry at the object's place, not a detection.
    """

    days: NDArray[np.float64]
    flux: NDArray[np.float64]
    error: NDArray[np.float64]
    band: list[str]
    forced: NDArray[np.bool_]

    @property
    def bands(self) -> list[str]:
        """Bands, bluest first."""
        order = list(BAND_COLOURS)
        return sorted(set(self.band), key=lambda b: (order.index(b) if b in order else len(order), b))


def light_curve(alert: Mapping[str, Any]) -> Curve:
    """All fluxes of an alert that are known, in order of time; the alert's own comes last of its time."""
    now = alert["diaSource"]["midpointMjdTai"]
    rows = [(row, True) for row in alert.get("prvDiaForcedSources") or ()]
    rows += [(row, False) for row in alert.get("prvDiaSources") or ()]
    rows += [(alert["diaSource"], False)]
    known = [(row, forced) for row, forced in rows if row["psfFlux"] is not None and math.isfinite(row["psfFlux"])]
    known.sort(key=lambda pair: pair[0]["midpointMjdTai"])
    return Curve(
        np.array([row["midpointMjdTai"] - now for row, _ in known], float),
        np.array([row["psfFlux"] for row, _ in known], float),
        np.array([np.nan if row["psfFluxErr"] is None else row["psfFluxErr"] for row, _ in known], float),
        [row["band"] or "?" for row, _ in known],
        np.array([forced for _, forced in known], bool),
    )


def time_unit(days: NDArray[np.float64]) -> tuple[str, float]:
    """The unit in which these times are best told, and how many of it are a day."""
    reach = float(np.abs(days).max(initial=0.0))
    return next(((name, n) for name, n in (("days", 1.0), ("hours", 24.0)) if reach * n > 2), ("minutes", 1440.0))


def span(values: NDArray[np.float64], least: float) -> tuple[float, float]:
    """Limits of an axis: all the values with a margin, at least so wide."""
    if not len(values):
        return -least, least
    low, high = float(values.min()), float(values.max())
    margin = max(0.08 * (high - low), (least - (high - low)) / 2)
    return low - margin, high + margin


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers within an interval."""
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 5, 10) if size * k >= raw)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """Labels of ticks, as short as their step allows."""
    step = values[1] - values[0] if len(values) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{v + 0.0:,.{digits}f}" for v in values]
