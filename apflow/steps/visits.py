"""The beginning and the end of a visit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from apflow.config import Config
from apflow.graph import node
from apflow.io.butler import Repository, output_run
from apflow.io.ppdb import open_ppdb
from apflow.model.camera import load_camera
from apflow.model.ledger import Failure, Outcome, State
from apflow.model.products import Plan
from apflow.model.region import Region
from apflow.model.visit import Visit


@node(gather=True)
def open_visit(visit: Visit, detectors: Sequence[int], config: Config) -> Plan:
    """Resolve the inputs of all detectors at once and announce them to the ledger.

    One query set a visit: 189 workers that each asked the registry would cost
    several core-seconds.
    """
    camera = load_camera(config.camera, config.size)
    if visit.physical_filter:
        camera.filter(visit.physical_filter)
    regions = {d: detector_region(visit, d, config) for d in detectors}
    timing = config.timing
    open_ppdb(config.ppdb_url).openVisit(visit, regions, time.time() + timing.image_timeout_s + timing.order_timeout_s)
    return resolve_inputs(visit, detectors, config)


def resolve_inputs(visit: Visit, detectors: Sequence[int], config: Config) -> Plan:
    """The inputs of all detectors, by the registry."""
    camera = load_camera(config.camera, config.size)
    if visit.physical_filter:
        camera.filter(visit.physical_filter)
    inputs = Repository.open(config.butler).find_inputs(visit, detectors, camera)
    return Plan(visit, output_run(visit, config), inputs)


@node
def detector_region(visit: Visit, detector: int, config: Config) -> Region:
    """Sky region of a detector, from the boresight and the CCD (DMTN-092 section 5)."""
    camera = load_camera(config.camera, config.size)
    return camera.region(camera.detector(detector), visit.ra_deg, visit.dec_deg, visit.rotation_deg)


@node(gather=True)
def visit_report(
    visit: Visit,
    detectors: Sequence[int],
    outcomes: Sequence[tuple[Outcome, ...] | Failure],
    registered: Sequence[int | Failure],
    config: Config,
) -> tuple[Outcome, ...]:
    """One terminal state for every detector, settled in the ledger.

    A batch whose gather failed leaves its detectors without an outcome: they
    end as failed with the gather's cause. That files or metrics could not be
    registered is noted in the cause of every detector of the visit, which
    stays done: its alerts are out.
    """
    report = ends_of(visit, detectors, outcomes)
    failed = {one.step: one.cause for one in registered if isinstance(one, Failure)}
    note = "; ".join(f"not everything of this visit is in the Butler: {step}: {why}" for step, why in failed.items())
    report = [dataclasses.replace(o, cause=o.cause or note) for o in report]
    open_ppdb(config.ppdb_url).settle(report)
    return tuple(report)


def ends_of(visit: Visit, detectors: Sequence[int], outcomes: Sequence[tuple[Outcome, ...] | Failure]) -> list[Outcome]:
    """One terminal state for every detector, from what the batches say of theirs."""
    ended = {o.detector: o for batch in outcomes if not isinstance(batch, Failure) for o in batch}
    broken = [batch for batch in outcomes if isinstance(batch, Failure)]
    step, cause = (broken[0].step, broken[0].cause) if broken else ("visit_report", "no batch reported this detector")
    return [ended.get(d) or Outcome(visit.instrument, visit.visit, d, State.FAILED, cause, step) for d in detectors]
