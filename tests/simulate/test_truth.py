"""The truth table agrees with what the images show."""

import numpy as np
import pandas as pd
import pytest

from apflow.simulate.calibs import response
from apflow.simulate.optics import psf_image
from apflow.simulate.raws import expected_electrons, render_raw, sky_level
from apflow.simulate.scenario import Scenario, conditions, visits
from apflow.simulate.scene import see
from apflow.simulate.templates import cells, render_cell
from tests.simulate.build import njy_of_electron, psf_flux, reduce_raw

SCENARIO = Scenario(detectors=(94, 30, 188))
VISIT = visits(SCENARIO)[0]
POINTS = ["variable", "transient"]


@pytest.fixture(scope="module")
def rendered():
    return {detector: render_raw(SCENARIO, VISIT, 0, detector) for detector in SCENARIO.detectors}


def _science_psf(detector, x, y, size):
    fwhm, e1, e2 = (float(v[0]) for v in see(SCENARIO, VISIT, detector).psf.at(np.array([x]), np.array([y])))
    return psf_image(fwhm, e1, e2, size, x - round(x), y - round(y))


def test_columns_and_identity(rendered):
    raw, truth = rendered[94]
    columns = "visit detector truth_id kind ra dec x y flux_njy snr good ssObjectId trail_length_arcsec trail_angle_deg"
    assert list(truth.columns) == columns.split()
    assert truth["truth_id"].is_unique
    assert (truth["visit"] == raw.info.exposure).all()
    x, y = see(SCENARIO, VISIT, 94).wcs.sky_to_pixel(truth["ra"].to_numpy(), truth["dec"].to_numpy())
    assert x == pytest.approx(truth["x"].to_numpy(), abs=1e-6)
    assert y == pytest.approx(truth["y"].to_numpy(), abs=1e-6)


def test_ids_are_stable_over_visits():
    second = render_raw(SCENARIO, visits(SCENARIO)[1], 0, 94)[1]
    first = render_raw(SCENARIO, VISIT, 0, 94)[1]
    both = first.merge(second, on="truth_id")
    assert len(both) > 0.8 * len(first)
    assert (both["kind_x"] == both["kind_y"]).all()
    still = ~both["kind_x"].isin(["mover", "trail"])
    assert (both.loc[still, "ra_x"] == both.loc[still, "ra_y"]).all()
    # A visit later, a variable of some hours is almost what it was.
    assert both.loc[still, "flux_njy_x"].to_numpy() == pytest.approx(both.loc[still, "flux_njy_y"].to_numpy(), rel=0.02)


def test_noiseless_difference_shows_the_true_fluxes(rendered):
    """The same exposure with and without the changes: PSF fluxes of those that stand alone."""
    for detector, (_, truth) in rendered.items():
        scene, flat = see(SCENARIO, VISIT, detector), response(SCENARIO, detector).flat
        image = expected_electrons(scene, 0) - expected_electrons(scene, 0, changed=False)
        image *= np.float32(njy_of_electron(SCENARIO)) / flat
        places = truth[["x", "y"]].to_numpy()
        alone = np.hypot(*(places[:, None] - places).T) + 1e9 * np.eye(len(truth)) > 25
        point = truth["trail_length_arcsec"] < 0.2
        checked = truth[alone.all(0) & point & truth["x"].between(13, 498) & truth["y"].between(13, 498)]
        assert len(checked) >= 5
        for row in checked.itertuples():
            flux = psf_flux(image, _science_psf(detector, row.x, row.y, 25), row.x, row.y)
            assert flux == pytest.approx(row.flux_njy, rel=0.02)


def test_science_minus_template_gives_flux_and_predicted_noise(rendered):
    """Forced PSF photometry of noisy visit and noisy template, each on its own grid, at the true positions."""
    pulls, ratios = [], []
    tiles = [(cell, render_cell(SCENARIO, cell)) for cell in cells(SCENARIO, SCENARIO.detectors)]
    for detector, (raw, truth) in rendered.items():
        science = reduce_raw(SCENARIO, raw, detector)
        science -= sky_level(see(SCENARIO, VISIT, detector), raw.info.exposure_time_s)
        science *= njy_of_electron(SCENARIO)
        inside = truth["x"].between(10, 501) & truth["y"].between(10, 501)
        for row in truth[truth["kind"].isin(POINTS) & truth["good"] & inside].itertuples():
            measured = psf_flux(science, _science_psf(detector, row.x, row.y, 13), row.x, row.y)
            cell, template = next(t for t in tiles if t[0].inner_region.contains([row.ra], [row.dec])[0])
            x, y = (float(v) for v in cell.wcs.sky_to_pixel(row.ra, row.dec))
            fwhm_px = template.psf.fwhm_px()
            psf = psf_image(fwhm_px, 0, 0, 13, x - round(x), y - round(y))
            measured -= psf_flux(template.image, psf, x, y)
            pulls.append((measured - row.flux_njy) / (abs(row.flux_njy) / row.snr))
            if row.snr > 10:
                ratios.append(measured / row.flux_njy)
    assert len(pulls) > 25
    assert np.median(ratios) == pytest.approx(1, abs=0.03)
    assert np.median(pulls) == pytest.approx(0, abs=0.6)
    assert 0.6 < 1.4826 * np.median(np.abs(pulls)) < 1.6


def test_changes_on_blemishes_are_not_good(rendered):
    for detector, (_, truth) in rendered.items():
        defects = response(SCENARIO, detector).defects
        edge = (truth["x"] < 5) | (truth["y"] < 5) | (truth["x"] > 506) | (truth["y"] > 506)
        assert not truth.loc[edge, "good"].any()
        good = truth[truth["good"]]
        assert not defects[good["y"].round().astype(int), good["x"].round().astype(int)].any()
        assert truth["good"].mean() > 0.7


def test_trails_are_as_long_as_the_motion():
    table = pd.concat([render_raw(SCENARIO, VISIT, 0, d)[1] for d in (94, 30, 188, 60, 61, 62)])
    trails = table[table["kind"] == "trail"]
    exposure_s = conditions(SCENARIO, VISIT).shutter_s[0]
    assert len(trails) >= 1
    assert trails["trail_length_arcsec"].between(2 / 24 * exposure_s * 0.99, 8 / 24 * exposure_s * 4).all()
    assert (table.loc[table["kind"] == "variable", "trail_length_arcsec"] == 0).all()
