"""What was found of a calibration exposure, for machines: the JSON of ``apflow calibration``."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apflow.config import Config
from apflow.io.butler.paths import checks_path, raw_path
from apflow.io.fits import read_info
from apflow.io.metrics import read_bundle
from apflow.model.calibration import CalibrationExposure
from apflow.model.calibration_bundle import EXPOSURE_ACTION
from apflow.model.calibration_metrics import AMPLIFIER, AMPLIFIER_ACTION, DETECTOR, DETECTOR_ACTION, Ranges
from apflow.model.camera import Camera, Detector
from apflow.model.ledger import Outcome, State
from apflow.model.verdict import Verdict, judge
from apflow.steps.calibration import ranges_of

_UNITS = {metric.name: metric.unit for metric in (*AMPLIFIER, *DETECTOR)}
Values = Mapping[str, float | None]


def summarise(
    exposure: CalibrationExposure, outcomes: Sequence[Outcome], camera: Camera, config: Config
) -> dict[str, Any]:
    """What the outcomes and the metrics in the repository say of an exposure.

    Returns
    -------
    summary : `dict`
        Of what JSON has. `verdict` is the worst of the detectors', None where
        none was checked; each of `detectors` has its state, verdict and cause,
        the metrics of its amplifiers, and in `out_of_range` what is not
        Acceptable with its range.
    """
    ranges = ranges_of(config)
    detectors = [_detector(exposure, o, camera.detector(o.detector), ranges, config) for o in outcomes]
    whole: Values = {}
    done = [o.detector for o in outcomes if o.state is State.DONE]
    if done:
        exposure = _as_taken(exposure, camera.detector(done[0]), camera, config)
        whole = read_bundle(checks_path(config.butler, "calibration_exposure_metrics", exposure))[EXPOSURE_ACTION]
    verdict = whole.get("verdict")
    return {
        "instrument": exposure.instrument,
        "exposure": exposure.exposure,
        "image": exposure.image,
        "intent": str(exposure.intent),
        "physical_filter": exposure.physical_filter,
        "exposure_time_s": exposure.exposure_time_s,
        "verdict": None if verdict is None else str(Verdict(int(verdict))),
        "verdicts": dict(Counter(d["verdict"] for d in detectors if d["verdict"])),
        "states": dict(Counter(d["state"] for d in detectors)),
        "metrics": dict(whole),
        "detectors": detectors,
    }


def remarks(summary: Mapping[str, Any], most_names: int = 6) -> list[tuple[str, str, str]]:
    """Detectors that are not Acceptable, were not checked, or of which there is something to say.

    Returns
    -------
    remarks : `list` [`tuple` [`str`, `str`, `str`]]
        Names of detectors, their verdict or state, and why; detectors of which
        the same is to be said stand together, the worst first.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for d in summary["detectors"]:
        if d["verdict"] != str(Verdict.ACCEPTABLE) or d["cause"]:
            why = d["cause"] if d["state"] == State.DONE else f"{d['step']}: {d['cause']}"
            groups.setdefault((d["verdict"] or d["state"], why), []).append(d["name"])
    order = [str(v) for v in (Verdict.ACCEPTABLE, Verdict.WARNING, Verdict.ALERT)]
    found = sorted(groups.items(), key=lambda group: -order.index(group[0][0]) if group[0][0] in order else -1.5)
    return [(_together(names, most_names), verdict, why) for (verdict, why), names in found]


def _together(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _as_taken(exposure: CalibrationExposure, detector: Detector, camera: Camera, config: Config) -> CalibrationExposure:
    """The exposure with filter and exposure time of a header."""
    path = raw_path(Path(config.butler), exposure.instrument, exposure.exposure, camera.image_prefix, detector.name)
    info = read_info(path)
    return dataclasses.replace(exposure, physical_filter=info.physical_filter, exposure_time_s=info.exposure_time_s)


def _detector(
    exposure: CalibrationExposure, outcome: Outcome, detector: Detector, ranges: Ranges, config: Config
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "detector": detector.id,
        "name": detector.name,
        "state": str(outcome.state),
        "step": outcome.step,
        "cause": outcome.cause,
        "verdict": None,
        "amplifiers": {},
        "out_of_range": [],
    }
    if outcome.state is not State.DONE:
        return found
    bundle = read_bundle(checks_path(config.butler, "calibration_metrics", exposure, detector.id))
    if (verdict := bundle[DETECTOR_ACTION]["verdict"]) is not None:
        found["verdict"] = str(Verdict(int(verdict)))
    flat, names = bundle[AMPLIFIER_ACTION], ["verdict", *(metric.name for metric in AMPLIFIER)]
    found["amplifiers"] = {a.name: {name: flat.get(f"{name}_{a.name}") for name in names} for a in detector.amplifiers}
    bad = [row for name, values in found["amplifiers"].items() for row in _out_of_range(name, values, ranges)]
    bad += _of_action("", bundle[DETECTOR_ACTION], ranges, DETECTOR_ACTION)
    found["out_of_range"] = sorted(bad, key=lambda row: -Verdict[row["verdict"].upper()])
    return found


def _out_of_range(amplifier: str, values: Values, ranges: Ranges) -> Iterator[dict[str, Any]]:
    if values.get("is_dead") == 1:
        yield _row(amplifier, "is_dead", 1.0, Verdict.ALERT, (0.0, 0.0), (0.0, 0.0))
    yield from _of_action(amplifier, values, ranges, AMPLIFIER_ACTION)


def _of_action(amplifier: str, values: Values, ranges: Ranges, action: str) -> Iterator[dict[str, Any]]:
    limits = ranges.get(action, {})
    for name, verdict in judge(values, limits).items():
        if verdict:
            yield _row(amplifier, name, values[name], verdict, limits[name].warning, limits[name].alert)


def _row(
    amplifier: str,
    metric: str,
    value: float | None,
    verdict: Verdict,
    warning: tuple[float, float],
    alert: tuple[float, float],
) -> dict[str, Any]:
    return {
        "amplifier": amplifier,
        "metric": metric,
        "value": value,
        "unit": _UNITS[metric],
        "verdict": str(verdict),
        "warning": _limits(warning),
        "alert": _limits(alert),
    }


def _limits(pair: tuple[float, float]) -> list[float | None]:
    """JSON has no infinity."""
    return [None if abs(v) == float("inf") else v for v in pair]
