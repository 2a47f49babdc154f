"""What is measured, and what was: the catalogues of metrics, and the values that a repository holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apflow.config import Config
from apflow.errors import BadRequest, DataError
from apflow.io.butler import Repository
from apflow.io.butler.paths import checks_chain, prompt_chain
from apflow.model.ap_metrics import DELIVERY, STAGES, VISIT
from apflow.model.calibration_bundle import EXPOSURE, EXPOSURE_ACTION, catalogue
from apflow.model.calibration_metrics import AMPLIFIER, AMPLIFIER_ACTION, default_ranges
from apflow.model.camera import load_camera
from apflow.model.ids import parse_image_name
from apflow.model.metrics import Metric
from apflow.model.verdict import Range, Verdict
from apflow.model.verdict import load_ranges as load_calibration_ranges
from apflow.operate.night.ranges import PLAIN, Ranges, load_ranges

if TYPE_CHECKING:
    from lsst.daf.butler import DatasetRef

#: Dataset types with metrics, by the dimension that numbers them; True: of one detector each.
_KINDS = {
    "ap_metrics": ("visit", True),
    "ap_delivery_metrics": ("visit", True),
    "ap_visit_metrics": ("visit", False),
    "calibration_metrics": ("exposure", True),
    "calibration_exposure_metrics": ("exposure", False),
}


@dataclass(frozen=True)
class Value:
    """A metric of a visit or exposure, or of one of its detectors, with what it means to whoever is on duty."""

    detector: int | None
    action: str
    metric: str
    value: float | None
    unit: str
    verdict: Verdict | None


def all_metrics() -> dict[str, tuple[Metric, ...]]:
    """Every metric by action; those of amplifiers have ``<amplifier>`` in their names."""
    calibration = dict(catalogue(load_camera("comcam")))  # but for amplifiers all cameras have the same
    calibration[AMPLIFIER_ACTION] = tuple(replace(m, name=f"{m.name}_<amplifier>") for m in AMPLIFIER)
    return {**STAGES, **DELIVERY, **VISIT, **calibration, EXPOSURE_ACTION: EXPOSURE}


def metrics_of(action: str) -> dict[str, tuple[Metric, ...]]:
    """The metrics of an action, or of all where it is empty.

    Raises
    ------
    BadRequest
        There is no such action.
    """
    every = all_metrics()
    if action and action not in every:
        raise BadRequest(f"action {action!r} is unknown; accepted: {', '.join(every)}")
    return {action: every[action]} if action else every


def measured(config: Config, name: str, detector: str = "", action: str = "") -> list[Value]:
    """Metrics that a repository holds of a visit or of a calibration exposure, by its newest run.

    Parameters
    ----------
    config : `Config`
    name : `str`
        Number of the visit or exposure, or name of its image.
    detector : `str`
        Name or id of a CCD; empty for what is known of the whole, or with
        `action` for all detectors.
    action : `str`
        Only this action.

    Raises
    ------
    BadRequest
        A name is not acceptable, or nothing is known of it.
    """
    metrics_of(action)
    number = int(name) if name.isdigit() else parse_image_name(name).exposure
    ranges = _ranges_of(config)
    found: list[Value] = []
    with Repository(config.butler) as repository:
        wanted = repository.camera.detector(detector).id if detector else None
        for kind, (dimension, single) in _KINDS.items():
            if single or wanted is None:
                for ref in _refs(
                    repository, kind, {dimension: number} | ({} if wanted is None else {"detector": wanted})
                ):
                    found += _values(ref, repository.butler.getURI(ref).ospath, ranges)
    shown = [v for v in found if v.action == action or (not action and (v.detector is None) == (not detector))]
    if not shown:
        what = " ".join(part for part in (name, detector and f"detector {detector}", action) if part)
        raise BadRequest(f"no metrics of {what} in {config.butler}; accepted: visits and exposures that were processed")
    return shown


def _refs(repository: Repository, kind: str, data_id: Mapping[str, int]) -> list[DatasetRef]:
    from lsst.daf.butler import MissingCollectionError, MissingDatasetTypeError

    chain = checks_chain if kind.startswith("calibration") else prompt_chain
    key = {"instrument": repository.instrument, **data_id}
    try:
        refs = repository.butler.query_datasets(
            kind,
            chain(repository.instrument),
            find_first=True,
            data_id=key,
            with_dimension_records=True,
            limit=None,
            explain=False,
        )
    except (MissingDatasetTypeError, MissingCollectionError):  # nothing of the kind was ever kept here
        return []
    return sorted(refs, key=lambda ref: int(ref.dataId.get("detector", 0)))


def _values(ref: DatasetRef, path: str, ranges: tuple[Mapping[str, Mapping[str, Range]], Ranges]) -> Iterator[Value]:
    try:
        tree: dict[str, Any] = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a MetricMeasurementBundle: {error}") from error
    detector = int(ref.dataId["detector"]) if "detector" in ref.dimensions else None
    band = str(ref.dataId.get("band", ""))
    for action, measurements in tree.items():
        if action.startswith("__"):
            continue
        limits = ranges[0].get(action, {})
        for m in measurements:
            # The ranges of amplifiers are those of all of them: read_noise_ratio for read_noise_ratio_C03.
            limit = limits.get(m["metric"]) or limits.get(m["metric"].rpartition("_")[0])
            limit = ranges[1].limits(m["metric"], band) if action in PLAIN else limit
            verdict = limit.verdict(m["value"]) if limit and m["value"] is not None else None
            yield Value(detector, action, m["metric"], m["value"], m["unit"], verdict)


def _ranges_of(config: Config) -> tuple[Mapping[str, Mapping[str, Range]], Ranges]:
    """Ranges of calibrations by action and metric, and those of alert production."""
    own = load_calibration_ranges(config.calibration.ranges) if config.calibration.ranges else {}
    return default_ranges() | own, load_ranges(config.night.ranges)
