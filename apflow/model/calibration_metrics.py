"""What raw calibration measures of an amplifier and of a detector, and the verdicts on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from apflow.errors import BadRequest
from apflow.model.calibration import Checks
from apflow.model.metrics import Metric
from apflow.model.verdict import Range, Verdict, judge, load_ranges, worst

#: Ranges by action and metric, as `load_ranges` gives them.
Ranges = Mapping[str, Mapping[str, Range]]

#: Actions: what measured.
AMPLIFIER_ACTION, DETECTOR_ACTION = "calibration_amplifier", "calibration_detector"

#: Quantities of one amplifier; NaN where the intent or missing masters do not give them.
_QUANTITIES = (
    Metric("overscan_level_adu", "adu", "Median of the rows' serial overscan levels"),
    Metric("overscan_drift_adu", "adu", "Highest less lowest median overscan level of 16 blocks of rows"),
    Metric("read_noise_electron", "electron", "Noise of the serial overscan, by the camera's gain"),
    Metric("read_noise_ratio", "", "Read noise over the camera's"),
    Metric("saturated_fraction", "", "Pixels at or above the camera's saturation"),
    Metric("peak_adu", "adu", "Raw level that one pixel in a thousand exceeds"),
    Metric("peak_ratio", "", "peak_adu over the camera's saturation"),
    Metric("bias_residual_adu", "adu", "Bias less master bias: clipped mean"),
    Metric("bias_row_rms_adu", "adu", "Bias less master bias: rms of the means of rows, beyond noise"),
    Metric("bias_column_rms_adu", "adu", "Bias less master bias: rms of the means of columns, beyond noise"),
    Metric("bias_drift_adu", "adu", "Bias less master bias: last eighth of the rows read out less the first"),
    Metric("dark_current_electron_per_s", "electron / s", "Dark current: clipped mean of the pixels without defects"),
    Metric("dark_residual_electron_per_s", "electron / s", "Dark less master dark: clipped mean"),
    Metric("flat_level_electron", "electron", "Illumination: clipped mean, by the camera's gain"),
    Metric("flat_level_ratio", "", "Illumination over the median of the detector's amplifiers"),
    Metric("gain_drift_ratio", "", "Flat over master flat, over the median of the detector's amplifiers"),
    Metric("flat_structure_ratio", "", "Flat over master flat: rms over blocks of pixels, beyond noise"),
    Metric("ptc_gain_electron_per_adu", "electron / adu", "Gain by photon transfer between two flats"),
    Metric("ptc_gain_error_electron_per_adu", "electron / adu", "Standard error of that gain"),
    Metric("ptc_gain_ratio", "", "Gain by photon transfer over the camera's"),
    Metric("ptc_read_noise_electron", "electron", "Noise of both flats' overscan, by the gain of photon transfer"),
    Metric("ptc_read_noise_error_electron", "electron", "Standard error of that read noise"),
    Metric("ptc_read_noise_ratio", "", "Read noise by photon transfer over the camera's"),
    Metric("background_electron", "electron", "Level between the spots of a collimated beam: clipped mean"),
)

#: Pixels of one amplifier, summed over the detector.
_COUNTS = (
    Metric("n_hot_pixels", "", "Pixels of high dark current, known or new"),
    Metric("n_cosmic_ray_pixels", "", "Pixels above the limits that look like hits, and are not counted as bad"),
    Metric("n_new_bad_pixels", "", "Pixels that are hot in a dark, low or high in a flat, and no known defects"),
    Metric("n_gone_bad_pixels", "", "Known defects that the master of the same intent shows and the image does not"),
)


def _over_amplifiers() -> Iterator[Metric]:
    for metric in _QUANTITIES:
        what = metric.description[0].lower() + metric.description[1:]
        yield Metric(f"mean_{metric.name}", metric.unit, f"Mean over amplifiers: {what}")
        yield Metric(f"median_{metric.name}", metric.unit, f"Median over amplifiers: {what}")
        yield Metric(f"scatter_{metric.name}", metric.unit, f"Standard deviation over amplifiers: {what}")


AMPLIFIER: tuple[Metric, ...] = (
    Metric("is_dead", "", "1 where the amplifier is constant below saturation or has no finite pixel, else 0"),
    *_QUANTITIES,
    *_COUNTS,
)

DETECTOR: tuple[Metric, ...] = (
    Metric("n_dead_amplifiers", "", "Amplifiers that are constant below saturation or have no finite pixel"),
    *_COUNTS,
    Metric("illumination_slope_ratio", "", "Steepest change of the flat across the detector, over its level"),
    Metric("n_spots", "", "Spots of a collimated beam"),
    Metric("spot_peak_electron", "electron", "Highest pixel of all spots above the background"),
    Metric("spot_saturated_fraction", "", "Saturated pixels of all pixels in spots"),
    Metric("spot_flux_electron", "electron", "Flux of the brightest spot above the background"),
    *_over_amplifiers(),
)

#: The quantities whose mean, median and scatter over amplifiers `DETECTOR` has, and the counts that it sums.
AVERAGED = tuple(metric.name for metric in _QUANTITIES)
SUMMED = tuple(metric.name for metric in _COUNTS)


def default_ranges() -> dict[str, dict[str, Range]]:
    """The ranges that come with apflow: ``apflow/cameras/ranges.toml``, which says why they are so."""
    with resources.as_file(resources.files("apflow.cameras") / "ranges.toml") as path:
        return read_ranges(path)


def read_ranges(path: str | Path) -> dict[str, dict[str, Range]]:
    """Ranges of calibration from a TOML file (see `load_ranges`); other actions' tables are left alone.

    Raises
    ------
    BadRequest
        As `load_ranges`, or a metric is not one of the action's.
    """
    ranges = load_ranges(path)
    for action, metrics in ((AMPLIFIER_ACTION, AMPLIFIER), (DETECTOR_ACTION, DETECTOR)):
        unknown = sorted(set(ranges.get(action, ())) - {metric.name for metric in metrics})
        if unknown:
            accepted = ", ".join(metric.name for metric in metrics)
            raise BadRequest(f"ranges {path}: {action}.{unknown[0]} is no metric; accepted: {accepted}")
    return ranges


def verdicts_of(checks: Checks, ranges: Ranges) -> tuple[dict[str, Verdict], tuple[str, ...]]:
    """Verdicts on the amplifiers and the detector.

    An amplifier's is the worst of its metrics; a dead one's is Alert, whatever
    the ranges. The detector's, under ``detector``, is the worst of its own
    metrics and its amplifiers', but for a single amplifier's Warning among
    several, which stays with the amplifier: of 16 amplifiers with a dozen
    limits each, one near a limit is chance. What is unknown has no verdict:
    where nothing is known, the name is missing.

    Returns
    -------
    verdicts : `dict` [`str`, `Verdict`]
    reasons : `tuple` [`str`, ...]
        ``C03 read_noise_ratio 1.31: Warning`` for all that is not Acceptable, the worst first.
    """
    verdicts: dict[str, Verdict] = {}
    reasons: list[tuple[Verdict, str]] = []
    for name, values in checks.amplifiers.items():
        judged = judge(values, ranges.get(AMPLIFIER_ACTION, {}))
        if values["is_dead"] == 1:
            judged["is_dead"] = Verdict.ALERT
        _note(name, values, judged, verdicts, reasons)
    of_amplifiers = list(verdicts.values())
    if len(checks.amplifiers) > 1 and of_amplifiers.count(Verdict.WARNING) == 1:
        of_amplifiers[of_amplifiers.index(Verdict.WARNING)] = Verdict.ACCEPTABLE
    _note("detector", checks.detector, judge(checks.detector, ranges.get(DETECTOR_ACTION, {})), verdicts, reasons)
    whole = worst([verdicts.get("detector"), *of_amplifiers])
    if whole is not None:
        verdicts["detector"] = whole
    return verdicts, tuple(text for _, text in sorted(reasons, key=lambda reason: -reason[0]))


def _note(
    name: str,
    values: Mapping[str, float],
    judged: Mapping[str, Verdict | None],
    verdicts: dict[str, Verdict],
    reasons: list[tuple[Verdict, str]],
) -> None:
    """Add the verdict on one amplifier or on the detector, and why."""
    verdict = worst(judged.values())
    if verdict is not None:
        verdicts[name] = verdict
    for metric, v in judged.items():
        if v:
            reasons.append((v, f"{name} {metric} {values[metric]:.4g}: {v}"))
