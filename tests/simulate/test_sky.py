"""The simulated sky: local, reproducible, and populated as the issue asks."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from apflow.model.sky import separation_arcsec
from apflow.simulate.scenario import Scenario
from apflow.simulate.sky import _patch, change_flux, change_position, make_sky

SMALL = Scenario(detectors=(94, 0, 188))


def _region(scenario, detector_id):
    camera = scenario.load_camera()
    return camera.region(camera.detector(detector_id), scenario.ra_deg, scenario.dec_deg, scenario.rotation_deg)


def test_any_region_sees_the_same_objects():
    sky, region = make_sky(SMALL), _region(SMALL, 94)
    small = sky.stars(region)
    _patch.cache_clear()
    large = sky.stars(region, 30.0)
    inside = large[region.contains(large["ra"].to_numpy(), large["dec"].to_numpy())].reset_index(drop=True)
    assert len(large) > len(small)
    pd.testing.assert_frame_equal(inside, small)


def test_ids_are_unique():
    sky, region = make_sky(SMALL), _region(SMALL, 94)
    tables = [sky.stars(region, 60.0), sky.galaxies(region, 60.0), sky.changes(region, 60.0)]
    ids = np.concatenate([table["truth_id"] for table in tables])
    assert len(np.unique(ids)) == len(ids)


@pytest.mark.parametrize("detector_id", [94, 0, 188])
def test_small_detectors_hold_enough_usable_stars_and_changes(detector_id):
    sky, region = make_sky(SMALL), _region(SMALL, detector_id)
    stars, galaxies = sky.stars(region, 5.0), sky.galaxies(region, 5.0)
    ra, dec, flux = (np.concatenate([stars[c], galaxies[c]]) for c in ("ra", "dec", "flux"))
    places = np.stack([(ra - 150.1) * np.cos(np.radians(dec)), dec], -1) * 3600.0
    usable = 0
    for i in np.flatnonzero(region.contains(stars["ra"].to_numpy(), stars["dec"].to_numpy())):
        near = [j for j in cKDTree(places).query_ball_point(places[i], 2.5) if j != i]
        snr = flux[i] / (SMALL.depth_njy / 5)
        usable += 20 < snr < 5000 and flux[near].sum() < 0.1 * flux[i]
    changes = sky.changes(region)
    snr = np.abs(change_flux(changes, 0.0) - changes["template_flux"]) / (SMALL.depth_njy / 5)
    assert usable >= 40
    assert 15 <= ((snr > 5) & (snr < 50)).sum() <= 30
    assert (changes["flux"] < changes["template_flux"]).any()


def test_full_ccds_hold_realistic_numbers():
    scenario = Scenario(size=None, detectors=(94,))
    sky, region = make_sky(scenario), _region(scenario, 94)
    assert 3000 < len(sky.stars(region)) + len(sky.galaxies(region)) < 8000
    assert 50 < len(sky.changes(region)) < 200


def test_all_kinds_of_change_occur():
    sky, region = make_sky(SMALL), _region(SMALL, 94)
    kinds = set(sky.changes(region, 120.0)["kind"])
    assert kinds == {"variable", "transient", "hosted", "mover", "trail"}


def test_movers_move_and_the_rest_stay():
    sky, region = make_sky(SMALL), _region(SMALL, 94)
    changes = sky.changes(region, 60.0)
    moved = separation_arcsec(*change_position(changes, 0.0), *change_position(changes, 37.0))
    moving = changes["kind"].isin(["mover", "trail"]).to_numpy()
    assert (moved[moving] > 0.2).all()
    assert (moved[~moving] == 0).all()
    assert (changes["template_flux"][moving] == 0).all()


def test_movers_stay_in_the_field_all_night():
    sky, region = make_sky(SMALL), _region(SMALL, 94)
    changes = sky.changes_in_sight(region)
    moving = changes[changes["kind"].isin(["mover", "trail"])]
    for begin_s in (0.0, 3_000.0, 30_000.0):
        ra, dec = change_position(moving, begin_s)
        assert (separation_arcsec(ra, dec, moving["ra"], moving["dec"]) <= 40.1).all()
        later = separation_arcsec(ra, dec, *change_position(moving, begin_s, 30.0))
        assert later == pytest.approx(30 * np.hypot(moving["rate_ra"], moving["rate_dec"]).to_numpy(), rel=1e-3)


def test_another_seed_is_another_sky():
    other = Scenario(seed=2, detectors=(94,))
    mine, theirs = make_sky(SMALL).stars(_region(SMALL, 94)), make_sky(other).stars(_region(other, 94))
    assert not np.isin(mine["ra"], theirs["ra"]).any()
