"""The truth about what changed in one detector-visit. Nothing but the scoring reads it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.region import Region
from apflow.simulate.ephemerides import ss_object_ids
from apflow.simulate.optics import mixture_neff, moffat, psf_radius_px
from apflow.simulate.scene import Scene, draw_points, trail_points
from apflow.simulate.sky import MARGIN_ARCSEC, change_flux, change_position, make_sky
from apflow.simulate.templates import NOISE_RATIO, saturation_njy, template_fwhm_arcsec

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]

#: Changes this near to the edge of the CCD, or nearer, are not on good pixels.
EDGE_PX = 5
#: The core, all of whose pixels must be good.
CORE_PX = 2.0
#: A difference fainter than this share of the nominal 5-sigma depth is no change.
_LEAST = 0.02
#: Half of the stamp on which a flux is predicted.
_HALF_PX = 16


def truth_table(scene: Scene, expected: F4, flat: F4, bad: NDArray[np.bool_]) -> pd.DataFrame:
    """True changes inside the detector or up to `EDGE_PX` outside.

    Parameters
    ----------
    scene : `Scene`
    expected : `numpy.ndarray`, (ny, nx)
        Mean electrons, the variance of the photon noise.
    flat : `numpy.ndarray`, (ny, nx)
    bad : `numpy.ndarray`, (ny, nx), bool
        Defects, full pixels (bleeds included) and pixels hit by cosmic rays.

    Returns
    -------
    truth : `pandas.DataFrame`
        visit, detector; truth_id, stable over visits; kind (variable,
        transient, hosted, mover, trail); ra, dec (ICRS degrees) at mid-visit;
        x, y (pixels); flux_njy, signed, visit minus template; snr, predicted
        (see `_predicted_sigma`); good, whether every pixel of the core is;
        ssObjectId, null where nobody predicts it;
        trail_length_arcsec and trail_angle_deg (East of North) of the motion
        while the shutter was open.
    """
    scenario, state = scene.scenario, scene.state
    region = scene.camera.region(scene.detector, state.ra_deg, state.dec_deg, state.rotation_deg)
    changes = make_sky(scenario).changes_in_sight(region)
    begin = scene.opened_s(0)
    open_s = scene.opened_s(len(state.shutter_s) - 1) + state.shutter_s[-1] - begin
    ra, dec = change_position(changes, begin, open_s / 2)
    x, y = scene.wcs.sky_to_pixel(ra, dec)
    flux = change_flux(changes, begin + open_s / 2) - changes["template_flux"].to_numpy()
    ny, nx = expected.shape
    keep = (x > -EDGE_PX) & (x < nx - 1 + EDGE_PX) & (y > -EDGE_PX) & (y < ny - 1 + EDGE_PX)
    keep &= np.abs(flux) > _LEAST * scenario.depth_njy
    changes, ra, dec, x, y, flux = changes[keep], ra[keep], dec[keep], x[keep], y[keep], flux[keep]
    start, stop = (scene.wcs.sky_to_pixel(*change_position(changes, begin, t)) for t in (0.0, open_s))
    sigma = _predicted_sigma(scene, expected, flat, np.stack([*start, *stop]))
    rate = np.hypot(changes["rate_ra"], changes["rate_dec"])
    return pd.DataFrame(
        {
            "visit": scene.visit.visit,
            "detector": scene.detector.id,
            "truth_id": changes["truth_id"].to_numpy(),
            "kind": changes["kind"].to_numpy(),
            "ra": ra,
            "dec": dec,
            "x": x,
            "y": y,
            "flux_njy": flux,
            "snr": np.abs(flux) / sigma,
            "good": _on_good_pixels(bad, x, y) & ~_saturated_in_template(scene, region, x, y),
            "ssObjectId": ss_object_ids(scenario, changes),
            "trail_length_arcsec": (rate * open_s).to_numpy(),
            "trail_angle_deg": np.degrees(np.arctan2(changes["rate_ra"], changes["rate_dec"])).to_numpy() % 360.0,
        }
    )


def _predicted_sigma(scene: Scene, expected: F4, flat: F4, ends: F8) -> F8:
    """Error of the optimal flux of each change, nJy; infinite for what leaves no light on the CCD.

    sqrt(sum(P^2 V)) / sum(P^2) with P the true profile (the PSF, drawn along
    the trail) and V the variance of the visit (photons of everything in the
    pixel, read noise), increased by the template's noise after matching.
    `ends` (4, n) is where each change starts (x, y) and stops (x, y).
    """
    shutter_s = scene.state.shutter_s
    njy = scene.scenario.electrons_per_njy * scene.state.transparency * sum(shutter_s)
    read2 = scene.detector.amplifiers[0].read_noise ** 2
    sigma = np.full(ends.shape[1], np.inf)
    for i, end in enumerate(ends.T):
        part, profile = _profile(scene, end)
        squared = profile.astype(float) ** 2
        if squared.sum() > 0:
            # Each snap brings its own photons and its own read noise.
            variance = (squared * (expected[part] + read2)).sum() * len(shutter_s)
            noise = np.sqrt(variance * (1 + _template_share(scene, end[0], end[1])))
            sigma[i] = noise / squared.sum() / (njy * float(np.median(flat[part])))
    return sigma


def _profile(scene: Scene, end: F8) -> tuple[tuple[slice, slice], F4]:
    """Where a change of unit flux puts its light: the part of the CCD, and its image there."""
    low = np.maximum(np.floor(np.minimum(end[:2], end[2:])).astype(int) - _HALF_PX, 0)
    high = np.ceil(np.maximum(end[:2], end[2:])).astype(int) + _HALF_PX + 1
    ny, nx = scene.detector.shape
    part = (slice(low[1], min(high[1], ny)), slice(low[0], min(high[0], nx)))
    profile = np.zeros((part[0].stop - low[1], part[1].stop - low[0]), np.float32)
    points = trail_points(*(np.array([v]) for v in (*(end - np.tile(low, 2)), 1.0)))
    draw_points(profile, scene.psf.shifted(low[0], low[1]), *points, 1e-7)
    return part, profile


def _template_share(scene: Scene, x: float, y: float) -> float:
    """Variance that the matched template adds to a PSF flux, relative to the visit's own.

    Matching convolves the sharper template with a kernel, here a Gaussian that
    makes up for the difference of the widths; a wider template is left alone.
    """
    fwhm = float(scene.psf.at(np.array([x]), np.array([y]))[0][0]) * scene.camera.pixel_scale_arcsec
    blur = max(0.0, 1 - (template_fwhm_arcsec(scene.scenario) / fwhm) ** 2) / (8 * np.log(2))
    return NOISE_RATIO**2 * mixture_neff(*moffat()) / mixture_neff(*moffat(), blur)


def _on_good_pixels(bad: NDArray[np.bool_], x: F8, y: F8) -> NDArray[np.bool_]:
    """Whether the centre is well inside and no pixel within `CORE_PX` of it is bad."""
    ny, nx = bad.shape
    inside = (x >= EDGE_PX) & (x <= nx - 1 - EDGE_PX) & (y >= EDGE_PX) & (y <= ny - 1 - EDGE_PX)
    reach = int(np.ceil(CORE_PX))
    good = inside.copy()
    for i in np.flatnonzero(inside):
        column, row = round(x[i]), round(y[i])
        dy, dx = np.mgrid[row - reach : row + reach + 1, column - reach : column + reach + 1]
        core = np.hypot(dx - x[i], dy - y[i]) <= CORE_PX
        good[i] = not bad[dy[core], dx[core]].any()
    return np.asarray(good)


def _saturated_in_template(scene: Scene, region: Region, x: F8, y: F8) -> NDArray[np.bool_]:
    """Whether the core touches the full pixels of a star in the template."""
    scenario = scene.scenario
    stars = make_sky(scenario).stars(region, MARGIN_ARCSEC)
    fwhm_px = template_fwhm_arcsec(scenario) / scene.camera.pixel_scale_arcsec
    radius = psf_radius_px(saturation_njy(scenario) / stars["flux"].to_numpy(), fwhm_px)
    bright = radius > 0
    sx, sy = scene.wcs.sky_to_pixel(stars["ra"].to_numpy()[bright], stars["dec"].to_numpy()[bright])
    distance = np.hypot(x[:, None] - sx, y[:, None] - sy)
    return np.asarray((distance < radius[bright] + CORE_PX + 1).any(1))
