"""Raw calibration: one bias, dark, flat or CBP exposure from startIntegration to verdicts (DMTN-092 section 2.3).

Read it top to bottom. Each line is a step of the same name in `apflow.steps.calibration`.
Call the functions with values and they run here and now; hand `exposure` to a
runner and the same lines become a Dask graph (`apflow.run`).
"""

from __future__ import annotations

from collections.abc import Sequence

from apflow.config import Config
from apflow.graph import gathers
from apflow.model.calibration import CalibrationExposure, CalibrationPlan, CalibrationResult
from apflow.model.ledger import Outcome
from apflow.steps.calibration import (
    await_calibration_image,
    calibration_report,
    check_calibration,
    dispatch_checks,
    fetch_masters,
    keep_checks,
    keep_exposure,
    open_calibration,
    register_checks,
)


def detector(exposure: CalibrationExposure, detector: int, plan: CalibrationPlan, config: Config) -> CalibrationResult:
    """What happens on each CCD; its pixels never leave the worker."""
    masters = fetch_masters(plan, detector, config)  # before the shutter closes
    image = await_calibration_image(exposure, detector, config)
    checked = check_calibration(plan, image, masters, config)
    return keep_checks(checked, config)


def exposure(exposure: CalibrationExposure, detectors: Sequence[int], config: Config) -> tuple[Outcome, ...]:
    """What happens on an exposure: every detector, then the gathers over those that have ended."""
    plan = open_calibration(exposure, detectors, config)
    results = [_detector(exposure, d, plan, config) for d in detectors]

    registered = []
    for batch in gathers(results):
        registered.append(register_checks(plan, batch, config))
        dispatch_checks(batch, config)
    kept = keep_exposure(plan, detectors, registered, config)
    return calibration_report(exposure, detectors, registered, [kept])


_detector = detector  # inside `exposure` and `detector` their parameters bear the same names
