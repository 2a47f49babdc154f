"""Metrics as JSON in the form of Rubin's MetricMeasurementBundle (lsst.analysis.tools)."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from astropy.time import Time

from apflow.errors import DataError
from apflow.io.atomic import atomic
from apflow.model.metrics import Metric, complete

#: What each action measures.
Catalogue = Mapping[str, Iterable[Metric]]
#: Values by action and metric.
Values = Mapping[str, Mapping[str, float | None]]
DataId = Mapping[str, str | int]


def bundle(catalogue: Catalogue, values: Values, data_id: DataId, mjd_mid_tai: float) -> str:
    """Metrics of one dataset as JSON.

    Parameters
    ----------
    catalogue : mapping of `str` to iterable of `Metric`
        All metrics of each action. An action is what measured; in Sasquatch it is a topic.
    values : mapping of `str` to mapping
        Values by name by action. What is missing or not finite becomes null,
        and stays listed: a topic's columns never change with the data. What
        the catalogue does not have is left out.
    data_id : mapping
        Instrument, visit or exposure, detector...: what makes the identifiers,
        so that a run repeated gives the same ones.
    mjd_mid_tai : `float`
        Midpoint of the exposure, MJD TAI: the time of the point in Sasquatch.
    """
    where = ",".join(f"{key}={data_id[key]}" for key in sorted(data_id))
    actions = {action: _measurements(action, metrics, values, where) for action, metrics in catalogue.items()}
    tail = {
        "__reference_package": "apflow",
        "__timestamp_version": explicit_timestamp(mjd_mid_tai),
        "__dataset_identifier": "prompt",
        "__metricNamePrefix": "",
    }
    return json.dumps(actions | tail, allow_nan=False)


def _measurements(action: str, metrics: Iterable[Metric], values: Values, where: str) -> Any:
    metrics = tuple(metrics)
    found = complete(metrics, values.get(action, {}))
    return [
        {
            "metric": metric.name,
            "identifier": hashlib.md5(f"{action}.{metric.name}:{where}".encode(), usedforsecurity=False).hexdigest(),
            "value": found[metric.name],
            "unit": metric.unit,
            "blob_refs": [],
        }
        for metric in metrics
    ]


@functools.lru_cache(maxsize=64)
def explicit_timestamp(mjd_tai: float) -> str:
    """A time as lsst.analysis.tools reads it of a bundle: UTC in whole seconds and without colons."""
    return "explicit_timestamp:" + str(Time(mjd_tai, format="mjd", scale="tai").utc.strftime("%Y%m%dT%H%M%S+0000"))


def write_bundle(path: str | Path, catalogue: Catalogue, values: Values, data_id: DataId, mjd_mid_tai: float) -> None:
    """Write a `bundle` to a file."""
    with atomic(path) as file:
        file.write(bundle(catalogue, values, data_id, mjd_mid_tai).encode())


def read_bundle(path: str | Path) -> dict[str, dict[str, float | None]]:
    """Values by name, by action.

    Raises
    ------
    DataError
        The file is missing or not a bundle.
    """
    try:
        return values_of(json.loads(Path(path).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a MetricMeasurementBundle: {type(error).__name__}: {error}") from error


def values_of(tree: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Values by name, by action, of a bundle as the Butler gives it."""
    actions = {key: value for key, value in tree.items() if not key.startswith("__")}
    return {action: {m["metric"]: m["value"] for m in measurements} for action, measurements in actions.items()}
