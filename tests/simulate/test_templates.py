"""Templates, calibs and the reference catalogue."""

import numpy as np
import pytest

from apflow.model.exposure import Mask
from apflow.model.sky import separation_arcsec
from apflow.simulate.calibs import render_calibs, response
from apflow.simulate.optics import psf_image
from apflow.simulate.reference import reference_catalog
from apflow.simulate.scenario import NJY_MAG, Scenario, conditions, visits
from apflow.simulate.sky import make_sky
from apflow.simulate.templates import cells, render_cell, skymap
from tests.simulate.build import psf_flux

SCENARIO = Scenario(detectors=(94,))


@pytest.fixture(scope="module")
def cell():
    return cells(SCENARIO, [94])[1]


@pytest.fixture(scope="module")
def template(cell):
    return render_cell(SCENARIO, cell)


def test_cells_cover_the_detectors_wherever_the_telescope_points():
    camera, found = SCENARIO.load_camera(), cells(SCENARIO, [94, 95, 94])
    assert len({(c.tract, c.patch) for c in found}) == len(found)
    for detector_id in (94, 95):
        detector = camera.detector(detector_id)
        for visit in visits(SCENARIO):
            state = conditions(SCENARIO, visit)
            region = camera.region(detector, state.ra_deg, state.dec_deg, state.rotation_deg)
            covered = np.zeros(4, bool)
            for c in found:
                covered |= c.inner_region.contains(region.vertices[:, 0], region.vertices[:, 1])
            assert covered.all()


def test_the_tessellation_suits_the_detectors():
    assert skymap(SCENARIO).cell_px < skymap(Scenario(size=None, detectors=(94,))).cell_px
    assert skymap(Scenario(camera="decam", detectors=(10,))).pixel_scale_arcsec == pytest.approx(0.26)


def test_stars_have_their_fluxes_in_a_template(cell, template):
    stars = make_sky(SCENARIO).stars(cell.region)
    x, y = cell.wcs.sky_to_pixel(stars["ra"].to_numpy(), stars["dec"].to_numpy())
    flux = stars["flux"].to_numpy()
    inside = (x > 30) & (x < cell.shape[1] - 30) & (y > 30) & (y < cell.shape[0] - 30)
    bright = inside & (flux > 20 * SCENARIO.depth_njy) & (flux < 500 * SCENARIO.depth_njy)
    fwhm_px = 0.9 * SCENARIO.load_filter().fwhm / 0.2
    ratio = []
    for i in np.flatnonzero(bright):
        psf = psf_image(fwhm_px, 0, 0, 15, x[i] - round(x[i]), y[i] - round(y[i]))
        ratio.append(psf_flux(template.image, psf, x[i], y[i]) / flux[i])
    assert len(ratio) >= 10
    assert np.median(ratio) == pytest.approx(1, abs=0.05)


def test_a_template_is_three_times_less_noisy_than_a_visit(template):
    step = np.diff(template.image, axis=1)
    sigma = 1.4826 * np.nanmedian(np.abs(step)) / np.sqrt(2)
    assert sigma == pytest.approx(np.sqrt(np.median(template.variance)), rel=0.05)
    fwhm_px = SCENARIO.load_filter().fwhm / 0.2
    visit_sigma = SCENARIO.depth_njy / 5 / np.sqrt(2.266) / fwhm_px
    assert sigma == pytest.approx(visit_sigma / 3, rel=0.15)


def test_missing_data_lie_on_the_rim_only(cell, template):
    missing = (template.mask & Mask.NO_DATA) != 0
    assert missing.any()
    assert (np.isnan(template.image) == missing).all()
    inner = np.s_[cell.border_px // 2 : -cell.border_px // 2, cell.border_px // 2 : -cell.border_px // 2]
    assert not missing[inner].any()


def test_the_psf_of_a_template_is_sharper(template):
    assert template.psf is not None
    assert template.psf.fwhm_px() == pytest.approx(0.9 * SCENARIO.load_filter().fwhm / 0.2, rel=0.05)


def test_templates_hold_nothing_that_moves(cell):
    changes = make_sky(SCENARIO).changes(cell.region, 120.0)
    assert (changes.loc[changes["kind"].isin(["mover", "trail", "hosted"]), "template_flux"] == 0).all()


def test_cells_do_not_depend_on_order(cell, template):
    other = render_cell(SCENARIO, cells(SCENARIO, [94])[0])
    again = render_cell(SCENARIO, cell)
    assert np.array_equal(again.image, template.image, equal_nan=True)
    assert not np.array_equal(other.image, template.image, equal_nan=True)


def test_the_catalogue_has_small_errors_that_belong_to_the_star():
    camera = SCENARIO.load_camera()
    region = camera.region(camera.detector(94), 150.1, -32.0, 25.0)
    catalogue, stars = reference_catalog(SCENARIO, region), make_sky(SCENARIO).stars(region)
    assert len(catalogue) >= len(stars) > 100
    first = catalogue.iloc[: len(stars)]
    offset = separation_arcsec(first["ra"], first["dec"], stars["ra"], stars["dec"])
    assert 0.001 < np.median(offset) < 0.010
    mag = NJY_MAG - 2.5 * np.log10(stars["flux"].to_numpy())
    assert 0.001 < np.std(first["mag"].to_numpy() - mag) < 0.010
    larger = reference_catalog(SCENARIO, region.grown(20.0))
    assert np.isin(catalogue["ra"], larger["ra"]).all()


def test_masters_are_the_truth_with_little_noise():
    truth, calibs = response(SCENARIO, 94), render_calibs(SCENARIO, 94)
    assert (calibs.bias - truth.bias).std() < 1.0
    assert calibs.flat[~calibs.defects].mean() == pytest.approx(1, abs=0.05)
    assert 0.002 < calibs.flat[~calibs.defects].std() < 0.05
    assert 0 < calibs.defects.mean() < 0.005
    assert calibs.defects.sum(0).max() > 10  # a bad column
    assert calibs.dark[calibs.defects].max() > 10  # a hot pixel
    assert calibs.bias.dtype == calibs.dark.dtype == calibs.flat.dtype == np.float32


def test_detectors_differ():
    assert not np.array_equal(render_calibs(SCENARIO, 94).bias, render_calibs(SCENARIO, 95).bias)
