"""Template cells: the unchanged sky, deeper and sharper than a visit, on grids of their own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from apflow.model.exposure import Exposure, Mask
from apflow.model.psf import Psf
from apflow.model.skymap import Cell, SkyMap
from apflow.simulate.optics import psf_image
from apflow.simulate.scenario import Scenario, generator
from apflow.simulate.scene import constant_psf, draw_galaxies, draw_points
from apflow.simulate.sky import MARGIN_ARCSEC, make_sky

F4 = NDArray[np.float32]

#: Sigma of a template's pixels over that of a nominal 30 s visit's: nine visits coadded.
NOISE_RATIO = 1 / 3
_SEEING_RATIO = 0.9
_NOMINAL_S = 30.0
#: Template cells are fetched this far around a detector.
_MARGIN_ARCSEC = 10.0
_PSF_PX = 33


def skymap(scenario: Scenario) -> SkyMap:
    """The tessellation for the size of the scenario's detectors."""
    scale = round(scenario.load_camera().pixel_scale_arcsec, 2)
    if scenario.size is not None and scenario.size <= 1024:
        return SkyMap(cell_px=400, border_px=40, pixel_scale_arcsec=scale)
    return SkyMap(cell_px=2000, border_px=100, pixel_scale_arcsec=scale)


def cells(scenario: Scenario, detector_ids: Iterable[int]) -> list[Cell]:
    """Cells that overlap some detectors, margins included, each once, by tract and patch."""
    camera, tessellation = scenario.load_camera(), skymap(scenario)
    found: dict[tuple[int, int], Cell] = {}
    for detector_id in detector_ids:
        region = camera.region(
            camera.detector(detector_id), scenario.ra_deg, scenario.dec_deg, scenario.rotation_deg, _MARGIN_ARCSEC
        )
        found |= {(cell.tract, cell.patch): cell for cell in tessellation.cells(region)}
    return [found[key] for key in sorted(found)]


def template_fwhm_arcsec(scenario: Scenario) -> float:
    """Mean effective FWHM of the templates, arcsec."""
    return _SEEING_RATIO * scenario.load_filter().fwhm


def saturation_njy(scenario: Scenario) -> float:
    """Surface brightness (nJy a pixel) at which the visits behind a template saturate."""
    camera = scenario.load_camera()
    well = min(d.amplifiers[0].saturation * d.amplifiers[0].gain for d in camera.detectors)
    return (well - _sky_electrons(scenario)) / (scenario.electrons_per_njy * _NOMINAL_S)


def _sky_electrons(scenario: Scenario) -> float:
    """Sky of a nominal visit, electrons a pixel."""
    physical, camera = scenario.load_filter(), scenario.load_camera()
    return float(10 ** (0.4 * (physical.zero_point - physical.sky)) * camera.pixel_scale_arcsec**2 * _NOMINAL_S)


def render_cell(scenario: Scenario, cell: Cell) -> Exposure:
    """A template cell in nJy, with variance, mask and its true PSF.

    Full pixels are flat and marked SAT; a ragged rim, which neighbours cover
    with their borders, has no data (NaN, NO_DATA, infinite variance).
    """
    rng = generator(scenario, "cell", cell.tract, cell.patch)
    scale = cell.wcs.pixel_scale_arcsec
    fwhm_px = template_fwhm_arcsec(scenario) / scale * float(rng.uniform(0.97, 1.03))
    e1, e2 = (float(e) for e in rng.uniform(-0.02, 0.02, 2))
    njy = scenario.electrons_per_njy * _NOMINAL_S
    amp = scenario.load_camera().detectors[0].amplifiers[0]
    background = (_sky_electrons(scenario) + amp.read_noise**2) / njy**2
    psf, sky, region = constant_psf(fwhm_px, e1, e2), make_sky(scenario), cell.region
    image = np.zeros(cell.shape, np.float32)
    floor = 0.02 * float(np.sqrt(background))

    stars = sky.stars(region, MARGIN_ARCSEC)
    changes = sky.changes(region, MARGIN_ARCSEC).rename(columns={"flux": "flux_now", "template_flux": "flux"})
    for points in (stars, changes):
        x, y = cell.wcs.sky_to_pixel(points["ra"].to_numpy(), points["dec"].to_numpy())
        draw_points(image, psf, x, y, points["flux"].to_numpy(), floor)
    draw_galaxies(image, psf, cell.wcs, sky.galaxies(region, MARGIN_ARCSEC), 1.0, floor)

    variance = ((background + image / np.float32(njy)) * NOISE_RATIO**2).astype(np.float32)
    image += rng.standard_normal(image.shape, np.float32) * np.sqrt(variance)
    mask = np.zeros(cell.shape, np.int32)
    limit = saturation_njy(scenario)
    mask[image >= limit] |= Mask.SAT
    np.minimum(image, np.float32(limit), out=image)
    rim = _rim(cell.shape, cell.border_px, rng)
    image[rim], variance[rim] = np.nan, np.inf
    mask[rim] |= Mask.NO_DATA
    terms = psf_image(fwhm_px, e1, e2, _PSF_PX)[None]
    return Exposure(image, variance, mask, "nJy", cell.wcs, Psf(terms, cell.shape))


def _rim(shape: tuple[int, int], border_px: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Pixels without data: a slanted strip along each side, at most a sixth of the border wide."""
    ny, nx = shape
    y, x = np.mgrid[:ny, :nx].astype(np.float32)
    widths = rng.uniform(0, border_px / 6, 8).astype(np.float32)
    u, v = x / (nx - 1), y / (ny - 1)
    low_x, high_x = widths[0] + (widths[1] - widths[0]) * v, widths[2] + (widths[3] - widths[2]) * v
    low_y, high_y = widths[4] + (widths[5] - widths[4]) * u, widths[6] + (widths[7] - widths[6]) * u
    return np.asarray((x < low_x) | (x > nx - 1 - high_x) | (y < low_y) | (y > ny - 1 - high_y))
