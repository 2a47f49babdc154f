"""The metrics of a calibration exposure as they are kept and sent: few actions whose lists never shrink.

The amplifier is a part of a metric's name (``read_noise_electron_C03``): an
action is a flat list, and a topic for each amplifier would be too many.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from apflow.model.calibration import CalibrationResult
from apflow.model.calibration_metrics import AMPLIFIER, AMPLIFIER_ACTION, AVERAGED, DETECTOR, DETECTOR_ACTION
from apflow.model.camera import Camera
from apflow.model.metrics import Metric, complete
from apflow.model.verdict import Verdict, worst

EXPOSURE_ACTION = "calibration_exposure"

_VERDICT = Metric("verdict", "", "0 Acceptable, 1 Warning, 2 Alert")
_BY_VERDICT = {verdict: f"n_{str(verdict).lower()}" for verdict in Verdict}
_SPREAD: Mapping[str, Callable[[list[float]], float]] = {"min": min, "median": statistics.median, "max": max}
_QUANTITIES = tuple(m for m in AMPLIFIER if m.name in AVERAGED)
#: What is measured of the whole detector, and is no average over its amplifiers.
_WHOLE = tuple(m for m in DETECTOR if not m.name.endswith(AVERAGED))


def _spread(metrics: Iterable[Metric], over: str, kinds: Iterable[str] = _SPREAD) -> tuple[Metric, ...]:
    return tuple(
        Metric(f"{kind}_{m.name}", m.unit, f"{kind.capitalize()} over {over}: {m.description}")
        for m in metrics
        for kind in kinds
    )


_DETECTOR = (
    _VERDICT,
    *(Metric(name, "", f"Amplifiers that are {verdict}") for verdict, name in _BY_VERDICT.items()),
    *DETECTOR,
    *_spread(_QUANTITIES, "amplifiers", ("min", "max")),
)
#: Metrics of a whole exposure.
EXPOSURE: tuple[Metric, ...] = (
    _VERDICT,
    Metric("n_detectors", "", "Detectors that were to be checked"),
    Metric("n_detectors_done", "", "Detectors that were checked"),
    *(Metric(name, "", f"Detectors that are {verdict}") for verdict, name in _BY_VERDICT.items()),
    *_spread(_WHOLE, "detectors"),
    *_spread(_QUANTITIES, "amplifiers (the median: over the detectors' medians)"),
)


def catalogue(camera: Camera) -> Mapping[str, tuple[Metric, ...]]:
    """All metrics of each action of a detector: the same for all of a camera, whichever amplifiers one has."""
    amplifiers = dict.fromkeys(amp.name for detector in camera.detectors for amp in detector.amplifiers)
    return {
        AMPLIFIER_ACTION: tuple(
            Metric(f"{m.name}_{name}", m.unit, f"{m.description}; amplifier {name}")
            for name in amplifiers
            for m in (_VERDICT, *AMPLIFIER)
        ),
        DETECTOR_ACTION: _DETECTOR,
    }


def detector_values(result: CalibrationResult, camera: Camera) -> dict[str, dict[str, float | None]]:
    """Values of a detector, by action and metric of `catalogue`."""
    amplifiers, verdicts = result.checks.amplifiers, result.verdicts
    of_amplifiers: dict[str, float | None] = {}
    of_amplifiers |= {f"{name}_{amp}": value for amp, found in amplifiers.items() for name, value in found.items()}
    of_amplifiers |= {f"verdict_{amp}": float(verdicts[amp]) for amp in amplifiers if amp in verdicts}
    whole: dict[str, float | None] = dict(result.checks.detector)
    whole |= {name: float(sum(verdicts.get(a) == v for a in amplifiers)) for v, name in _BY_VERDICT.items()}
    for name in AVERAGED:
        whole |= _spread_of(name, [found.get(name) for found in amplifiers.values()], ("min", "max"))
    if "detector" in verdicts:
        whole["verdict"] = float(verdicts["detector"])
    found = {AMPLIFIER_ACTION: of_amplifiers, DETECTOR_ACTION: whole}
    return {action: complete(metrics, found[action]) for action, metrics in catalogue(camera).items()}


def exposure_values(n_detectors: int, detectors: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """Values of an exposure, from what is known of the detectors that were checked."""
    verdicts = [Verdict(int(d["verdict"])) for d in detectors if "verdict" in d]
    found: dict[str, float | None] = {"n_detectors": float(n_detectors), "n_detectors_done": float(len(detectors))}
    found |= {name: float(verdicts.count(verdict)) for verdict, name in _BY_VERDICT.items()}
    if (whole := worst(verdicts)) is not None:
        found["verdict"] = float(whole)
    for metric in _WHOLE:
        found |= _spread_of(metric.name, [d.get(metric.name) for d in detectors])
    for name in AVERAGED:
        for kind in _SPREAD:
            found |= _spread_of(name, [d.get(f"{kind}_{name}") for d in detectors], (kind,))
    return complete(EXPOSURE, found)


def _spread_of(name: str, values: Iterable[float | None], kinds: Iterable[str] = _SPREAD) -> dict[str, float | None]:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return {f"{kind}_{name}": float(_SPREAD[kind](known)) for kind in kinds} if known else {}
