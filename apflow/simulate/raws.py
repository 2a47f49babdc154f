"""Raw images: from the sky to ADU in the order of readout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.camera import Detector
from apflow.model.exposure import ImageInfo, Raw
from apflow.model.response import LINEARITY_STEP
from apflow.model.visit import Visit
from apflow.simulate.calibs import Response, response
from apflow.simulate.draw import bleed, cosmic_rays
from apflow.simulate.scenario import SECONDS, Scenario, generator, iso_tai, visit_index
from apflow.simulate.scene import Scene, draw_galaxies, draw_points, edge_mm, see, trail_points
from apflow.simulate.sky import MARGIN_ARCSEC, change_flux, change_position, make_sky
from apflow.simulate.truth import truth_table

F4 = NDArray[np.float32]

#: Full well over the camera's saturation level, so that a full pixel always reads as saturated.
_FULL_WELL = 1.01
_AIRMASS = 1.1


def render_raw(scenario: Scenario, visit: Visit, snap: int, detector_id: int) -> tuple[Raw, pd.DataFrame]:
    """One raw image and the true changes in it.

    Parameters
    ----------
    scenario : `Scenario`
    visit : `Visit`
        One of the scenario's visits.
    snap : `int`
        0 or 1.
    detector_id : `int`

    Returns
    -------
    raw : `Raw`
    truth : `pandas.DataFrame`
        See `apflow.simulate.truth.truth_table`. Flux, position and S/N are
        those of the whole visit; `good` looks at this snap's pixels.
    """
    scene = see(scenario, visit, detector_id)
    ccd = response(scenario, detector_id)
    rng = generator(scenario, "raw", visit_index(scenario, visit), snap, detector_id)
    expected = expected_electrons(scene, snap)
    electrons = rng.standard_normal(expected.shape, np.float32)
    electrons *= np.sqrt(expected)
    electrons += expected
    tracks = cosmic_rays(electrons.shape, scene.state.shutter_s[snap], scene.camera.pixel_mm / 10.0, rng)
    bad = ccd.defects | add_tracks(electrons, tracks)
    bad |= saturate(electrons, scene.detector)
    raw = Raw(read_out(electrons, scene.detector, ccd, rng), *_describe(scene, snap))
    return raw, truth_table(scene, expected, ccd.flat, bad)


def expected_electrons(scene: Scene, snap: int, *, changed: bool = True) -> F4:
    """Mean electrons (ny, nx) in each pixel before saturation: sources, sky and dark current.

    Without `changed`, what the same exposure would hold of the template's sky.
    """
    scenario, state, camera = scene.scenario, scene.state, scene.camera
    ccd = response(scenario, scene.detector.id)
    exposure_s = state.shutter_s[snap]
    electrons_per_njy = scenario.electrons_per_njy * state.transparency * exposure_s
    sky = sky_level(scene, exposure_s)
    image = np.zeros(scene.detector.shape, np.float32)
    floor = 0.02 * float(np.sqrt(sky.mean()))
    region = camera.region(scene.detector, state.ra_deg, state.dec_deg, state.rotation_deg)
    field = make_sky(scenario)

    stars = field.stars(region, MARGIN_ARCSEC)
    x, y = scene.wcs.sky_to_pixel(stars["ra"].to_numpy(), stars["dec"].to_numpy())
    draw_points(image, scene.psf, x, y, stars["flux"].to_numpy() * electrons_per_njy, floor)
    draw_galaxies(image, scene.psf, scene.wcs, field.galaxies(region, MARGIN_ARCSEC), electrons_per_njy, floor)

    changes = field.changes_in_sight(region)
    begin, opened = scene.opened_s(0), scene.opened_s(snap) - scene.opened_s(0)
    ends = [scene.wcs.sky_to_pixel(*change_position(changes, begin, opened + t)) for t in (0.0, exposure_s)]
    flux = change_flux(changes, begin + opened + exposure_s / 2) if changed else changes["template_flux"].to_numpy()
    draw_points(image, scene.psf, *trail_points(*ends[0], *ends[1], flux * electrons_per_njy), floor)

    image += sky
    image *= ccd.flat
    image += ccd.dark * np.float32(exposure_s)
    return image


def sky_level(scene: Scene, exposure_s: float) -> F4:
    """Electrons a pixel of the sky, a plane over the CCD."""
    camera, state = scene.camera, scene.state
    ny, nx = scene.detector.shape
    rate = 10 ** (0.4 * (scene.scenario.load_filter().zero_point - state.sky_mag)) * camera.pixel_scale_arcsec**2
    u, v = camera.focal_plane(scene.detector, np.array([0, nx - 1, 0]), np.array([0, 0, ny - 1]))
    edge = edge_mm(camera)
    corner = 1 + state.sky_slope[0] * u / edge + state.sky_slope[1] * v / edge
    x, y = (np.linspace(0, 1, n, dtype=np.float32) for n in (nx, ny))
    plane = corner[0] + (corner[1] - corner[0]) * x + ((corner[2] - corner[0]) * y)[:, None]
    return np.asarray(rate * exposure_s * plane, np.float32)


def add_tracks(electrons: F4, points: F4) -> NDArray[np.bool_]:
    """Add the charge of `~apflow.simulate.draw.cosmic_rays` in place; returns the pixels hit."""
    hit = np.zeros(electrons.shape, bool)
    ny, nx = electrons.shape
    x, y = np.rint(points[:, 0]).astype(int), np.rint(points[:, 1]).astype(int)
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    np.add.at(electrons, (y[inside], x[inside]), points[inside, 2])
    hit[y[inside], x[inside]] = True
    return hit


def saturate(electrons: F4, detector: Detector) -> NDArray[np.bool_]:
    """Limit pixels to full well and let the rest bleed along the columns, in place; returns the full pixels."""
    full = np.zeros(electrons.shape, bool)
    for y0, ny in sorted({(a.y0, a.ny) for a in detector.amplifiers}):
        amp = next(a for a in detector.amplifiers if a.y0 == y0)
        well = _FULL_WELL * amp.saturation * amp.gain
        bleed(electrons, well, y0, y0 + ny)
        full[y0 : y0 + ny] = electrons[y0 : y0 + ny] >= 0.999 * well
    return full


def read_out(
    electrons: F4, detector: Detector, ccd: Response, rng: np.random.Generator
) -> dict[str, NDArray[np.uint16]]:
    """ADU of each segment, prescan and overscans included."""
    segments = {}
    lit = zip(detector.amplifiers, ccd.gains, ccd.levels, _signals(electrons, detector, ccd), strict=True)
    for amp, gain, level, signals in lit:
        adu = rng.standard_normal(amp.raw_shape, np.float32)
        adu *= np.float32(amp.read_noise / gain)
        # The level wanders by an ADU or two while the rows go out; overscan columns see the same.
        drift = rng.uniform(-1.5, 1.5) * np.sin(np.linspace(0, rng.uniform(1, 6), amp.raw_shape[0]))
        adu += (level + drift).astype(np.float32)[:, None]
        adu[: amp.ny, amp.prescan : amp.prescan + amp.nx] += signals
        np.rint(adu, out=adu)
        segments[amp.segment] = np.clip(adu, 0, 65535, out=adu).astype(np.uint16)
    return segments


def _signals(electrons: F4, detector: Detector, ccd: Response) -> F4:
    """ADU above the level, (n amplifiers, ny, nx) in the order of readout: gain, bias, linearity, crosstalk."""
    amps = detector.amplifiers
    signals = np.empty((len(amps), amps[0].ny, amps[0].nx), np.float32)
    for own, amp, gain in zip(signals, amps, ccd.gains, strict=True):
        part = np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]
        flip = np.s_[:: -1 if amp.flip_y else 1, :: -1 if amp.flip_x else 1]
        np.multiply(electrons[part][flip], np.float32(1.0 / gain), out=own)
        own += ccd.bias[part][flip]
    return respond(signals, detector)


def respond(signals: F4, detector: Detector) -> F4:
    """What amplifiers make of true signals, (n amplifiers, ny, nx): linearity of each, and crosstalk between them."""
    if detector.linearity is not None:
        steps = np.arange(detector.linearity.shape[1], dtype=np.float32) * LINEARITY_STEP
        for own, table in zip(signals, detector.linearity, strict=True):
            if table.any():
                own[:] = np.interp(own, steps + table, steps)
    if detector.crosstalk is not None:
        signals = signals + (detector.crosstalk @ signals.reshape(len(signals), -1)).reshape(signals.shape)
    return signals


def _describe(scene: Scene, snap: int) -> tuple[ImageInfo, dict[str, Any]]:
    """What the header says: the announced pointing, and the shutter as it was measured."""
    visit, detector, camera = scene.visit, scene.detector, scene.camera
    exposure = visit.visit + snap
    begin = scene.scenario.start_mjd_tai + scene.opened_s(snap) / SECONDS
    shutter_s = scene.state.shutter_s[snap]
    info = ImageInfo(
        instrument=camera.instrument,
        detector=detector.id,
        exposure=exposure,
        group=visit.group,
        snap=snap + 1,
        physical_filter=visit.physical_filter,
        band=visit.band,
        ra_deg=visit.ra_deg,
        dec_deg=visit.dec_deg,
        rotation_deg=visit.rotation_deg,
        exposure_time_s=shutter_s,
        mjd_begin_tai=begin,
        mjd_end_tai=begin + shutter_s / SECONDS,
        airmass=_AIRMASS,
    )
    header = {
        "TELESCOP": "apflow simulator",
        "INSTRUME": info.instrument,
        "CHIPID": detector.name,
        "DETNUM": detector.id,
        "OBSID": visit.images[snap],
        "EXPID": exposure,
        "DAYOBS": exposure // 100_000,
        "SEQNUM": exposure % 100_000,
        "GROUPID": visit.group,
        "CURINDEX": snap + 1,
        "MAXINDEX": visit.nsnaps,
        "IMGTYPE": "OBJECT",
        "FILTER": visit.physical_filter,
        "BAND": visit.band,
        "RA": visit.ra_deg,
        "DEC": visit.dec_deg,
        "ROTPA": visit.rotation_deg,
        "EXPTIME": visit.exposure_time_s,
        "SHUTTIME": shutter_s,
        "SHUTOPEN": info.mjd_begin_tai,
        "SHUTCLOS": info.mjd_end_tai,
        "TIMESYS": "TAI",
        "MJD-BEG": info.mjd_begin_tai,
        "MJD-END": info.mjd_begin_tai + visit.exposure_time_s / SECONDS,
        "DATE-BEG": iso_tai(info.mjd_begin_tai),
        "DATE-END": iso_tai(info.mjd_begin_tai + visit.exposure_time_s / SECONDS),
        "AIRMASS": _AIRMASS,
    }
    return info, header
