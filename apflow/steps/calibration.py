"""Raw calibration: a bias, dark, flat or CBP exposure against master calibs and the camera's limits (DMTN-092 2.3).

Every step that writes is idempotent by (instrument, exposure, detector): files
have predicted paths, a dataset that is registered is left as it is, and
measurements sent twice are the same points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apflow.config import Config
from apflow.errors import Misannounced
from apflow.graph import node
from apflow.io.arrivals import await_images
from apflow.io.butler import Repository
from apflow.io.butler.paths import checks_path
from apflow.io.fits import read_image, read_info, read_raw, write_image
from apflow.io.input_cache import InputReader
from apflow.io.metrics import write_bundle
from apflow.io.sasquatch import send_later
from apflow.model.calibration import (
    SAME_LIGHT,
    CalibrationExposure,
    CalibrationPlan,
    CalibrationResult,
    Intent,
    Masters,
)
from apflow.model.calibration_bundle import EXPOSURE, EXPOSURE_ACTION, catalogue, detector_values, exposure_values
from apflow.model.calibration_metrics import DETECTOR_ACTION, Ranges, default_ranges, read_ranges, verdicts_of
from apflow.model.camera import Camera, load_camera
from apflow.model.exposure import ImageInfo, Raw
from apflow.model.ids import day_obs_of
from apflow.model.ledger import Ended, Failure, Outcome, State
from apflow.model.metrics import Measurement
from apflow.model.products import Inputs, OutputFile, Snaps
from apflow.model.verdict import Verdict
from apflow.pixels.calibration_checks import check

#: Header and announcement may differ in exposure time by this part before it is reported.
_EXPOSURE_TOLERANCE = 0.05


@node(gather=True)
def open_calibration(exposure: CalibrationExposure, detectors: Sequence[int], config: Config) -> CalibrationPlan:
    """Resolve the masters of all detectors and an earlier flat at once."""
    from apflow.io.butler.calibrations import find_plan

    return find_plan(Repository.open(config.butler), exposure, detectors)


@node
def fetch_masters(plan: CalibrationPlan, detector: int, config: Config) -> Masters:
    """Master calibs that are valid for the exposure, from where they are fastest to be had; None for the others."""
    return _read_masters(plan, detector, "", config)


def _read_masters(plan: CalibrationPlan, detector: int, physical_filter: str, config: Config) -> Masters:
    found = dict(plan.masters[detector])
    if f"flat {physical_filter}" in found:
        found["flat"] = found[f"flat {physical_filter}"]
    inputs = Inputs(None, None, None, None, templates=(), reference=(), copies=plan.copies)
    reader = InputReader(inputs, config.inputs, plan.exposure.exposure, detector)
    planes = {kind: reader.read(found[kind], read_image) for kind in ("bias", "dark", "flat") if kind in found}
    if "defects" in found:
        return Masters(**planes, defects=reader.read(found["defects"], _read_defects))
    return Masters(**planes)


def _read_defects(path: str) -> NDArray[np.bool_]:
    return read_image(path).astype(bool)


@node(waits=True)
def await_calibration_image(exposure: CalibrationExposure, detector: int, config: Config) -> Snaps:
    """Block until the image is received and registered, or time out.

    Gives its path, not pixels, so that a detector that waits holds no memory.
    The image is known by its name: groups of calibrations have any number of exposures.
    """
    return await_images(
        config.butler,
        exposure.instrument,
        "",
        detector,
        nsnaps=1,
        timeout_s=config.timing.image_timeout_s,
        images=(exposure.image,),
    )


@node
def check_calibration(plan: CalibrationPlan, image: Snaps, masters: Masters, config: Config) -> CalibrationResult:
    """Correct the image as far as its intent allows, measure what is left, and judge it."""
    camera = load_camera(config.camera, config.size)
    raw = read_raw(image.raws[0].path)
    info, detector = raw.info, camera.detector(raw.info.detector)
    exposure, notes = _with_header(plan.exposure, info, camera)
    if f"flat {exposure.physical_filter}" in plan.masters[detector.id]:  # nobody knew the filter before
        masters = _read_masters(plan, detector.id, exposure.physical_filter, config)
    partner = _partner(plan, detector.id, info)
    if plan.exposure.partner and partner is None:
        notes.append(f"partner {plan.exposure.partner} is not there, or no flat of the same light: Warning")
    notes += [f"no master {kind} is valid: Warning" for kind in _missing(exposure.intent, masters)]
    checks = check(raw, detector, masters, exposure.intent, partner=partner)
    verdicts, reasons = verdicts_of(checks, ranges_of(config))
    if notes:
        verdicts = {**verdicts, "detector": max(verdicts.get("detector", Verdict.WARNING), Verdict.WARNING)}
    return CalibrationResult(
        exposure=exposure,
        detector=detector.id,
        checks=checks,
        verdicts=verdicts,
        reasons=(*notes, *reasons),
        outputs=(),
        arrived_unix=image.raws[0].arrived_unix,
        mjd_mid_tai=info.mjd_mid_tai,
    )


def ranges_of(config: Config) -> Ranges:
    """What is Acceptable, Warning and Alert, by action and metric."""
    return read_ranges(config.calibration.ranges) if config.calibration.ranges else default_ranges()


def _missing(intent: Intent, masters: Masters) -> list[str]:
    return [kind for kind in intent.masters if getattr(masters, kind) is None]


def _with_header(
    exposure: CalibrationExposure, info: ImageInfo, camera: Camera
) -> tuple[CalibrationExposure, list[str]]:
    """The exposure with what the header tells, and what was announced otherwise.

    Raises
    ------
    Misannounced
        It is of another intent or in another filter.
    """
    name, notes = exposure.image, []
    if info.image_type.upper() != exposure.intent.image_type:
        raise Misannounced(
            f"image {name} is of type {info.image_type}, it was announced as {exposure.intent.image_type}"
        )
    physical_filter = camera.filter(info.physical_filter).physical_filter if info.physical_filter else ""
    if exposure.physical_filter and physical_filter and exposure.physical_filter != physical_filter:
        raise Misannounced(
            f"image {name} is in filter {physical_filter}, it was announced in {exposure.physical_filter}"
        )
    announced_s = exposure.exposure_time_s
    if abs(info.exposure_time_s - announced_s) > _EXPOSURE_TOLERANCE * announced_s:
        notes.append(f"exposure time is {info.exposure_time_s:g} s, announced were {announced_s:g} s: Warning")
    told = dataclasses.replace(
        exposure,
        group=info.group,
        physical_filter=physical_filter or exposure.physical_filter,
        exposure_time_s=info.exposure_time_s,
    )
    return told, notes


def _partner(plan: CalibrationPlan, detector: int, info: ImageInfo) -> Raw | None:
    """The raw of an earlier flat, the best that is there and of the same light."""
    for path in plan.partners[detector]:
        if Path(path).is_file() and _same_light(read_info(path), info):
            return read_raw(path)
    return None


def _same_light(one: ImageInfo, other: ImageInfo) -> bool:
    if one.image_type.upper() != Intent.FLAT.image_type or one.physical_filter != other.physical_filter:
        return False
    return abs(one.exposure_time_s - other.exposure_time_s) <= SAME_LIGHT * other.exposure_time_s


@node
def keep_checks(checked: CalibrationResult, config: Config) -> CalibrationResult:
    """Write metrics and picture where the Butler will find them; a gather registers them."""
    exposure, detector = checked.exposure, checked.detector
    kinds = ("calibration_metrics", "calibration_picture")
    metrics, picture = (checks_path(config.butler, kind, exposure, detector) for kind in kinds)
    data_id: dict[str, str | int] = {
        "instrument": exposure.instrument,
        "exposure": exposure.exposure,
        "detector": detector,
    }
    camera = load_camera(config.camera, config.size)
    write_bundle(metrics, catalogue(camera), detector_values(checked, camera), data_id, checked.mjd_mid_tai)
    write_image(picture, checked.checks.picture, {"EXPID": exposure.exposure, "DETNUM": detector})
    outputs = (OutputFile(kinds[0], metrics), OutputFile(kinds[1], picture))
    return dataclasses.replace(checked, outputs=outputs)


@node(gather=True, retries=2)
def register_checks(plan: CalibrationPlan, batch: Sequence[Ended], config: Config) -> tuple[Outcome, ...]:
    """Register the files of a batch by one Butler ingest; gives how each detector ended."""
    results: list[CalibrationResult] = [e.value for e in batch if e.failure is None]
    number = plan.exposure.exposure
    if results:
        from apflow.io.butler.calibrations import register_checks as register

        outputs = [(o, {"exposure": number, "detector": r.detector}) for r in results for o in r.outputs]
        register(Repository.open(config.butler, writeable=True), plan.run, outputs)
    camera = load_camera(config.camera, config.size)
    return tuple(_outcome(plan.exposure, end, camera) for end in batch)


def _outcome(exposure: CalibrationExposure, end: Ended, camera: Camera) -> Outcome:
    common = Outcome(exposure.instrument, exposure.exposure, end.detector, State.DONE, steps=end.steps)
    if end.failure is not None:
        failure = end.failure
        return dataclasses.replace(common, state=failure.state, cause=failure.cause, step=failure.step)
    result: CalibrationResult = end.value
    values = detector_values(result, camera)[DETECTOR_ACTION]
    return dataclasses.replace(
        common,
        cause="; ".join(result.reasons),
        arrived_unix=result.arrived_unix,
        metrics={k: v for k, v in values.items() if v is not None} | {"mjd_mid_tai": result.mjd_mid_tai},
    )


@node(gather=True)
def dispatch_checks(batch: Sequence[Ended], config: Config) -> int:
    """Send the metrics of a batch to Sasquatch, in the background; gives how many points they are."""
    camera = load_camera(config.camera, config.size)
    results: list[CalibrationResult] = [e.value for e in batch if e.failure is None]
    points = [
        Measurement(action, values, _identifiers(r.exposure) | {"detector": r.detector}, r.mjd_mid_tai)
        for r in results
        for action, values in detector_values(r, camera).items()
    ]
    send_later(points, config)
    return len(points)


def _identifiers(exposure: CalibrationExposure) -> dict[str, str | int]:
    return {
        "instrument": exposure.instrument,
        "exposure": exposure.exposure,
        "group": exposure.group,
        "day_obs": day_obs_of(exposure.exposure),
        "physical_filter": exposure.physical_filter,
    }


@node(gather=True, retries=2)
def keep_exposure(
    plan: CalibrationPlan,
    detectors: Sequence[int],
    registered: Sequence[tuple[Outcome, ...] | Failure],
    config: Config,
) -> int:
    """Keep and send the metrics of the whole exposure; gives how many detectors they tell of."""
    from apflow.io.butler.calibrations import register_checks as register

    batches = [batch for batch in registered if not isinstance(batch, Failure)]
    done = [o.metrics for batch in batches for o in batch if o.state is State.DONE]
    if not done:
        return 0
    exposure, kind, mjd_mid_tai = plan.exposure, "calibration_exposure_metrics", done[0]["mjd_mid_tai"]
    path, values = checks_path(config.butler, kind, exposure), exposure_values(len(detectors), done)
    data_id: dict[str, str | int] = {"instrument": exposure.instrument, "exposure": exposure.exposure}
    write_bundle(path, {EXPOSURE_ACTION: EXPOSURE}, {EXPOSURE_ACTION: values}, data_id, mjd_mid_tai)
    outputs = [(OutputFile(kind, path), {"exposure": exposure.exposure})]
    register(Repository.open(config.butler, writeable=True), plan.run, outputs)
    send_later([Measurement(EXPOSURE_ACTION, values, _identifiers(exposure), mjd_mid_tai)], config)
    return len(done)


@node(gather=True)
def calibration_report(
    exposure: CalibrationExposure,
    detectors: Sequence[int],
    registered: Sequence[tuple[Outcome, ...] | Failure],
    kept: Sequence[int | Failure],
) -> tuple[Outcome, ...]:
    """One terminal state for every detector.

    A batch that could not be registered leaves its detectors without an
    outcome: they end as failed with its cause. Metrics of the exposure that
    could not be kept are told of in the causes of detectors that are done.
    """
    ended = {o.detector: o for batch in registered if not isinstance(batch, Failure) for o in batch}
    broken = [batch for batch in registered if isinstance(batch, Failure)]
    step, cause = (broken[0].step, broken[0].cause) if broken else ("register_checks", "no batch had this detector")
    lost = [f"metrics of the exposure were not kept: {k.cause}" for k in kept if isinstance(k, Failure)]
    outcomes = []
    for detector in detectors:
        outcome = ended.get(detector)
        if outcome is None:
            outcome = Outcome(exposure.instrument, exposure.exposure, detector, State.FAILED, cause, step)
        elif outcome.state is State.DONE:
            outcome = dataclasses.replace(outcome, cause="; ".join([c for c in (outcome.cause, *lost) if c]))
        outcomes.append(outcome)
    return tuple(outcomes)
