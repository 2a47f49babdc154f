"""The PSF model and fluxes by it."""

import dataclasses

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.pixels.background import subtract_background
from apflow.pixels.point_sources import fit_point_sources
from apflow.pixels.psf import fit_psf, psf_size
from apflow.pixels.stars import find_stars, stellar_locus
from tests.pixels.night import make_night, moffat


def fitted(order=1, **changes):
    night = make_night(**{"seed": 2, "n_hits": 0, **changes})
    exposure, _, _ = subtract_background(night.exposure)
    stars = find_stars(exposure, 20.0)
    stars = stars[stellar_locus(stars)]
    return night, exposure, stars, fit_psf(exposure, stars, order)


def test_psf_is_the_stars_profile():
    _, _, _, psf = fitted(slope=0.0)
    true = moffat(4.1, psf.size // 2, 0, 0)
    assert psf.centre().sum() == pytest.approx(1.0)
    assert psf.fwhm_px() == pytest.approx(0.664 / np.sqrt((true**2).sum()), rel=0.02)
    assert np.abs(psf.centre() - true).max() < 0.03 * true.max()
    centroid = (psf.centre() * np.arange(psf.size)).sum() - psf.size // 2
    assert abs(centroid) < 0.05


@pytest.mark.parametrize("beta", [3.0, 3.5, 4.7])
def test_its_norm_holds_the_wings(beta):
    ratios = []
    for seed in (1, 2, 3):
        _, _, _, psf = fitted(seed=seed, beta=beta, slope=0.0)
        true = moffat(4.1, psf.size // 2, 0, 0, beta)
        core = np.hypot(*np.indices(true.shape) - psf.size // 2) < 4
        ratios.append(psf.centre()[core].sum() / true[core].sum())
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.012)


def test_it_follows_the_seeing_across_the_field():
    _, _, _, psf = fitted(slope=0.12, n_stars=160)
    assert psf.order == 1

    def width(x):
        return 1 / np.sqrt((psf.at(x, 256.0) ** 2).sum())

    assert width(462.0) / width(50.0) == pytest.approx(1.103, abs=0.03)


@pytest.mark.parametrize("size", [11, 21, 45])
def test_the_stamp_has_the_size_that_is_asked_for(size):
    _, exposure, stars, _ = fitted()
    other = fit_psf(exposure, stars, 1, size)
    assert other.size == size and other.at(30.0, 400.0).sum() == pytest.approx(1.0)
    assert other.centre().argmax() == size * size // 2


def test_order_falls_with_few_stars():
    _, exposure, stars, _ = fitted()
    assert fit_psf(exposure, stars[:20], order=2).order == 0
    assert fit_psf(exposure, stars[:34], order=2).order == 1


def test_fluxes_and_positions_come_back():
    night, exposure, stars, psf = fitted(n_galaxies=0, n_stars=70)
    measured = fit_point_sources(exposure, psf, stars["x"].to_numpy(), stars["y"].to_numpy()).dropna()
    distance = np.hypot(night.x[:, None] - measured["x"].to_numpy(), night.y[:, None] - measured["y"].to_numpy())
    nearest = distance.argmin(0)
    ratio = measured["flux"].to_numpy() / night.flux[nearest]
    pull = (measured["flux"].to_numpy() / np.median(ratio) - night.flux[nearest]) / measured["flux_err"].to_numpy()
    faint = night.flux[nearest] < 3e4
    assert np.median(ratio) == pytest.approx(1.0, abs=0.012)
    assert 0.6 < 1.4826 * np.median(np.abs(pull[faint])) < 1.6
    assert np.median(distance.min(0)) < 0.05


def test_a_star_near_the_border_is_not_measured():
    _, exposure, _, psf = fitted()
    assert fit_point_sources(exposure, psf, np.array([3.0]), np.array([200.0]))["flux"].isna().all()


def test_no_star_inside_is_an_error():
    _, exposure, stars, _ = fitted()
    with pytest.raises(DataError, match="no star of 1 lies"):
        fit_psf(exposure, stars[:1].assign(x=2.0))
    assert psf_size(4.1) % 2 == 1


def test_the_image_stays():
    night = make_night(1)
    exposure, _, _ = subtract_background(night.exposure)
    image = exposure.image.copy()
    stars = find_stars(exposure, 20.0)
    fit_psf(dataclasses.replace(exposure), stars[stellar_locus(stars)])
    assert (exposure.image == image).all()
