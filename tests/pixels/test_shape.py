"""Adaptive moments are the covariance of a Gaussian, with the errors that theory gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apflow.pixels.shape import adaptive_moments, elongation, extendedness, psf_moments

V, U = np.mgrid[-12:13, -12:13]
ROUND = np.array([2.9, 2.9, 0.0])


def gaussian(moments, x=0.0, y=0.0):
    """A Gaussian (25, 25) of unit flux."""
    xx, yy, xy = moments
    a, b, c = np.linalg.inv([[xx, xy], [xy, yy]])[[0, 1, 0], [0, 1, 1]]
    u, v = U - x, V - y
    g = np.exp(-0.5 * (a * u * u + b * v * v + 2 * c * u * v))
    return (g / g.sum()).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.floats(2.5, 7.0), st.floats(2.5, 7.0), st.floats(-0.6, 0.6), st.floats(-1, 1), st.floats(-1, 1))
def test_the_moments_of_a_gaussian_are_its_covariance(xx, yy, correlation, x, y):
    true = np.array([xx, yy, correlation * np.sqrt(xx * yy)])
    found, bad = adaptive_moments(gaussian(true, x, y)[None], np.zeros((1, 2)), ROUND[None])
    assert not bad.any()
    np.testing.assert_allclose(found[0], true, atol=0.02 * (xx + yy))


def test_a_turned_image_has_turned_moments():
    stamp = gaussian([6.0, 3.0, 1.2], 0.4, -0.3)
    (one,), _ = adaptive_moments(stamp[None], np.array([[0.4, -0.3]]), ROUND[None])
    (two,), _ = adaptive_moments(np.rot90(stamp)[None].copy(), np.array([[-0.3, -0.4]]), ROUND[None])
    np.testing.assert_allclose(two, one[[1, 0, 2]] * [1, 1, -1], atol=1e-4)


@pytest.mark.parametrize("snr", [20.0, 60.0])
def test_moments_scatter_as_their_errors_say(snr):
    rng = np.random.default_rng(1)
    psf = gaussian(ROUND, 0.3, -0.2)
    stamps = snr * psf / np.sqrt((psf**2).sum()) + rng.normal(size=(500, *psf.shape))
    found, bad = adaptive_moments(stamps.astype(np.float32), np.tile([0.3, -0.2], (500, 1)), np.tile(ROUND, (500, 1)))
    assert bad.mean() < 0.01
    trace = found[~bad, 0] + found[~bad, 1]
    assert trace.mean() == pytest.approx(5.8, rel=0.03)
    assert trace.std() / trace.mean() == pytest.approx(2 / snr, rel=0.15)
    significance, _ = elongation(found, np.tile(ROUND, (500, 1)), np.full(500, snr))
    assert np.quantile(significance, 0.99) < 4.0


def test_extendedness_tells_points_from_galaxies_where_the_noise_allows():
    psf = psf_moments(gaussian(ROUND)[None])
    np.testing.assert_allclose(psf[0], ROUND, atol=1e-3)
    point, galaxy = psf * 1.02, psf * 1.8
    sure = [extendedness(m, psf, np.array([60.0])).item() for m in (point, galaxy)]
    assert sure[0] < 0.01 and sure[1] > 0.99
    faint = [extendedness(m, psf, np.array([5.0])).item() for m in (point, galaxy)]
    assert 0.2 < faint[0] < 0.5 < faint[1] < 0.9


def test_elongation_gives_the_angle_of_the_major_axis():
    t = np.radians(35.0)
    c, s = np.cos(t), np.sin(t)
    moments = np.array([[8 * c * c + 3 * s * s, 8 * s * s + 3 * c * c, 5 * c * s]])
    significance, angle = elongation(moments, ROUND[None], np.array([30.0]))
    assert angle.item() == pytest.approx(t) and significance.item() > 5


@pytest.mark.parametrize("fill", [np.nan, -1.0, 0.0])
def test_no_light_has_no_moments(fill):
    stamps = np.full((1, 25, 25), fill, np.float32)
    moments, bad = adaptive_moments(stamps, np.zeros((1, 2)), ROUND[None])
    assert bad.all() and np.isnan(moments).all()
    assert np.isnan(extendedness(moments, ROUND[None], np.array([5.0]))).all()
    assert elongation(moments, ROUND[None], np.array([5.0]))[0] == 0
