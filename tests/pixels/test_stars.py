"""Star candidates."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial import cKDTree

from apflow.model.exposure import Mask
from apflow.pixels.background import subtract_background
from apflow.pixels.stars import find_stars, stellar_locus
from tests.pixels.night import make_night


def found_in(night, threshold=20.0):
    exposure, _, _ = subtract_background(night.exposure)
    return exposure, find_stars(exposure, threshold)


def test_isolated_stars_are_found_where_they_are():
    night = make_night(1)
    _, stars = found_in(night)
    distance, _ = cKDTree(np.stack([night.x, night.y], -1)).query(stars[["x", "y"]].to_numpy()[stellar_locus(stars)])
    assert (distance < 0.3).mean() > 0.9
    assert stellar_locus(stars).sum() >= 40
    assert (np.diff(stars["snr"].to_numpy()[:5]) <= 0).all() or stars["flux"].iloc[0] > stars["flux"].iloc[-1]


def test_sizes_of_stars_agree_and_galaxies_and_hits_fall_out():
    night = make_night(3, n_galaxies=120, n_hits=40)
    _, stars = found_in(night)
    locus = stellar_locus(stars)
    tree = cKDTree(np.stack([night.x, night.y], -1))
    is_star = tree.query(stars[["x", "y"]].to_numpy())[0] < 1.0
    assert is_star[locus].mean() > 0.85
    assert locus[is_star].mean() > 0.85
    assert stars["fwhm"][locus].std() / stars["fwhm"][locus].mean() < 0.07


def test_signal_to_noise_is_flux_over_its_scatter():
    night = make_night(5, n_stars=60, n_galaxies=0, n_hits=0, fwhm=4.1)
    exposure, stars = found_in(night, 10.0)
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, (12, *exposure.shape)) * np.sqrt(exposure.variance)
    star = stars[(stars["snr"] > 30) & (stars["snr"] < 80)].iloc[0]
    fluxes = []
    for extra in noise:
        again = find_stars(dataclasses.replace(exposure, image=(exposure.image + extra).astype(np.float32)), 10.0)
        near = np.hypot(again["x"] - star["x"], again["y"] - star["y"]) < 1.0
        fluxes += again["flux"][near].tolist()
    assert len(fluxes) >= 10
    # The width is free as well, so that the flux scatters by up to twice what a fixed width would give.
    assert 0.5 < np.std(fluxes) / (star["flux"] / star["snr"]) < 2.6


def test_masked_stars_are_left_out():
    night = make_night(1)
    exposure, stars = found_in(night)
    x, y = round(stars["x"].iloc[0]), round(stars["y"].iloc[0])
    mask = exposure.mask.copy()
    mask[y, x + 1] |= Mask.SAT
    again = find_stars(dataclasses.replace(exposure, mask=mask), 20.0)
    assert not ((np.hypot(again["x"] - x, again["y"] - y)) < 2).any()


def test_a_close_pair_is_no_candidate():
    night = make_night(1, n_stars=0, n_galaxies=0, n_hits=0)
    from tests.pixels.night import add, moffat

    image = night.exposure.image.astype(float)
    add(image, 1e5 * moffat(4.1, 30, 0, 0), 100, 100)
    add(image, 4e4 * moffat(4.1, 30, 0, 0), 108, 100)
    add(image, 1e5 * moffat(4.1, 30, 0, 0), 300, 300)
    exposure, _, _ = subtract_background(dataclasses.replace(night.exposure, image=image.astype(np.float32)))
    stars = find_stars(exposure, 20.0)
    assert len(stars) == 1 and stars["x"].iloc[0] == pytest.approx(300, abs=0.1)


def test_blank_sky_has_no_stars():
    _, stars = found_in(make_night(1, n_stars=0, n_galaxies=0, n_hits=0), 8.0)
    assert len(stars) == 0 and list(stars.columns)[:2] == ["x", "y"]
