"""Alert production: one visit from nextVisit to alerts (DMTN-092).

Read it top to bottom. Each line is a step of the same name in `apflow.steps`.
Call the functions with values and they run here and now; hand `visit` to a
runner and the same lines become a Dask graph (`apflow.run`).
"""

from __future__ import annotations

from collections.abc import Sequence

from apflow.config import Config
from apflow.graph import gathers
from apflow.model.ledger import Outcome
from apflow.model.products import DetectorResult, Plan, Preparation
from apflow.model.visit import Visit
from apflow.steps.associate import associate, force_photometry, read_history
from apflow.steps.batches import archive_packets, publish_alerts, register_outputs, write_ppdb
from apflow.steps.calibrate import calibrate, remove_signature
from apflow.steps.difference import detect_and_measure, match_template, subtract
from apflow.steps.fetch import await_science_images, fetch_calibs, fetch_template
from apflow.steps.inject import inject_fakes
from apflow.steps.metrics import dispatch_metrics
from apflow.steps.package import package_alerts
from apflow.steps.prepare import gather_prepared, preparation_report, prepare_detector, prepare_inputs
from apflow.steps.reliability import rate_reliability
from apflow.steps.visits import detector_region, open_visit, visit_report


def detector(visit: Visit, detector: int, plan: Plan, config: Config) -> DetectorResult:
    """What happens on each CCD; its pixels never leave the worker."""
    # Before the shutter opens.
    region = detector_region(visit, detector, config)
    calibs = fetch_calibs(plan, detector, region, config)
    template = fetch_template(plan, detector, config)

    # Pixels.
    snaps = await_science_images(visit, detector, config)
    post_isr = remove_signature(snaps, calibs, visit, detector, config)
    science = calibrate(post_isr, calibs, config)
    science = inject_fakes(science, config)
    matched = match_template(science, template, config)
    difference = subtract(science, matched, config)
    sources = detect_and_measure(difference, science, config)
    sources = rate_reliability(sources, difference, science, config)

    # Catalogues: the history is read when the sources are known, immediately before association.
    history = read_history(plan, detector, region, sources, config)
    associated = associate(sources, history, config)
    forced = force_photometry(associated, history, difference, science, snaps, config)
    return package_alerts(plan, snaps, associated, history, forced, difference, science, config)


def visit(visit: Visit, detectors: Sequence[int], config: Config) -> tuple[Outcome, ...]:
    """What happens on a visit: every detector, then the gathers over those that have ended."""
    plan = open_visit(visit, detectors, config)
    results = [_detector(visit, d, plan, config) for d in detectors]

    outcomes, registered = [], []
    for batch in gathers(results):
        archived = archive_packets(visit, batch, config)
        stored = write_ppdb(archived, config)  # the point of no return
        outcomes.append(publish_alerts(stored, config))
        registered.append(register_outputs(batch, plan, config))
    registered.append(dispatch_metrics(visit, detectors, outcomes, config))
    return visit_report(visit, detectors, outcomes, registered, config)


def prepare(visit: Visit, detectors: Sequence[int], config: Config) -> Preparation:
    """What happens at nextVisit, before anybody knows the exposure: the workers get what `detector` fetches first.

    The number of `visit` tells its night alone, and differs from those of all visits in flight.
    """
    plan = prepare_inputs(visit, detectors, config)
    ready = [prepare_detector(plan, d, config) for d in detectors]
    return preparation_report(visit, [gather_prepared(batch) for batch in gathers(ready)])


_detector = detector  # inside `visit` and `detector` their parameters bear the same names
