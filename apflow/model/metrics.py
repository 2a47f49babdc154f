"""Metrics: names with units and descriptions, and the measurements of one dataset."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number that is measured again and again.

    Attributes
    ----------
    name : `str`
        Lower case with underscores, its unit last (``psf_fwhm_arcsec``).
    unit : `str`
        As astropy spells it; empty for a pure number.
    description : `str`
        One line.
    """

    name: str
    unit: str
    description: str


@dataclass(frozen=True)
class Measurement:
    """The metrics of one action on one dataset: one point in time.

    Attributes
    ----------
    action : `str`
        What measured, such as ``calibrate``; a topic of Sasquatch.
    values : mapping of `str` to `float` or `None`
        All metrics of the action, None where there is none: the list never shrinks.
    identifiers : mapping of `str` to `str` or `int`
        The data id: instrument, visit or exposure, detector, band ...
    mjd_mid_tai : `float`
        Midpoint of the exposure, MJD TAI.
    """

    action: str
    values: Mapping[str, float | None]
    identifiers: Mapping[str, str | int]
    mjd_mid_tai: float


def complete(metrics: Iterable[Metric], values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Values of all `metrics` in their order; None for what is missing or not finite, never 0."""
    found = {metric.name: values.get(metric.name) for metric in metrics}
    return {name: float(v) if v is not None and math.isfinite(v) else None for name, v in found.items()}
