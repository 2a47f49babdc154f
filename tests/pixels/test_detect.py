"""Detection finds changes of both signs and little else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial import cKDTree

from apflow.errors import DataError
from apflow.model.exposure import Mask
from apflow.model.kernel import Kernel
from apflow.model.products import Difference
from apflow.pixels.detect import COLUMNS, detect, mark
from apflow.pixels.subtract import subtract
from tests.pixels.scenes import exposure, gaussian_psf, pair, stars_image


def difference(x: list[float], y: list[float], flux: list[float], n: int = 128, seed: int = 0) -> Difference:
    """A bare difference image of unit-variance noise and point sources."""
    signal = stars_image((n, n), np.array(x), np.array(y), np.array(flux), 4.0)
    noise = np.random.default_rng(seed).normal(size=(n, n))
    e = exposure(np.zeros((n, n)), 1.0, gaussian_psf(4.0, n), np.random.default_rng(seed))
    e = dataclasses.replace(e, image=(signal + noise).astype(np.float32), variance=np.ones((n, n), np.float32))
    return Difference(e, e, Kernel(np.ones((1, 1, 1)), 0, (n, n)))


def test_signs_positions_and_snr() -> None:
    sigma = np.sqrt(4 * np.pi) * 4 / 2.3548
    peaks = detect(difference([40, 80], [50, 90], [10 * sigma, -20 * sigma]), 5.0)
    assert tuple(peaks.columns) == COLUMNS
    assert np.abs(peaks[["x", "y"]].to_numpy() - [[40, 50], [80, 90]]).max() <= 1
    assert peaks["isNegative"].tolist() == [False, True]
    assert peaks["snr"].to_numpy() == pytest.approx([10, -20], abs=2.5)
    assert not peaks["isDipole"].any()
    for p in peaks.itertuples():
        assert p.x0 <= p.x <= p.x1 and p.y0 <= p.y <= p.y1
        assert 0 < p.npix <= (p.x1 - p.x0 + 1) * (p.y1 - p.y0 + 1)


def test_noise_alone_gives_nothing() -> None:
    assert len(detect(difference([], [], [], n=512), 5.0)) <= 1


def test_bright_source_has_no_satellites() -> None:
    assert len(detect(difference([64.3], [60.8], [3e4]), 5.0)) == 1


def test_close_pair_is_two() -> None:
    assert len(detect(difference([60, 69], [64, 64], [300, 250]), 5.0)) == 2


def test_residual_of_a_shifted_star_is_one_dipole() -> None:
    peaks = detect(difference([63, 65], [64, 64], [2000, -2000]), 5.0)
    assert len(peaks) == 1
    assert peaks["isDipole"].all()


def blinding_star(shift: float, change: float, ring: float) -> Difference:
    """A star of 25,000 sigma that moved or changed, in a ring of speckles of both signs."""
    shape, at, flux = (128, 128), np.array([64.0]), np.array([3e5])
    d = difference([], [], [])
    star = stars_image(shape, at, at, flux, 4.0)
    angle = np.arange(6) * np.pi / 3
    speckles = stars_image(shape, 64 + 11 * np.cos(angle), 64 + 11 * np.sin(angle), ring * (-1.0) ** np.arange(6), 4.0)
    image = d.exposure.image + stars_image(shape, at + shift, at, flux * (1 + change), 4.0) - star + speckles
    variance = 1 + (0.02 * star) ** 2
    exposure_ = dataclasses.replace(d.exposure, image=image.astype("f4"), variance=variance.astype("f4"))
    return Difference(exposure_, dataclasses.replace(d.matched, image=star.astype("f4")), d.kernel)


@pytest.mark.parametrize("ring", [60.0, 300.0])
def test_a_blinding_star_that_moves_is_one_dipole(ring: float) -> None:
    peaks = detect(blinding_star(0.3, 0.0, ring), 5.0)
    assert peaks["isDipole"].tolist() == [True]
    assert np.hypot(peaks["x"] - 64, peaks["y"] - 64).item() < 2
    assert abs(peaks["snr"].item()) > 10


def test_a_blinding_star_that_varies_is_itself() -> None:
    peaks = detect(blinding_star(0.0, 0.4, 60.0), 5.0)
    star = peaks[np.hypot(peaks["x"] - 64, peaks["y"] - 64) < 2]
    assert star["isDipole"].tolist() == star["isNegative"].tolist() == [False]


@pytest.mark.parametrize("plane", [Mask.BAD, Mask.SAT, Mask.CR, Mask.NO_DATA, Mask.EDGE])
def test_masked_centres_are_ignored(plane: Mask) -> None:
    d = difference([64], [64], [300])
    d.exposure.mask[60:69, 60:69] |= plane
    assert len(detect(d, 5.0)) == 0


def test_completeness_and_purity() -> None:
    found = true = right = claimed = 0
    for seed in range(3):
        snr = tuple(np.random.default_rng(seed).uniform(8, 30, 49) * np.where(np.arange(49) % 4, 1, -1))
        p = pair(n=384, seed=seed, stars=220, snr=snr, jitter=0.03)
        d = subtract(p.science, p.template)
        peaks = detect(d, 5.0)
        usable = d.exposure.mask[np.rint(p.y).astype(int), np.rint(p.x).astype(int)] == 0
        xy = peaks[["x", "y"]].to_numpy(float)
        found += (cKDTree(xy).query(np.c_[p.x, p.y])[0] < 3)[usable].sum()
        true += usable.sum()
        strong = np.abs(peaks["snr"].to_numpy()) > 6
        right += (cKDTree(np.c_[p.x, p.y]).query(xy[strong])[0] < 5).sum()
        claimed += strong.sum()
    assert found / true > 0.93
    assert right / claimed > 0.93


def test_marking_returns_a_copy() -> None:
    d = difference([40, 80], [50, 90], [200, -200])
    marked = mark(d, detect(d, 5.0))
    assert marked.exposure.mask[50, 40] & Mask.DETECTED
    assert marked.exposure.mask[90, 80] & Mask.DETECTED_NEGATIVE
    assert not d.exposure.mask.any()


def test_needs_a_psf() -> None:
    d = difference([], [], [])
    with pytest.raises(DataError, match="PSF"):
        detect(dataclasses.replace(d, exposure=dataclasses.replace(d.exposure, psf=None)), 5.0)


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (-0.3, 0.4)])
def test_snr_is_that_at_the_source_s_own_position(offset: tuple[float, float]) -> None:
    sigma = np.sqrt(4 * np.pi) * 4 / 2.3548
    d = difference([], [], [])
    image = stars_image((128, 128), np.array([64 + offset[0]]), np.array([64 + offset[1]]), np.array([20 * sigma]), 4.0)
    d = dataclasses.replace(d, exposure=dataclasses.replace(d.exposure, image=image.astype("f4")))
    assert detect(d, 5.0)["snr"].item() == pytest.approx(20.0, rel=0.01)


def test_half_of_the_sources_at_the_threshold_are_found() -> None:
    sigma = np.sqrt(4 * np.pi) * 4 / 2.3548
    rng = np.random.default_rng(3)
    x, y = (30.0 * np.stack(np.meshgrid(np.arange(1, 33), np.arange(1, 33))).reshape(2, -1)) + rng.uniform(
        -2, 2, (2, 1024)
    )
    found = {}
    for snr in (5.1, 6.0, 7.0):
        peaks = detect(difference(x, y, np.full(1024, snr * sigma), n=1000), 5.0)[["x", "y"]]
        found[snr] = (cKDTree(peaks.to_numpy(float)).query(np.c_[x, y])[0] < 3).mean()
        assert (cKDTree(np.c_[x, y]).query(peaks.to_numpy(float))[0] < 4).mean() > 0.99
    assert 0.5 < found[5.1] < 0.68
    assert found[6.0] > 0.82 and found[7.0] > 0.97
