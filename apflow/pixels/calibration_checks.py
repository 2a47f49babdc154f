"""Checks of one detector of a calibration exposure against its masters and the camera."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from apflow.model.calibration import Checks, Intent, Masters
from apflow.model.calibration_metrics import AMPLIFIER, AVERAGED, DETECTOR, SUMMED
from apflow.model.camera import Amplifier, Detector
from apflow.model.exposure import Raw
from apflow.pixels.bad_pixels import gone_from_dark, gone_from_flat, hot_limit, outliers, response_limit
from apflow.pixels.calibration_isr import Corrected, correct
from apflow.pixels.illumination import Light
from apflow.pixels.photon_transfer import PhotonTransfer, photon_transfer
from apflow.pixels.segments import first_overscan, native, overscan_noise
from apflow.pixels.spots import find_spots
from apflow.pixels.survey import Survey, survey

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Values = dict[str, float]

#: Longest side of the picture.
_PICTURE = 128
#: Blocks of rows over which the overscan's drift is measured.
_DRIFT_BLOCKS = 16
#: Bias drift: this part of the rows at either end.
_ENDS = 8
#: One pixel in so many exceeds the peak.
_PEAK = 1000


def check(raw: Raw, detector: Detector, masters: Masters, intent: Intent, partner: Raw | None = None) -> Checks:
    """Measure one detector of a calibration exposure.

    Overscan, read noise and saturation are measured whatever the intent. Means
    leave out defects, saturated pixels and what is further than 5 sigma from
    the median. Metrics that compare with a master that is missing are NaN, as
    are those of other intents. How hot pixels are told from cosmic rays:
    `apflow.pixels.bad_pixels.outliers`.

    Parameters
    ----------
    raw : `Raw`
    detector : `Detector`
    masters : `Masters`
    intent : `Intent`
    partner : `Raw`, optional
        Another flat of about the same light, for photon transfer; nothing but a flat has use of it.

    Returns
    -------
    checks : `Checks`
        Metrics as `apflow.model.calibration_metrics` names them. The picture
        holds the bias less its master (ADU), the dark less its master
        (electrons), the flat over its master and over the detector's level,
        less 1, or the spots' electrons; NaN where there is no data.

    Raises
    ------
    DataError
        See `apflow.pixels.segments.check_raw`; of the partner too.
    """
    corrected = correct(raw, detector, masters, intent)
    surveys = _surveys(corrected, detector, masters, intent, raw.info.exposure_time_s)
    amplifiers = {amp.name: _common(raw, amp, corrected, surveys[amp.name]) for amp in detector.amplifiers}
    pairs = photon_transfer(raw, partner, detector, masters) if partner is not None and intent is Intent.FLAT else {}
    where = np.flatnonzero(masters.defects) if masters.defects is not None else None
    for amp in detector.amplifiers:
        found, values = surveys[amp.name], amplifiers[amp.name]
        if intent is Intent.BIAS:
            values |= _bias(found, amp) if masters.bias is not None else {}
        elif intent is Intent.DARK:
            values |= _dark(
                corrected, found, amp, masters, _of_amplifier(where, amp, detector), raw.info.exposure_time_s
            )
        elif intent is Intent.FLAT:
            values |= _flat(corrected, found, amp, masters, _of_amplifier(where, amp, detector))
            values |= _transfer(pairs.get(amp.name, PhotonTransfer()), amp)
        else:
            values["background_electron"] = found.mean
    picture, own = _picture(surveys, detector), Values()
    if intent is Intent.FLAT:
        light = Light.of(surveys, detector)
        _relate(amplifiers, surveys, detector, masters, light)
        picture = picture / np.float32(light.level) - np.float32(1)
        own = {"illumination_slope_ratio": math.hypot(light.across, light.up)}
    elif intent is Intent.CBP:
        own = _spots(corrected, surveys)
    whole = _whole(amplifiers, len(corrected.dead)) | own
    return Checks(
        {name: {m.name: v.get(m.name, math.nan) for m in AMPLIFIER} for name, v in amplifiers.items()},
        {metric.name: whole.get(metric.name, math.nan) for metric in DETECTOR},
        picture,
    )


def _surveys(
    corrected: Corrected, detector: Detector, masters: Masters, intent: Intent, exposure_time_s: float
) -> dict[str, Survey]:
    """Each amplifier against what the master of the intent lets expect; `correct` has subtracted the master bias."""
    reference = {Intent.DARK: masters.dark, Intent.FLAT: masters.flat}.get(intent)
    columns, rows = (len({getattr(amp, k) for amp in detector.amplifiers}) for k in ("x0", "y0"))
    blocks = _PICTURE // rows, _PICTURE // columns
    return {
        amp.name: survey(
            corrected.image, corrected.mask, amp, reference, exposure_time_s,
            (min(blocks[0], amp.ny), min(blocks[1], amp.nx)), divide=intent is Intent.FLAT, bright=intent is Intent.CBP,
        )
        for amp in detector.amplifiers
    }  # fmt: skip


def _common(raw: Raw, amp: Amplifier, corrected: Corrected, found: Survey) -> Values:
    """Overscan, read noise, saturation, and whether the amplifier is alive."""
    segment, levels = native(raw.segments[amp.segment]), corrected.overscan[amp.name]
    values: Values = {"is_dead": float(amp.name in corrected.dead)}
    if amp.overscan_x:
        blocks = [_median(block) for block in np.array_split(levels, _DRIFT_BLOCKS)]
        noise = overscan_noise(segment, levels, amp)[0] * amp.gain
        values |= {
            "overscan_level_adu": _median(levels),
            "overscan_drift_adu": float(np.fmax.reduce(blocks) - np.fmin.reduce(blocks)),
            "read_noise_electron": noise,
            "read_noise_ratio": noise / amp.read_noise,
        }
    if not values["is_dead"]:
        sample = segment[: amp.ny : 4, amp.prescan : amp.prescan + amp.nx : 4].ravel()
        sample = sample[np.isfinite(sample)]
        if sample.size:
            peak = float(np.partition(sample, -1 - sample.size // _PEAK)[-1 - sample.size // _PEAK])
            values |= {"peak_adu": peak, "peak_ratio": peak / amp.saturation}
        values["saturated_fraction"] = found.n_saturated / (amp.nx * amp.ny)
    return values


def _bias(found: Survey, amp: Amplifier) -> Values:
    """What is left of a bias after its master."""
    read2 = found.sigma**2
    # The interquartile mean of m values, which every pixel of a row shares, has 1.2 times the variance of their mean.
    of_levels = 1.2 * read2 / (sum(amp.raw_shape[1:]) - first_overscan(amp)) if amp.overscan_x else 0.0
    rows = found.rows[::-1] if amp.flip_y else found.rows
    end = max(1, rows.size // _ENDS)
    return {
        "bias_residual_adu": found.mean,
        "bias_row_rms_adu": _beyond(found.rows, read2 / amp.nx + of_levels),
        "bias_column_rms_adu": _beyond(found.columns, read2 / amp.ny),
        "bias_drift_adu": _mean(rows[-end:]) - _mean(rows[:end]),
    }


def _dark(
    corrected: Corrected, found: Survey, amp: Amplifier, masters: Masters, where: I8 | None, exposure_time_s: float
) -> Values:
    """Dark current, and pixels that have much of it."""
    if not (exposure_time_s > 0 and found.n):
        return {}
    level, limit = found.image_mean, hot_limit(found, exposure_time_s)
    seen = outliers(corrected.image, corrected.mask, amp, None, level, found.sigma, limit)
    values: Values = {
        "dark_current_electron_per_s": level / exposure_time_s,
        "n_hot_pixels": float(seen.known + seen.high),
        "n_cosmic_ray_pixels": float(seen.hits),
    }
    if masters.dark is not None:
        values["dark_residual_electron_per_s"] = found.mean / exposure_time_s
    if where is not None:
        values["n_new_bad_pixels"] = float(seen.high)
        if masters.dark is not None:
            values["n_gone_bad_pixels"] = float(
                gone_from_dark(corrected.image, corrected.mask, masters.dark, where, amp, level, limit, exposure_time_s)
            )
    return values


def _flat(corrected: Corrected, found: Survey, amp: Amplifier, masters: Masters, where: I8 | None) -> Values:
    """Illumination, and pixels that respond otherwise than their master says."""
    if not found.n:
        return {}
    values: Values = {"flat_level_electron": found.image_mean}
    if masters.flat is None or not found.mean > 0:
        return values
    limit = response_limit(found)
    # What scatters about the blocks' means is noise, and they have its n-th part.
    n = max(2.0, float(np.mean(found.block_pixels)))
    noise2 = (found.sigma**2 - float(np.nanvar(found.blocks))) / (n - 1)
    values["flat_structure_ratio"] = _beyond(found.blocks, noise2) / found.mean
    if where is not None and limit < 1:
        seen = outliers(corrected.image, corrected.mask, amp, masters.flat, found.mean, found.sigma, limit * found.mean)
        gone = gone_from_flat(corrected.image, corrected.mask, masters.flat, where, limit)
        values |= {
            "n_new_bad_pixels": float(seen.low + seen.high),
            "n_gone_bad_pixels": float(gone),
            "n_cosmic_ray_pixels": float(seen.hits),
        }
    return values


def _transfer(pair: PhotonTransfer, amp: Amplifier) -> Values:
    return {
        "ptc_gain_electron_per_adu": pair.gain,
        "ptc_gain_error_electron_per_adu": pair.gain_error,
        "ptc_gain_ratio": pair.gain / amp.gain,
        "ptc_read_noise_electron": pair.read_noise,
        "ptc_read_noise_error_electron": pair.read_noise_error,
        "ptc_read_noise_ratio": pair.read_noise / amp.read_noise,
    }


def _relate(
    amplifiers: Mapping[str, Values], surveys: Mapping[str, Survey], detector: Detector, masters: Masters, light: Light
) -> None:
    """Add what each amplifier is relative to the others; a slope of the light is no drift of gains."""
    level = _median(values.get("flat_level_electron", math.nan) for values in amplifiers.values())
    drifts = {amp.name: surveys[amp.name].centre / light.at(amp, detector) for amp in detector.amplifiers}
    drift = _median(drifts.values())
    for name, values in amplifiers.items():
        if "flat_level_electron" in values and level > 0:
            values["flat_level_ratio"] = values["flat_level_electron"] / level
            if masters.flat is not None:
                values["gain_drift_ratio"] = drifts[name] / drift


def _whole(amplifiers: Mapping[str, Values], n_dead: int) -> Values:
    """Mean, median and scatter over the amplifiers, and sums of counts: of those alive, where they are known."""
    whole: Values = {"n_dead_amplifiers": float(n_dead)}
    alive = [values for values in amplifiers.values() if not values["is_dead"]]
    statistics: dict[str, Callable[[F8], np.floating]] = {"mean": np.mean, "median": np.median, "scatter": np.std}
    for name in (*AVERAGED, *SUMMED):
        known = np.array([v[name] for v in alive if math.isfinite(v.get(name, math.nan))])
        if known.size and name in SUMMED:
            whole[name] = float(known.sum())
        elif known.size:
            whole |= {f"{kind}_{name}": float(of(known)) for kind, of in statistics.items()}
    return whole


def _spots(corrected: Corrected, surveys: Mapping[str, Survey]) -> Values:
    background, sigma = (_median(getattr(s, k) for s in surveys.values()) for k in ("mean", "sigma"))
    if not math.isfinite(background):
        return {}
    spots = find_spots(corrected.image, corrected.mask, background, sigma)
    return {
        "n_spots": float(spots.n),
        "spot_peak_electron": spots.peak,
        "spot_saturated_fraction": spots.saturated_fraction,
        "spot_flux_electron": spots.flux,
    }


def _picture(surveys: Mapping[str, Survey], detector: Detector) -> F4:
    """The amplifiers' blocks in their places."""
    xs, ys = (sorted({getattr(amp, k) for amp in detector.amplifiers}) for k in ("x0", "y0"))
    by, bx = next(iter(surveys.values())).blocks.shape
    picture = np.full((by * len(ys), bx * len(xs)), np.nan, np.float32)
    for amp in detector.amplifiers:
        j, i = ys.index(amp.y0) * by, xs.index(amp.x0) * bx
        picture[j : j + by, i : i + bx] = surveys[amp.name].blocks
    return picture


def _of_amplifier(where: I8 | None, amp: Amplifier, detector: Detector) -> I8 | None:
    """Those of some pixels (flat indices) that are the amplifier's."""
    if where is None:
        return None
    y, x = np.divmod(where, detector.nx)
    return where[(y >= amp.y0) & (y < amp.y0 + amp.ny) & (x >= amp.x0) & (x < amp.x0 + amp.nx)]


def _median(values: Iterable[float] | NDArray[np.floating]) -> float:
    """Median of the finite values; NaN if there are none."""
    known = np.fromiter(values, float)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if known.size else math.nan


def _mean(values: F8) -> float:
    """Mean of the finite values; NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(np.mean(known)) if known.size else math.nan


def _beyond(means: F8, noise2: float) -> float:
    """Rms of means about their mean, less the noise that they have; NaN where none is finite."""
    known = means[np.isfinite(means)]
    return math.sqrt(max(float(np.var(known)) - noise2, 0.0)) if known.size else math.nan
