"""Scores of real and bogus sources, and that nothing but their own pixels makes them."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from apflow.errors import DataError
from apflow.io.reliability import read_model
from apflow.model.exposure import Exposure, Mask
from apflow.model.kernel import Kernel
from apflow.model.products import Difference
from apflow.model.psf import Psf
from apflow.model.reliability import Model
from apflow.pixels.reliability import reliability, votes
from apflow.pixels.stamp_features import NAMES, features
from tests.pixels.scenes import exposure, gaussian_psf, stars_image

N, FWHM, SKY = 160, 4.0, 500.0
UNIT = np.sqrt(4 * np.pi * (FWHM / 2.3548) ** 2 * 2 * SKY)
#: Places of changes, none on another's annulus.
X, Y = (c.ravel() + 0.3 for c in np.meshgrid([32.0, 80.0, 128.0], [32.0, 80.0, 128.0]))


def made(change: np.ndarray, light: np.ndarray | float = 0.0, seed: int = 1, fwhm: float = FWHM) -> tuple:
    """A difference of known content, and its science image; the template's light is `light`."""
    rng, psf = np.random.default_rng(seed), gaussian_psf(fwhm, N)
    constant = np.zeros((N, N)) + light
    science = exposure(constant + change, SKY, psf, rng)
    template = exposure(constant, SKY, psf, rng)
    image, variance = science.image - template.image, science.variance + template.variance
    mask = science.mask | template.mask
    result = dataclasses.replace(science, image=image, variance=variance, mask=mask)
    return Difference(result, template, Kernel(np.zeros((1, 3, 3)), 0, (N, N))), science


def points(snr: float, fwhm: float = FWHM) -> np.ndarray:
    return stars_image((N, N), X, Y, np.full(len(X), snr * UNIT * fwhm / FWHM), fwhm)


def table(snr: float = 12.0, x: np.ndarray = X, y: np.ndarray = Y, negative: bool = False) -> pd.DataFrame:
    return pd.DataFrame({"x": x, "y": y, "snr": snr, "isNegative": negative})


def score(difference: Difference, science: Exposure, sources: pd.DataFrame) -> np.ndarray:
    return reliability(difference, science, sources, read_model())


@pytest.mark.parametrize("fwhm", [2.2, 4.0, 5.5])
def test_new_points_are_real(fwhm: float) -> None:
    assert np.median(score(*made(points(12.0, fwhm), fwhm=fwhm), table())) > 0.95


def test_faded_points_are_real() -> None:
    difference, science = made(0 * points(12.0))
    light = points(12.0).astype(np.float32)
    turned = dataclasses.replace(difference.exposure, image=difference.exposure.image - light)
    matched = dataclasses.replace(difference.matched, image=difference.matched.image + light)
    gone = dataclasses.replace(difference, exposure=turned, matched=matched)
    assert np.median(score(gone, science, table(negative=True))) > 0.9


def test_variable_stars_are_real() -> None:
    assert np.median(score(*made(points(15.0), light=points(60.0)), table(15.0))) > 0.9


def test_hot_pixels_are_bogus() -> None:
    change = np.zeros((N, N))
    change[Y.astype(int), X.astype(int)] = 40 * np.sqrt(SKY)
    assert score(*made(change), table(9.0, X - 0.3, Y - 0.3)).max() < 0.1


def test_stars_that_were_moved_are_bogus() -> None:
    flux = np.full(len(X), 600 * UNIT)
    here, there = (stars_image((N, N), X + d, Y, flux, FWHM) for d in (0.0, 0.12))
    sources = table(20.0, X + 0.5 * FWHM, Y)
    assert np.median(score(*made(here - there, light=there), sources)) < 0.2


def test_pieces_of_a_streak_and_of_a_column_are_bogus() -> None:
    v, u = np.mgrid[0:N, 0:N]
    streak = 2.5 * np.sqrt(SKY) * np.exp(-0.5 * ((u - v) / np.sqrt(2) / (FWHM / 2.3548)) ** 2)
    place = np.array([40.0, 80.0, 120.0])
    assert score(*made(streak), table(9.0, place, place)).max() < 0.3
    column = np.where(u == 80, 5 * np.sqrt(SKY), 0.0)
    assert score(*made(column), table(9.0, np.full(3, 80.0), place)).max() < 0.1


def test_scores_hang_on_no_other_row() -> None:
    difference, science = made(points(9.0))
    sources = table().assign(snr=np.linspace(5, 30, len(X)))
    whole = score(difference, science, sources)
    order = np.random.default_rng(0).permutation(len(sources))
    np.testing.assert_array_equal(score(difference, science, sources.iloc[order]), whole[order])
    for i in range(len(sources)):
        assert score(difference, science, sources.iloc[[i]])[0] == whole[i]


def test_empty_table_and_inputs_that_stay_as_they_are() -> None:
    difference, science = made(points(9.0))
    before = copy.deepcopy((difference.exposure.image, difference.exposure.mask, science.image))
    assert score(difference, science, table().iloc[:0]).shape == (0,)
    assert score(difference, science, table()).dtype == np.float32
    for a, b in zip(before, (difference.exposure.image, difference.exposure.mask, science.image), strict=True):
        np.testing.assert_array_equal(a, b)


def test_borders_and_missing_measurements_get_a_score() -> None:
    difference, science = made(points(9.0))
    ends = np.array([-0.4, 0.0, 3.0, N - 1.0, N - 0.6])
    x, y = (c.ravel() for c in np.meshgrid(ends, ends))
    found = score(difference, science, table(6.0, x, y))
    assert ((found >= 0) & (found <= 1)).all()
    assert (score(difference, science, table(np.nan)) >= 0).all()
    lost = table(6.0, np.array([np.nan, N + 5.0, np.inf]), np.array([50.0, 50.0, 50.0]))
    np.testing.assert_array_equal(score(difference, science, lost), 0.0)


def test_without_a_usable_pixel_nothing_is_real() -> None:
    difference, science = made(points(20.0))
    mask = difference.exposure.mask.copy()
    mask[:60, :60] |= Mask.SAT
    masked = dataclasses.replace(difference, exposure=dataclasses.replace(difference.exposure, mask=mask))
    found = score(masked, science, table())
    assert found[0] == 0.0 and (found[1:] > 0).all()


def test_nan_pixels_do_not_spoil_a_score() -> None:
    difference, science = made(points(20.0))
    image, variance = difference.exposure.image.copy(), difference.exposure.variance.copy()
    mask = difference.exposure.mask.copy()
    image[36, 36], variance[36, 36], mask[36, 36] = np.nan, np.nan, Mask.NO_DATA
    spoilt = dataclasses.replace(difference.exposure, image=image, variance=variance, mask=mask)
    row = features(dataclasses.replace(difference, exposure=spoilt), science, table())[0]
    assert np.isfinite(row).all()


def test_fakes_are_rated_like_real_ones() -> None:
    difference, science = made(points(9.0))
    mask = difference.exposure.mask | (Mask.INJECTED | Mask.INJECTED_CORE | Mask.DETECTED)
    marked = dataclasses.replace(difference, exposure=dataclasses.replace(difference.exposure, mask=mask))
    sources = table()
    np.testing.assert_array_equal(score(difference, science, sources), score(marked, science, sources))


def test_features_have_no_unit() -> None:
    """Images in other units, by a power of 2 so that nothing is rounded, say the same."""
    difference, science = made(points(12.0), light=points(40.0))
    unit = np.float32(2.0**-9)

    def scaled(e: Exposure) -> Exposure:
        return dataclasses.replace(e, image=e.image * unit, variance=e.variance * unit**2)

    other = dataclasses.replace(difference, exposure=scaled(difference.exposure), matched=scaled(difference.matched))
    a, b = features(difference, science, table()), features(other, scaled(science), table())
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_transposed_images_have_the_same_features() -> None:
    difference, science = made(points(12.0), light=points(40.0))

    def turned(e: Exposure) -> Exposure:
        psf = e.psf
        assert psf is not None
        swapped = Psf(psf.terms.transpose(0, 2, 1)[[0, 2, 1]], (N, N))
        planes = {name: np.ascontiguousarray(getattr(e, name).T) for name in ("image", "variance", "mask")}
        return dataclasses.replace(e, **planes, psf=swapped)

    flipped = dataclasses.replace(difference, exposure=turned(difference.exposure), matched=turned(difference.matched))
    a = pd.DataFrame(features(difference, science, table()), columns=NAMES)
    b = pd.DataFrame(features(flipped, turned(science), table(x=Y, y=X)), columns=NAMES)
    b = b.rename(columns={"row": "column", "column": "row"})[list(NAMES)]
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def test_a_point_source_looks_like_the_psf() -> None:
    found = pd.DataFrame(features(*made(points(200.0)), table(200.0)), columns=NAMES).median()
    psf, flux = gaussian_psf(FWHM, N).centre(), 200 * UNIT
    noise = np.sqrt((psf**2 * (2 * SKY + flux * psf)).sum()) / (psf**2).sum()
    assert 10 ** found["log_snr"] == pytest.approx(flux / noise, rel=0.02)
    for name in ("sharpness", "breadth", "peakiness", "like_psf", "consistent", "brighter"):
        assert found[name] == pytest.approx(1.0, abs=0.06), name
    for name in ("width", "elongation", "negative", "surplus", "fainter", "misfit"):
        assert found[name] == pytest.approx(0.0, abs=0.06), name
    assert found["chi2_core"] == pytest.approx(1.0, abs=0.4)
    assert found["sky_power"] == pytest.approx(1.0, abs=0.1)


def test_a_shifted_star_looks_like_the_templates_gradient() -> None:
    flux = np.full(len(X), 600 * UNIT)
    here, there = (stars_image((N, N), X + d, Y, flux, FWHM) for d in (0.0, 0.2))
    found = pd.DataFrame(features(*made(here - there, light=there), table(20.0)), columns=NAMES).median()
    assert found["like_gradient"] > 0.8
    assert found["shift"] * FWHM == pytest.approx(0.2, rel=0.1)


def forest(rng: np.random.Generator, ntrees: int = 3, depth: int = 3, n: int = 4) -> Model:
    nodes = (ntrees, 2**depth - 1)
    feature, threshold = rng.integers(0, n, nodes).astype(np.int16), rng.normal(size=nodes).astype(np.float32)
    leaf = rng.normal(size=(ntrees, 2**depth)).astype(np.float32)
    return Model("t1", NAMES[:n], feature, threshold, leaf)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, (5, 4), elements=st.floats(-3, 3, width=32) | st.just(np.nan)), st.integers(0, 50))
def test_votes_are_those_of_a_walk_through_the_trees(rows: np.ndarray, seed: int) -> None:
    model = forest(np.random.default_rng(seed))

    def walk(row: np.ndarray, tree: int, node: int = 0) -> float:
        if node >= model.feature.shape[1]:
            return float(model.leaf[tree, node - model.feature.shape[1]])
        right = row[model.feature[tree, node]] > model.threshold[tree, node]
        return walk(row, tree, 2 * node + (2 if right else 1))

    expected = [sum(walk(row, tree) for tree in range(len(model.leaf))) for row in rows]
    np.testing.assert_allclose(votes(rows, model), expected, atol=1e-6)


def test_models_and_differences_that_do_not_fit_are_named() -> None:
    difference, science = made(points(9.0))
    model = forest(np.random.default_rng(0))
    strange = dataclasses.replace(model, names=("log_snr", "colour", "misfit", "width"))
    with pytest.raises(DataError, match="'colour'"):
        reliability(difference, science, table(), strange)
    blind = dataclasses.replace(difference, exposure=dataclasses.replace(difference.exposure, psf=None))
    with pytest.raises(DataError, match="PSF"):
        reliability(blind, science, table(), model)
    with pytest.raises(DataError, match="'far too long'"):
        dataclasses.replace(model, version="far too long")
    with pytest.raises(DataError, match=r"make no trees"):
        dataclasses.replace(model, leaf=model.leaf[:, :-1])
    with pytest.raises(DataError, match="names lack"):
        dataclasses.replace(model, names=NAMES[:1], feature=model.feature + 1)
    with pytest.raises(DataError, match="finite"):
        dataclasses.replace(model, offset=np.nan)
