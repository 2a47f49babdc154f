"""Close pairs come apart with the right fluxes, and their errors are their scatter."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apflow.model.exposure import Mask
from apflow.pixels.deblend import MOST, box_about, fit_points, groups
from apflow.pixels.detect import detect, mark
from apflow.pixels.forced import psf_stack
from apflow.pixels.measure import measure
from tests.pixels.differences import FWHM, SIGMA, difference, points, pulls_are_noise


@pytest.mark.parametrize("apart", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("second", [40.0, -40.0])
def test_two_points_fitted_together_scatter_as_their_errors_say(apart, second):
    x, y, snr = np.array([30.3, 30.3 + apart * FWHM]), np.array([32.2, 32.2]), np.array([50.0, second])
    signal, pulls, rng = points(64, x, y, snr), [], np.random.default_rng(5)
    for seed in range(60):
        d, _ = difference(signal, seed=seed)
        psf = psf_stack(d.exposure.psf, x, y)[0]
        start = np.stack([x, y]) + rng.uniform(-0.7, 0.7, (2, 2))
        fit = fit_points(d.exposure, psf, *start, box_about(*start, 10, (64, 64)), 4.0)
        assert fit.ok and fit.chi2 / fit.ndata == pytest.approx(1.0, abs=0.25)
        error = np.sqrt(np.diag(fit.covariance))
        pulls.append(np.stack([fit.flux - SIGMA * snr, fit.x - x, fit.y - y], 1).ravel() / error)
    pulls_are_noise(np.array(pulls), 60)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("apart", [1.0, 1.5, 2.0])
def test_a_close_pair_is_two_sources_of_one_blend(sign, apart):
    x, y = [60.2, 60.2 + apart * FWHM * np.cos(0.6)], [64.3, 64.3 + apart * FWHM * np.sin(0.6)]
    snr = [sign * 60.0, sign * 45.0]
    split, pulls = 0, []
    for seed in range(10):
        d, science = difference(points(128, x, y, snr), seed=seed)
        m = measure(d, science, detect(d, 5.0))
        if len(m) != 2:
            continue
        split += 1
        m = m.iloc[np.argsort(m["x"])]
        assert m["parentDiaSourceId"].nunique() == 1 and (m["parentDiaSourceId"] > 2).all()
        assert (m["isNegative"] == (sign < 0)).all() and not m["isDipole"].any()
        assert (m["psfChi2"] / m["psfNdata"]).max() < 1.5
        pulls.append((m["psfFlux"] - SIGMA * np.array(snr)) / m["psfFluxErr"])
    assert split >= 9
    assert np.abs(pulls).max() < 4.5 and np.std(pulls) == pytest.approx(1.0, abs=0.5)


def test_single_sources_are_not_split_and_have_no_parent():
    xy = 20.0 + 30.37 * np.arange(8)
    x, y = (c.ravel().tolist() for c in np.meshgrid(xy, xy))
    snr = np.random.default_rng(1).uniform(10, 200, 64)
    d, science = difference(points(256, x, y, snr))
    m = measure(d, science, detect(d, 5.0))
    assert len(m) == 64
    assert m["parentDiaSourceId"].isna().all() and not m["isDipole"].any() and m["trailFlux"].isna().all()
    assert not m["shape_flag"].any()
    # A blend's chi^2 is that of a single source.
    assert m["psfChi2"].sum() / m["psfNdata"].sum() == pytest.approx(1.0, abs=0.03)


def test_a_crowd_too_large_is_measured_one_by_one_and_marked():
    x = [40.0 + 7.0 * (i % 4) for i in range(12)]
    y = [40.0 + 7.0 * (i // 4) for i in range(12)]
    d, science = difference(points(96, x, y, [60.0] * 12))
    peaks = detect(d, 5.0)
    assert len(peaks) > MOST
    m = measure(d, science, peaks)
    assert len(m) == len(peaks) and m["parentDiaSourceId"].isna().all()
    marked = mark(d, peaks).exposure.mask
    assert ((marked[peaks["y"], peaks["x"]] & Mask.NOT_DEBLENDED) != 0).all()
    pair, _ = difference(points(96, [40.0, 47.0], [40.0, 40.0], [60.0] * 2))
    assert not (mark(pair, detect(pair, 5.0)).exposure.mask & Mask.NOT_DEBLENDED).any()


def test_masked_pixels_are_left_out_of_the_fit():
    x, y, snr = [60.0, 66.0], [64.0, 64.0], [80.0, 60.0]
    d, science = difference(points(128, x, y, snr))
    mask = d.exposure.mask.copy()
    mask[65, 58:70] |= Mask.BAD
    image = np.where(mask != 0, np.float32(np.nan), d.exposure.image)
    d = dataclasses.replace(d, exposure=dataclasses.replace(d.exposure, image=image, mask=mask))
    m = measure(d, science, detect(d, 5.0))
    np.testing.assert_allclose(m["psfFlux"], SIGMA * np.array(snr), atol=5 * m["psfFluxErr"].max())


def test_groups_are_chains_of_neighbours():
    x, y = np.array([0.0, 9.0, 18.0, 60.0]), np.zeros(4)
    number = groups(x, y, FWHM)
    assert number[0] == number[1] == number[2] != number[3]
    assert len(groups(x[:0], y[:0], FWHM)) == 0
