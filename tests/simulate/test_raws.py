"""Raw images: layout, header, photometry, noise and blemishes."""

import numpy as np
import pytest

from apflow.io.fits import read_raw, write_raw
from apflow.simulate.calibs import response
from apflow.simulate.optics import NEFF
from apflow.simulate.raws import expected_electrons, render_raw
from apflow.simulate.scenario import NJY_MAG, Scenario, conditions, visits
from apflow.simulate.scene import see
from tests.simulate.build import njy_of_electron, reduce_raw

SCENARIO = Scenario(size=256, detectors=(94,))
VISIT = visits(SCENARIO)[0]


@pytest.mark.parametrize("camera", ["lsstcam", "decam"])
def test_segments_are_laid_out_as_the_camera_says(camera):
    scenario = Scenario(camera=camera, size=256, detectors=(10,))
    raw, _ = render_raw(scenario, visits(scenario)[0], 0, 10)
    amplifiers = scenario.load_camera().detector(10).amplifiers
    assert set(raw.segments) == {amp.segment for amp in amplifiers}
    for amp in amplifiers:
        segment = raw.segments[amp.segment]
        assert segment.shape == amp.raw_shape
        assert segment.dtype == np.uint16
        overscan = segment[: amp.ny, amp.prescan + amp.nx :].astype(float)
        assert np.diff(overscan, axis=1).std() / np.sqrt(2) == pytest.approx(amp.read_noise / amp.gain, rel=0.05)
        assert segment[: amp.ny, amp.prescan : amp.prescan + amp.nx].mean() > overscan.mean() + 100


def test_the_file_gives_back_what_the_header_tells(tmp_path):
    raw, _ = render_raw(SCENARIO, VISIT, 0, 94)
    write_raw(tmp_path / "raw.fits", raw)
    again = read_raw(tmp_path / "raw.fits")
    assert again.info == raw.info
    assert again.info.group == VISIT.group
    assert again.info.exposure == VISIT.visit
    assert again.info.exposure_time_s == conditions(SCENARIO, VISIT).shutter_s[0]
    assert again.header["EXPTIME"] == VISIT.exposure_time_s
    assert again.header["CHIPID"] == "R22_S11"
    assert (again.header["RA"], again.header["DEC"]) == (VISIT.ra_deg, VISIT.dec_deg)


def test_snaps_share_a_group_and_follow_one_another():
    scenario = Scenario(size=256, detectors=(94,), nsnaps=2)
    visit = visits(scenario)[0]
    infos = [render_raw(scenario, visit, snap, 94)[0].info for snap in (0, 1)]
    assert infos[0].group == infos[1].group
    assert infos[1].exposure == infos[0].exposure + 1
    assert infos[1].mjd_begin_tai > infos[0].mjd_end_tai
    assert [info.snap for info in infos] == [1, 2]


def test_signature_removal_gives_back_the_sky():
    raw, _ = render_raw(SCENARIO, VISIT, 0, 94)
    scene = see(SCENARIO, VISIT, 94)
    ccd, expected = response(SCENARIO, 94), expected_electrons(scene, 0)
    difference = reduce_raw(SCENARIO, raw, 94) - (expected - ccd.dark * raw.info.exposure_time_s) / ccd.flat
    good = ~ccd.defects & (expected < 20_000)
    pull = difference[good] / np.sqrt(expected[good] + 5.4**2)
    assert np.median(pull) == pytest.approx(0, abs=0.02)
    assert np.percentile(pull, [16, 84]) == pytest.approx([-1, 1], abs=0.03)


def test_an_image_does_not_depend_on_what_was_rendered_before():
    first, truth = render_raw(SCENARIO, VISIT, 0, 94)
    render_raw(SCENARIO, visits(SCENARIO)[1], 0, 30)
    again, truth_again = render_raw(SCENARIO, VISIT, 0, 94)
    assert all((first.segments[name] == again.segments[name]).all() for name in first.segments)
    assert truth.equals(truth_again)


@pytest.mark.parametrize("band", "ugrizy")
@pytest.mark.parametrize("detector_id", [94, 0])
def test_a_visit_reaches_the_depth_of_smtn_002(band, detector_id):
    scenario = Scenario(size=256, physical_filter=band, detectors=(detector_id,))
    for index in range(2):
        visit = visits(scenario)[index]
        raw, _ = render_raw(scenario, visit, 0, detector_id)
        image = reduce_raw(scenario, raw, detector_id)
        # Neighbours' differences see the noise and hardly the sources.
        step = np.diff(image, axis=1)
        sigma = 1.4826 * np.median(np.abs(step - np.median(step))) / np.sqrt(2)
        camera, state = scenario.load_camera(), conditions(scenario, visit)
        fwhm_px = np.median(see(scenario, visit, detector_id).psf.at([127.5], [127.5])[0])
        noise2 = NEFF * fwhm_px**2 * sigma**2
        limit = 12.5 + np.sqrt(12.5**2 + 25 * noise2)  # F^2 / 25 = F + noise^2, electrons
        depth = NJY_MAG - 2.5 * np.log10(limit * njy_of_electron(scenario, index))
        assert depth == pytest.approx(camera.filter(band).depth, abs=0.3), (state.sky_mag, fwhm_px)


def test_bright_stars_saturate_and_bleed_along_columns():
    scenario = Scenario(size=1024, detectors=(94,), seed=3)
    detector = scenario.load_camera().detector(94)
    visit = visits(scenario)[0]
    raw, _ = render_raw(scenario, visit, 0, 94)
    image = reduce_raw(scenario, raw, 94) * response(scenario, 94).flat
    expected = expected_electrons(see(scenario, visit, 94), 0)
    full = image > 0.99 * detector.amplifiers[0].saturation * detector.amplifiers[0].gain
    overflowing = expected > 1.2 * detector.amplifiers[0].saturation * detector.amplifiers[0].gain
    assert overflowing.any()
    assert full[overflowing].all()
    # The charge spreads up and down, not sideways.
    assert full.any(1).sum() > overflowing.any(1).sum()
    nearly = expected > 0.97 * detector.amplifiers[0].saturation * detector.amplifiers[0].gain
    assert not (full.any(0) & ~nearly.any(0)).any()


def test_cosmic_rays_come_at_a_real_rate():
    scenario = Scenario(size=1024, detectors=(94,))
    hits = []
    for visit in visits(scenario):
        raw, _ = render_raw(scenario, visit, 0, 94)
        scene = see(scenario, visit, 94)
        ccd, expected = response(scenario, 94), expected_electrons(scene, 0)
        excess = reduce_raw(scenario, raw, 94) - (expected - ccd.dark * raw.info.exposure_time_s) / ccd.flat
        near = ~ccd.defects & (expected < 1.2 * np.median(expected))
        hits.append((near & (excess > 10 * np.sqrt(expected))).sum())
    # 2.6 particles an image of 1.05 cm^2 and 30 s, some pixels each.
    assert 2 <= np.mean(hits) <= 100
