"""What an image says of its own camera, against simulations of known cameras."""

from __future__ import annotations

import numpy as np
import pytest
import sep
from scipy.ndimage import gaussian_filter

from apflow.pixels.estimate import bad_columns, constant_borders, gain, saturation
from tests.pixels.scenes import stars_image

N = 700


def frame(
    seed: int = 0,
    *,
    n: int = N,
    electrons_per_count: float = 2.0,
    read_noise: float = 5.0,
    sky: float = 200.0,
    fwhm: float = 4.0,
    stars: int = 500,
    full_well: float = 9e4,
) -> np.ndarray:
    """Counts of a CCD with sky, stars, read noise and saturation; everything in electrons but the result."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, n, (2, stars))
    flux = np.minimum(4000 * (rng.random(stars) + 1e-3) ** -1.2, 3e6)
    electrons = rng.poisson(stars_image((n, n), x, y, flux, fwhm) + sky) + rng.normal(0, read_noise, (n, n))
    return (np.minimum(electrons, full_well) / electrons_per_count).astype(np.float32)


def measured(image: np.ndarray) -> tuple[float, float] | None:
    good = image < saturation(image, np.ones(image.shape, np.bool_))
    sky = sep.Background(image, mask=~good, bw=64, bh=64)
    return gain(image - sky.back(dtype=np.float32), good, float(sky.globalrms))


@pytest.mark.parametrize("kind", ["float", "integer", "without its sky"])
@pytest.mark.parametrize("electrons_per_count", [0.7, 2.0, 300.0])
def test_gain_comes_back_within_a_tenth(kind: str, electrons_per_count: float) -> None:
    ratios = []
    for seed in range(3):
        image = frame(seed, electrons_per_count=electrons_per_count)
        if kind == "integer" and electrons_per_count < 10:
            image = np.rint(image)
        if kind == "without its sky":
            image -= 200 / electrons_per_count
        found = measured(image)
        assert found is not None
        value, error = found
        ratios.append(value / electrons_per_count)
        assert abs(value / electrons_per_count - 1) < 4 * error / electrons_per_count
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)


def test_gain_of_a_mean_of_frames_is_theirs_times_their_number() -> None:
    image = np.mean([frame_again(seed) for seed in range(4)], axis=0)
    found = measured(image.astype(np.float32))
    assert found is not None
    assert found[0] == pytest.approx(8.0, rel=0.2)


def frame_again(seed: int) -> np.ndarray:
    """The same stars as `frame(0)` with noise of their own."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, N, (2, 500))
    flux = np.minimum(4000 * (rng.random(500) + 1e-3) ** -1.2, 3e6)
    rng = np.random.default_rng(seed + 1000)
    electrons = rng.poisson(stars_image((N, N), x, y, flux, 4.0) + 200) + rng.normal(0, 5, (N, N))
    return (np.minimum(electrons, 9e4) / 2).astype(np.float32)


def test_gain_of_shared_noise_is_that_of_its_pixels() -> None:
    """Smoothing by w leaves sum(w^2) of the variance of sky and light alike."""
    image = gaussian_filter(frame(0, full_well=np.inf), 0.6)
    point = np.zeros((15, 15))
    point[7, 7] = 1.0
    kept = float((gaussian_filter(point, 0.6) ** 2).sum())
    found = measured(image)
    assert found is not None
    assert found[0] == pytest.approx(2.0 / kept, rel=0.2)


def test_gain_is_not_known_without_stars() -> None:
    assert measured(frame(0, stars=3)) is None
    assert measured(np.random.default_rng(0).normal(0, 1, (200, 200)).astype(np.float32)) is None


@pytest.mark.parametrize("full_well", [3e4, 9e4])
def test_saturation_is_where_the_stars_are_cut(full_well: float) -> None:
    image = frame(0, full_well=full_well)
    level = saturation(image, np.ones(image.shape, np.bool_))
    assert 0.9 * full_well / 2 < level <= full_well / 2
    cut = image >= full_well / 2 * 0.9999
    assert (image[cut] >= level).all() and np.count_nonzero(image >= level) < 3 * cut.sum()


def test_saturation_that_is_not_flat_to_the_last_digit() -> None:
    """A flat field and a bias make one full well into many values."""
    image = frame(0, full_well=6e4) * np.linspace(0.98, 1.0, N, dtype=np.float32)
    assert 0.88 * 3e4 < saturation(image, np.ones(image.shape, np.bool_)) < 0.985 * 3e4


@pytest.mark.parametrize("fwhm", [2.5, 4.0, 9.0])
def test_unsaturated_stars_are_not_saturated(fwhm: float) -> None:
    image = frame(0, fwhm=fwhm, full_well=np.inf)
    assert saturation(image, np.ones(image.shape, np.bool_)) == np.inf
    assert saturation(image, np.zeros(image.shape, np.bool_)) == np.inf
    noise = np.random.default_rng(0).normal(100, 3, (80, 80)).astype(np.float32)
    assert saturation(noise, np.ones((80, 80), np.bool_)) == np.inf


def test_bad_columns_and_rows() -> None:
    image = frame(1) - 100
    noise = float(sep.Background(image, bw=64, bh=64).globalrms)
    image[:, 150] += 3 * noise
    image[200:500, 333] -= 4 * noise
    image[600, :] += 3 * noise
    bad = bad_columns(image, np.ones(image.shape, np.bool_), noise)
    assert bad[:, 150].mean() > 0.95
    assert bad[256:448, 333].all() and not bad[:128, 333].any()
    assert bad[600].mean() > 0.95
    bad[:, [150, 333]] = bad[600] = False
    assert not bad.any()


def test_galaxies_and_spikes_wider_than_a_pixel_are_no_columns() -> None:
    image = frame(2)
    v, u = np.mgrid[:N, :N]
    image += (3000 * np.exp(-0.5 * (u - 300) ** 2 / 5**2) * np.exp(-0.5 * (v - 350) ** 2 / 90**2)).astype(np.float32)
    sky = sep.Background(image, bw=64, bh=64)
    assert not bad_columns(image - sky.back(dtype=np.float32), np.ones(image.shape, np.bool_), sky.globalrms).any()


def test_borders_of_one_value() -> None:
    image = frame(0)
    assert not constant_borders(image).any()
    image[:20] = -999.0
    image[:, 690:] = 65535.0
    image[300, 300] = -999.0
    found = constant_borders(image)
    assert found[:20].all() and found[:, 690:].all()
    assert found.sum() == 20 * N + 10 * (N - 20)
    image[:20] = np.nan
    assert not constant_borders(image)[:20, :690].any()
