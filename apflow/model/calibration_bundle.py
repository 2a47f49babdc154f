"""The metrics of a calibration exposure as they are kept and sent: few actions whose lists never shrink.

The amplifier is a part of a metric's name (``read_noise_electron_C03``): an
action is a flat list, and a topic for each amplifier would be too many.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from apflow.model.calibration import CalibrationResult
from apflow.model.calibration_metrics import AMPLIFIER, DETECTOR
from apflow.model.metrics import Metric, complete
from apflow.model.verdict import Verdict, worst

AMPLIFIERS_ACTION = "calibration_amplifiers"
DETECTOR_ACTION = "calibration_detector"
EXPOSURE_ACTION = "calibration_exposure"

_VERDICT = Metric("verdict", "", "0 Acceptable, 1 Warning, 2 Alert")
_BY_VERDICT = {verdict: f"n_{str(verdict).lower()}" for verdict in Verdict}


def _spread(metrics: Iterable[Metric], prefix: str, over: str) -> tuple[Metric, ...]:
    return tuple(
        Metric(f"{prefix}{m.name}_{which}", m.unit, f"{m.description}: {which} over {over}")
        for m in metrics
        for which in ("min", "median", "max")
    )


_DETECTOR = (
    _VERDICT,
    *(Metric(name, "ct", f"amplifiers that are {verdict}") for verdict, name in _BY_VERDICT.items()),
    *DETECTOR,
    *_spread(AMPLIFIER, "amplifier_", "amplifiers"),
)
#: Metrics of a whole exposure.
EXPOSURE: tuple[Metric, ...] = (
    _VERDICT,
    Metric("n_detectors", "ct", "detectors that were to be checked"),
    Metric("n_detectors_done", "ct", "detectors that were checked"),
    *(Metric(name, "ct", f"detectors that are {verdict}") for verdict, name in _BY_VERDICT.items()),
    *_spread(DETECTOR, "", "detectors"),
    *_spread(AMPLIFIER, "amplifier_", "amplifiers; the median is that of the detectors' medians"),
)


def catalogue(amplifiers: Sequence[str]) -> dict[str, tuple[Metric, ...]]:
    """All metrics of each action of a detector with these amplifiers."""
    return {
        AMPLIFIERS_ACTION: tuple(
            Metric(f"{m.name}_{name}", m.unit, f"{m.description}; amplifier {name}")
            for name in amplifiers
            for m in (_VERDICT, *AMPLIFIER)
        ),
        DETECTOR_ACTION: _DETECTOR,
    }


def detector_values(result: CalibrationResult) -> dict[str, dict[str, float | None]]:
    """Values of a detector, by action and metric."""
    amplifiers, verdicts = result.checks.amplifiers, result.verdicts
    one_by_one = {f"{name}_{amp}": value for amp, found in amplifiers.items() for name, value in found.items()}
    one_by_one |= {f"verdict_{amp}": float(verdicts[amp]) for amp in amplifiers if amp in verdicts}
    counts = {name: float(sum(verdicts.get(a) == v for a in amplifiers)) for v, name in _BY_VERDICT.items()}
    spreads: dict[str, float | None] = {}
    for metric in AMPLIFIER:
        spreads |= _spread_of(f"amplifier_{metric.name}", [f.get(metric.name) for f in amplifiers.values()])
    whole = {**result.checks.detector, **counts, **spreads}
    if "detector" in verdicts:
        whole["verdict"] = float(verdicts["detector"])
    actions = catalogue(list(amplifiers))
    return {
        AMPLIFIERS_ACTION: complete(actions[AMPLIFIERS_ACTION], one_by_one),
        DETECTOR_ACTION: complete(_DETECTOR, whole),
    }


def exposure_values(n_detectors: int, detectors: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Values of an exposure, from those of the detectors that were checked."""
    verdicts = [Verdict(int(v)) for d in detectors if (v := d.get("verdict")) is not None]
    found: dict[str, float | None] = {
        "n_detectors": float(n_detectors),
        "n_detectors_done": float(len(detectors)),
        **{name: float(verdicts.count(verdict)) for verdict, name in _BY_VERDICT.items()},
    }
    if (whole := worst(verdicts)) is not None:
        found["verdict"] = float(whole)
    for metric in DETECTOR:
        found |= _spread_of(metric.name, [d.get(metric.name) for d in detectors])
    for metric in AMPLIFIER:
        for which in ("min", "median", "max"):
            name = f"amplifier_{metric.name}_{which}"
            found[name] = _spread_of("", [d.get(name) for d in detectors]).get(f"_{which}")
    return complete(EXPOSURE, found)


def _spread_of(name: str, values: Iterable[float | None]) -> dict[str, float | None]:
    known = [v for v in values if v is not None and v == v]
    if not known:
        return {}
    return {f"{name}_min": min(known), f"{name}_median": statistics.median(known), f"{name}_max": max(known)}
