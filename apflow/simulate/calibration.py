"""Simulated calibration exposures: bias, dark, flat, and spots of a collimated beam projector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apflow.errors import BadRequest
from apflow.io.fits import header_of
from apflow.model.calibration import Intent
from apflow.model.camera import Camera, Detector
from apflow.model.exposure import ImageInfo, Raw
from apflow.model.ids import day_obs, exposure_id, image_name
from apflow.simulate.calibs import Response, response
from apflow.simulate.draw import cosmic_rays
from apflow.simulate.raws import add_tracks, read_out, saturate
from apflow.simulate.scenario import READOUT_S, SECONDS, Scenario, generator, iso_tai

F4 = NDArray[np.float32]

#: The lamp brings the shallowest CCD of a camera half way to saturation in this time, seconds.
_LAMP_S = 5.0
#: The lamp's level differs by this part from exposure to exposure.
_LAMP_JITTER = 0.003
#: Spots of the projector on each CCD, and their radius as a part of its width.
_SPOTS, _SPOT_RADIUS = 5, 0.02


@dataclass(frozen=True)
class Faults:
    """What is wrong with a detector or with its light; nothing by default.

    Attributes
    ----------
    gain, read_noise : mapping
        Factors of the true gain (e-/ADU) and of the read noise (e-), by amplifier name.
    level_adu, bias_adu : mapping
        ADU by which all pixels of an amplifier are higher, its overscan
        included, and by which those that see light are.
    dead : `tuple` [`str`, ...]
        Amplifiers whose pixels all have one value.
    hot_pixels : `int`
        Pixels that became hot: 20 to 500 e-/s.
    lamp_tilt : `float`
        Relative change of a flat's light from the first column to the last.
    """

    gain: Mapping[str, float] = field(default_factory=dict)
    read_noise: Mapping[str, float] = field(default_factory=dict)
    level_adu: Mapping[str, float] = field(default_factory=dict)
    bias_adu: Mapping[str, float] = field(default_factory=dict)
    dead: tuple[str, ...] = ()
    hot_pixels: int = 0
    lamp_tilt: float = 0.0


def render_calibration(
    scenario: Scenario,
    intent: Intent,
    sequence: int,
    detector_id: int,
    *,
    exposure_time_s: float,
    physical_filter: str = "",
    faults: Faults = Faults(),
) -> Raw:
    """One raw calibration exposure of a CCD that responds as in the scenario's visits.

    The same arguments give the same image, in whatever order images are made.

    Parameters
    ----------
    scenario : `Scenario`
        Its camera, seed and start are used; the exposures follow one another from `first_seq` on.
    intent : `Intent`
    sequence : `int`
        Sequence number of the exposure in the scenario's day of observation.
    detector_id : `int`
    exposure_time_s : `float`
        0 for a bias.
    physical_filter : `str`
        Filter by physical name or band, of flats and of the projector.
    faults : `Faults`

    Raises
    ------
    BadRequest
        An intent with an exposure time or filter that it has not; an unknown filter, detector or amplifier.
    """
    camera = scenario.load_camera()
    detector = camera.detector(detector_id)
    info = _describe(scenario, camera, intent, sequence, detector, exposure_time_s, physical_filter)
    rng = generator(scenario, f"calibration {intent}", sequence, detector_id)
    detector, ccd = _spoil(detector, response(scenario, detector_id), faults, scenario)
    expected = ccd.dark * np.float32(exposure_time_s)
    if intent is Intent.FLAT:
        light = lamp_rate(camera) * exposure_time_s * lamp_level(scenario, sequence)
        across = 1.0 + faults.lamp_tilt * (np.arange(detector.nx) / detector.nx - 0.5)
        expected += ccd.flat * (light * across).astype(np.float32)
    elif intent is Intent.CBP:
        expected += ccd.flat * _spots(scenario, detector) * np.float32(lamp_rate(camera) * exposure_time_s)
    electrons = rng.poisson(expected).astype(np.float32)
    add_tracks(electrons, cosmic_rays(electrons.shape, exposure_time_s, camera.pixel_mm / 10.0, rng))
    saturate(electrons, detector)
    segments = read_out(electrons, detector, ccd, rng)
    for amp in detector.amplifiers:
        if amp.name in faults.dead:
            segments[amp.segment][:] = segments[amp.segment][0, 0]
    return Raw(segments, info, _header(info, camera, detector))


def lamp_rate(camera: Camera) -> float:
    """Electrons a second of the flat field lamp where sensitivity is 1, the same in all CCDs."""
    well = min(amp.saturation * amp.gain for detector in camera.detectors for amp in detector.amplifiers)
    return 0.5 * well / _LAMP_S


def lamp_level(scenario: Scenario, sequence: int) -> float:
    """The lamp's level in one exposure, about 1, the same for all CCDs."""
    return 1.0 + _LAMP_JITTER * float(generator(scenario, "lamp", sequence).standard_normal())


def _spots(scenario: Scenario, detector: Detector) -> F4:
    """Round spots of light, 1 inside, at the same places in every exposure."""
    ny, nx = detector.shape
    radius = max(3.0, _SPOT_RADIUS * nx)
    light = np.zeros(detector.shape, np.float32)
    y, x = np.ogrid[:ny, :nx]
    for u, v in generator(scenario, "spots", detector.id).uniform(0.1, 0.9, (_SPOTS, 2)):
        light[np.hypot(y - v * ny, x - u * nx) <= radius] = 1.0
    return light


def _spoil(detector: Detector, ccd: Response, faults: Faults, scenario: Scenario) -> tuple[Detector, Response]:
    """A CCD with its faults."""
    if faults == Faults():
        return detector, ccd
    names = [amp.name for amp in detector.amplifiers]
    named = {*faults.gain, *faults.read_noise, *faults.level_adu, *faults.bias_adu, *faults.dead}
    if unknown := sorted(named - set(names)):
        raise BadRequest(f"{detector.name} has no amplifier {unknown[0]!r}; accepted: {', '.join(names)}")
    bias, dark = ccd.bias.copy(), ccd.dark.copy()
    for amp in detector.amplifiers:
        bias[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx] += np.float32(faults.bias_adu.get(amp.name, 0.0))
    rng = generator(scenario, "faults", detector.id)
    hot = rng.choice(dark.size, faults.hot_pixels, replace=False)
    dark.reshape(-1)[hot] += rng.uniform(20, 500, hot.size).astype(np.float32)
    spoilt = tuple(
        replace(a, read_noise=a.read_noise * faults.read_noise.get(a.name, 1.0)) for a in detector.amplifiers
    )
    gains = ccd.gains * [faults.gain.get(name, 1.0) for name in names]
    levels = ccd.levels + [faults.level_adu.get(name, 0.0) for name in names]
    return replace(detector, amplifiers=spoilt), replace(ccd, bias=bias, dark=dark, gains=gains, levels=levels)


def _describe(
    scenario: Scenario,
    camera: Camera,
    intent: Intent,
    sequence: int,
    detector: Detector,
    exposure_time_s: float,
    physical_filter: str,
) -> ImageInfo:
    """What the header says: no pointing, and a filter only where there is light."""
    lit = intent in (Intent.FLAT, Intent.CBP)
    if (exposure_time_s > 0) == (intent is Intent.BIAS):
        accepted = "0" if intent is Intent.BIAS else "more than 0"
        raise BadRequest(f"exposure time {exposure_time_s} s of a {intent} is not accepted: {accepted}")
    if bool(physical_filter) != lit:
        raise BadRequest(f"filter {physical_filter!r} of a {intent} is not accepted: {'one' if lit else 'none'}")
    physical = camera.filter(physical_filter) if lit else None
    step_s = exposure_time_s + READOUT_S
    begin = scenario.start_mjd_tai + (sequence - scenario.first_seq) * step_s / SECONDS
    return ImageInfo(
        instrument=camera.instrument,
        detector=detector.id,
        exposure=exposure_id(day_obs(scenario.start_mjd_tai), sequence),
        group=iso_tai(begin),
        snap=1,
        physical_filter=physical.physical_filter if physical else "",
        band=physical.band if physical else "",
        ra_deg=np.nan,
        dec_deg=np.nan,
        rotation_deg=np.nan,
        exposure_time_s=exposure_time_s,
        mjd_begin_tai=begin,
        mjd_end_tai=begin + exposure_time_s / SECONDS,
        image_type=intent.image_type,
    )


def _header(info: ImageInfo, camera: Camera, detector: Detector) -> dict[str, Any]:
    return header_of(info) | {
        "TELESCOP": "apflow simulator",
        "CHIPID": detector.name,
        "OBSID": image_name(info.exposure, camera.image_prefix),
        "MAXINDEX": 1,
        "DATE-BEG": iso_tai(info.mjd_begin_tai),
        "DATE-END": iso_tai(info.mjd_end_tai),
    }
