"""From objects to Gaussians on a pixel grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from apflow.model.camera import Camera, Detector
from apflow.model.visit import Visit
from apflow.model.wcs import Wcs
from apflow.simulate.draw import draw
from apflow.simulate.optics import galaxy_profile, moffat, shear
from apflow.simulate.scenario import Conditions, Scenario, conditions, opened_s, visit_index

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]


@dataclass(frozen=True)
class PsfField:
    """Effective FWHM (pixels) and ellipticity of the PSF as functions of the pixel position."""

    at: Callable[[ArrayLike, ArrayLike], tuple[F8, F8, F8]]

    def covariances(self, x: ArrayLike, y: ArrayLike) -> F8:
        """Covariances (n, m, 2, 2) of the m Gaussians of the PSF at n places, pixels squared."""
        fwhm, e1, e2 = self.at(x, y)
        return moffat()[1][:, None, None] * ((fwhm**2)[:, None, None] * shear(e1, e2))[:, None]

    def shifted(self, x0: float, y0: float) -> PsfField:
        """The same PSF for an image whose pixel (0, 0) is pixel (x0, y0) here."""
        return PsfField(lambda x, y: self.at(np.asarray(x) + x0, np.asarray(y) + y0))


@dataclass(frozen=True)
class Scene:
    """One detector of one visit, as it really was."""

    scenario: Scenario
    visit: Visit
    camera: Camera
    detector: Detector
    state: Conditions
    wcs: Wcs
    psf: PsfField

    def opened_s(self, snap: int) -> float:
        """When the shutter opens for a snap, seconds after the scenario's start."""
        return opened_s(self.scenario, visit_index(self.scenario, self.visit), snap)


def see(scenario: Scenario, visit: Visit, detector_id: int) -> Scene:
    """The scene before one detector in one visit."""
    camera, state = scenario.load_camera(), conditions(scenario, visit)
    detector = camera.detector(detector_id)
    wcs = camera.wcs(detector, state.ra_deg, state.dec_deg, state.rotation_deg)
    return Scene(scenario, visit, camera, detector, state, wcs, visit_psf(camera, detector, state))


def edge_mm(camera: Camera) -> float:
    """Distance of the furthest CCD's centre from the middle of the focal plane, mm; 1 at least."""
    return max(1.0, *(math.hypot(d.x_mm, d.y_mm) for d in camera.detectors))


def visit_psf(camera: Camera, detector: Detector, state: Conditions) -> PsfField:
    """The PSF of a visit: it changes over the focal plane."""
    edge = edge_mm(camera)

    def at(x: ArrayLike, y: ArrayLike) -> tuple[F8, F8, F8]:
        u, v = (c / edge for c in camera.focal_plane(detector, x, y))
        tilt, slope = state.fwhm_slope, state.shape_slope
        fwhm = 1 + tilt[0] * u + tilt[1] * v + tilt[2] * (u * u + v * v)
        fwhm *= state.fwhm_arcsec / camera.pixel_scale_arcsec
        return fwhm, state.shape[0] + slope[0] * u + slope[1] * v, state.shape[1] + slope[2] * u + slope[3] * v

    return PsfField(at)


def constant_psf(fwhm_px: float, e1: float, e2: float) -> PsfField:
    """A PSF that is the same everywhere."""

    def at(x: ArrayLike, y: ArrayLike) -> tuple[F8, F8, F8]:
        ones = np.ones(np.shape(x))
        return fwhm_px * ones, e1 * ones, e2 * ones

    return PsfField(at)


def draw_points(image: F4, psf: PsfField, x: F8, y: F8, flux: F8, floor: float) -> None:
    """Add point sources to an image in place."""
    if len(x):
        draw(image, x, y, flux[:, None] * moffat()[0], _packed(psf.covariances(x, y)), floor)


def draw_galaxies(image: F4, psf: PsfField, wcs: Wcs, galaxies: pd.DataFrame, scale: float, floor: float) -> None:
    """Add galaxies to an image in place, their fluxes times `scale`."""
    to_pixels = np.linalg.inv(wcs.cd) / 3600.0
    for kind, group in galaxies.groupby("kind"):
        x, y = wcs.sky_to_pixel(group["ra"].to_numpy(), group["dec"].to_numpy())
        weights, variances = galaxy_profile(str(kind))
        # The half-light radius is that of the circle with the ellipse's area.
        sky = shear(group["e1"], group["e2"]) * (group["radius"].to_numpy() ** 2)[:, None, None]
        shape = np.einsum("ij,njk,lk->nil", to_pixels, sky, to_pixels)
        psf_weights = moffat()[0]
        total = variances[:, None, None, None] * shape[:, None, None] + psf.covariances(x, y)[:, None]
        flux = group["flux"].to_numpy()[:, None, None] * scale * weights[:, None] * psf_weights
        n = len(group)
        draw(image, x, y, flux.reshape(n, -1), _packed(total.reshape(n, -1, 2, 2)), floor)


def trail_points(x0: F8, y0: F8, x1: F8, y1: F8, flux: F8) -> tuple[F8, F8, F8]:
    """Points half a pixel apart, or closer, along straight trails, which share the flux."""
    n = np.maximum(1, np.ceil(np.hypot(x1 - x0, y1 - y0) / 0.5)).astype(int)
    which = np.repeat(np.arange(len(n)), n)
    along = (np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n) + 0.5) / n[which]
    return x0[which] + along * (x1 - x0)[which], y0[which] + along * (y1 - y0)[which], flux[which] / n[which]


def _packed(covariances: F8) -> F8:
    """(n, m, 2, 2) as (n, m, 3): xx, xy, yy."""
    return np.stack([covariances[..., 0, 0], covariances[..., 0, 1], covariances[..., 1, 1]], -1)
