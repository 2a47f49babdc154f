"""Metrics as JSON in the form of Rubin's MetricMeasurementBundle (lsst.analysis.tools)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apflow.errors import DataError
from apflow.io.atomic import atomic


def bundle(
    action: str,
    metrics: Mapping[str, float | None],
    units: Mapping[str, str],
    data_id: Mapping[str, str | int],
    timestamp: str = "dataset_timestamp",
) -> str:
    """Metrics of one dataset as JSON.

    Parameters
    ----------
    action : `str`
        Under which name the measurements stand: one topic of Sasquatch.
    metrics : mapping of `str` to `float` or `None`
        Values by name. What is not finite becomes null, and stays listed: a
        topic's columns never change with the data.
    units : mapping of `str` to `str`
        Units as astropy spells them; a metric without one is a pure number.
    data_id : mapping
        Instrument, visit, detector...: what makes the identifiers, so that a
        run repeated gives the same ones.
    timestamp : `str`
        How Sasquatch finds the time of the point; ``explicit_timestamp:<ISO time>`` gives it.
    """
    where = ",".join(f"{key}={data_id[key]}" for key in sorted(data_id))
    measurements: list[dict[str, Any]] = [
        {
            "metric": name,
            "identifier": hashlib.md5(f"{action}.{name}:{where}".encode(), usedforsecurity=False).hexdigest(),
            "value": float(value) if value is not None and math.isfinite(value) else None,
            "unit": units.get(name, ""),
            "blob_refs": [],
        }
        for name, value in metrics.items()
    ]
    return json.dumps(
        {
            action: measurements,
            "__reference_package": "apflow",
            "__timestamp_version": timestamp,
            "__dataset_identifier": "prompt",
            "__metricNamePrefix": "",
        },
        allow_nan=False,
    )


def write_bundle(
    path: str | Path,
    action: str,
    metrics: Mapping[str, float | None],
    units: Mapping[str, str],
    data_id: Mapping[str, str | int],
    timestamp: str = "dataset_timestamp",
) -> None:
    """Write a `bundle` to a file."""
    with atomic(path) as file:
        file.write(bundle(action, metrics, units, data_id, timestamp).encode())


def read_bundle(path: str | Path) -> dict[str, dict[str, float | None]]:
    """Values by name, by action.

    Raises
    ------
    DataError
        The file is missing or not a bundle.
    """
    try:
        tree = json.loads(Path(path).read_text())
        return {
            action: {m["metric"]: m["value"] for m in measurements} for action, measurements in _actions(tree).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a MetricMeasurementBundle: {type(error).__name__}: {error}") from error


def _actions(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if not key.startswith("__")}
