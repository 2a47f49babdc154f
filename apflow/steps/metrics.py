"""Metrics when the alerts of a visit are out: to the Butler, and on their way to Sasquatch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from astropy.time import Time

from apflow.config import Config
from apflow.graph import node
from apflow.io.butler import Repository, output_path, output_run
from apflow.io.metrics import DataId, read_bundle, write_bundle
from apflow.io.sasquatch import send_later
from apflow.model.ap_metrics import DELIVERY, STAGES, VISIT, Values, by_stage, delivery, known_values, over_visit
from apflow.model.camera import load_camera
from apflow.model.ids import day_obs_of
from apflow.model.ledger import Failure, Outcome, State
from apflow.model.metrics import Measurement
from apflow.model.products import OutputFile
from apflow.model.visit import Visit
from apflow.steps.visits import ends_of

_STAGES, _DELIVERY, _VISIT = "ap_metrics", "ap_delivery_metrics", "ap_visit_metrics"


@node(gather=True, retries=2)
def dispatch_metrics(
    visit: Visit, detectors: Sequence[int], outcomes: Sequence[tuple[Outcome, ...] | Failure], config: Config
) -> int:
    """Keep the metrics of the delivery and of the visit, and hand all metrics to whoever sends them.

    Nothing here can delay an alert, since all are out, nor fail one: where
    this fails, `visit_report` makes a note of it. Sasquatch is served in the
    background. Returns how many datasets were registered.
    """
    return keep_metrics(visit, ends_of(visit, detectors, outcomes), config)


def keep_metrics(visit: Visit, outcomes: Sequence[Outcome], config: Config) -> int:
    """As `dispatch_metrics`, of detector-visits that came to an end.

    A detector that an earlier attempt brought to its alerts keeps its metrics.
    """
    repository = Repository.open(config.butler, writeable=True)
    record = repository.visits([visit.visit]).get(visit.visit)
    # Of a visit of which no image came nobody knows more than when that was found out.
    mid = _middle(record.timespan.begin, record.timespan.end) if record else float(Time.now().tai.mjd)
    names = _identifiers(visit, record.physical_filter if record else visit.physical_filter, config)
    run = output_run(visit, config)
    files: list[tuple[OutputFile, int, int | None]] = []
    points: list[Measurement] = []
    measured: dict[int, Values] = {}
    for outcome in outcomes:
        d, done = outcome.detector, outcome.state is State.DONE
        paths = {kind: output_path(config.butler, kind, visit, d, run) for kind in (_STAGES, _DELIVERY)}
        if not done and _is_done(paths[_DELIVERY]):
            continue
        own = outcome.metrics.get("mjd_mid_tai", math.nan)
        at = own if math.isfinite(own) else mid
        values = measured[d] = by_stage(outcome.metrics) | delivery(outcome)
        data_id: DataId = {"instrument": visit.instrument, "visit": visit.visit, "detector": d}
        write_bundle(paths[_DELIVERY], DELIVERY, values, data_id, at)
        if done:
            del paths[_STAGES]  # written and registered with the other outputs
        else:
            write_bundle(paths[_STAGES], STAGES, values, data_id, at)
        files += [(OutputFile(kind, path), visit.visit, d) for kind, path in paths.items()]
        points += _points(values, names | {"detector": d}, at)
    path = output_path(config.butler, _VISIT, visit, None, run)
    whole = _write_visit(path, visit, run, measured, mid, config)
    send_later([*points, *_points(whole, names, mid)], config)
    if record is None:
        return 0
    return repository.register_outputs(run, [*files, (OutputFile(_VISIT, path), visit.visit, None)])


def _middle(begin: Time, end: Time) -> float:
    return float(begin.tai.mjd + end.tai.mjd) / 2


def _identifiers(visit: Visit, physical_filter: str, config: Config) -> dict[str, str | int]:
    filters = {f.physical_filter: f.band for f in load_camera(config.camera, config.size).filters}
    return {
        "instrument": visit.instrument,
        "visit": visit.visit,
        "exposure": visit.visit,
        "group": visit.group,
        "day_obs": day_obs_of(visit.visit),
        "physical_filter": physical_filter,
        "band": filters.get(physical_filter, visit.band),
    }


def _points(values: Values, identifiers: Mapping[str, str | int], mjd_mid_tai: float) -> list[Measurement]:
    """Points of the actions that measured anything."""
    return [
        Measurement(action, found, identifiers, mjd_mid_tai)
        for action, found in values.items()
        if any(value is not None for value in found.values())
    ]


def _is_done(path: str) -> bool:
    return Path(path).is_file() and read_bundle(path)["delivery"]["is_done"] == 1.0


def _write_visit(
    path: str, visit: Visit, run: str, measured: Mapping[int, Values], mjd_mid_tai: float, config: Config
) -> Values:
    """Write the metrics of a visit: over the detectors given, and those that other runs of it left.

    Where each detector is a job of its own, jobs write this file at the same
    time. Each looks again after it wrote, so the last one to write has them all.
    """
    data_id: DataId = {"instrument": visit.instrument, "visit": visit.visit}
    while True:
        there = _left(visit, run, config)
        others = {d: _read(d, visit, run, config) for d in there if d not in measured}
        values = over_visit(known_values(v) for v in (*measured.values(), *others.values()))
        write_bundle(path, VISIT, values, data_id, mjd_mid_tai)
        if _left(visit, run, config) == there:
            return values


def _left(visit: Visit, run: str, config: Config) -> dict[int, int]:
    """Detectors of a visit with metrics, and when they were written."""
    one = Path(output_path(config.butler, _DELIVERY, visit, 0, run))
    found = one.parent.glob(f"{one.stem.removesuffix('000')}*{one.suffix}")
    return {int(path.stem.rpartition("_")[2]): path.stat().st_mtime_ns for path in found}


def _read(detector: int, visit: Visit, run: str, config: Config) -> Values:
    paths = [output_path(config.butler, kind, visit, detector, run) for kind in (_STAGES, _DELIVERY)]
    return {action: found for path in paths for action, found in read_bundle(path).items()}
