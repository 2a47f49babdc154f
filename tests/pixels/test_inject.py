"""Fakes: their light, its noise, the mask planes, and where they go."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.pixels.forced import forced_flux
from apflow.pixels.inject import catalog_fakes, inject, place_fakes, touched, without_fakes
from apflow.pixels.planes import unusable
from apflow.pixels.stars import find_stars
from tests.pixels.scenes import exposure, gaussian_psf, pair, stars_image

GAIN = 0.5  # electrons per nJy
N = 256


def blank(growth: float = 0.1, sky: float = 100.0) -> Exposure:
    """Sky without a source."""
    psf = gaussian_psf(3.5, N, side=31, growth=growth)
    return exposure(np.zeros((N, N)), sky, psf, np.random.default_rng(5))


def fakes_at(x: list[float], y: list[float], mag: float) -> pd.DataFrame:
    return pd.DataFrame({"kind": "injected", "x": x, "y": y, "ra": 0.0, "dec": 0.0, "mag": mag})


def test_the_flux_is_what_the_magnitude_says_wherever_the_centre_falls() -> None:
    science = blank()
    x, y = np.meshgrid(np.linspace(40, 200, 6) + 0.37, np.linspace(40, 200, 6) - 0.21)
    with_fakes = inject(science, fakes_at(list(x.ravel()), list(y.ravel()), 19.4), GAIN, np.random.default_rng(1))
    added = with_fakes.image - science.image
    assert added.sum() == pytest.approx(36 * 10 ** (0.4 * (31.4 - 19.4)), rel=0.002)
    flux, err = forced_flux(with_fakes, x.ravel(), y.ravel())
    pulls = (flux - 10**4.8) / err
    assert abs(pulls.mean()) < 0.5 and 0.7 < pulls.std() < 1.4


def test_the_centre_is_where_it_was_asked_for() -> None:
    science = blank()
    with_fakes = inject(science, fakes_at([100.3], [121.7], 15.0), GAIN, np.random.default_rng(1))
    (found,) = find_stars(with_fakes, 1000.0).to_dict("records")
    assert (found["x"], found["y"]) == pytest.approx((100.3, 121.7), abs=0.003)


def test_the_noise_of_the_light_is_that_of_its_photons_and_the_variance_says_so() -> None:
    science = blank(growth=0.0)
    fake = fakes_at([128.0], [128.0], 18.4)
    seen = [inject(science, fake, GAIN, np.random.default_rng(seed)) for seed in range(200)]
    core = (slice(125, 132), slice(125, 132))
    scatter = np.var([e.image[core] - science.image[core] for e in seen], axis=0)
    predicted = (seen[0].variance - science.variance)[core]
    assert np.median(scatter / predicted) == pytest.approx(1.0, abs=0.1)
    # Photons: the variance is the light over the gain.
    assert (seen[0].variance - science.variance).sum() == pytest.approx(10**5.2 / GAIN, rel=0.002)


def test_the_light_has_the_local_psf() -> None:
    science = blank(growth=0.2)
    both = inject(science, fakes_at([30.0, 226.0], [128.0, 128.0], 15.0), GAIN, np.random.default_rng(1))
    added = both.image - science.image
    for x in (30, 226):
        stamp = added[113:144, x - 15 : x + 16]
        assert np.abs(stamp / stamp.sum() - science.psf.at(x, 128.0)).max() < 5e-4


def test_mask_planes_tell_what_was_touched_and_nothing_else_changed() -> None:
    science = blank()
    before = science.image.copy(), science.mask.copy()
    with_fakes = inject(science, fakes_at([60.0], [80.0], 20.0), GAIN, np.random.default_rng(1))
    touched = (with_fakes.mask & int(Mask.INJECTED)) != 0
    assert touched.sum() == 31 * 31 and touched[80 - 15 : 80 + 16, 60 - 15 : 60 + 16].all()
    core = (with_fakes.mask & int(Mask.INJECTED_CORE)) != 0
    assert core.sum() == 9 and core[79:82, 59:62].all()
    assert np.array_equal(with_fakes.image[~touched], science.image[~touched])
    assert np.array_equal(science.image, before[0]) and np.array_equal(science.mask, before[1])


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (255.4, 100.0), (3.0, 255.0)])
def test_a_fake_at_the_border_adds_what_falls_on_the_image(x: float, y: float) -> None:
    science = blank()
    with_fakes = inject(science, fakes_at([x], [y], 18.0), GAIN, np.random.default_rng(1))
    share = (with_fakes.image - science.image).sum() / 10 ** (0.4 * 13.4)
    assert 0.2 < share < 0.85
    assert with_fakes.injected is not None and not with_fakes.injected["good"].any()


def test_no_light_goes_on_pixels_without_data() -> None:
    science = blank()
    mask, image = science.mask.copy(), science.image.copy()
    mask[90:100, 90:100], image[90:100, 90:100] = int(Mask.NO_DATA), np.nan
    science = dataclasses.replace(science, mask=mask, image=image)
    with_fakes = inject(science, fakes_at([95.0, 105.0], [95.0, 95.0], 18.0), GAIN, np.random.default_rng(1))
    assert np.isnan(with_fakes.image[90:100, 90:100]).all()
    assert np.isfinite(with_fakes.image[~unusable(mask)]).all()
    assert with_fakes.injected is not None and list(with_fakes.injected["good"]) == [False, True]


def test_places_are_usable_apart_and_the_same_for_the_same_generator() -> None:
    science = blank()
    science.mask[:, 100:150] |= int(Mask.BAD)
    fakes = place_fakes(science, 30, 20.0, 24.0, np.random.default_rng(7))
    x, y = fakes["x"].to_numpy(), fakes["y"].to_numpy()
    assert len(fakes) == 30 and fakes["mag"].between(20.0, 24.0).all()
    assert not ((x > 97) & (x < 152)).any() and x.min() > 7 and x.max() < N - 8
    away = np.hypot(x[:, None] - x, y[:, None] - y)
    assert away[~np.eye(30, dtype=bool)].min() > 4 * 3.4
    again = place_fakes(science, 30, 20.0, 24.0, np.random.default_rng(7))
    pd.testing.assert_frame_equal(fakes, again)
    assert not np.allclose(x, place_fakes(science, 30, 20.0, 24.0, np.random.default_rng(8))["x"])


def test_where_there_is_no_room_there_are_fewer_fakes() -> None:
    science = blank()
    science.mask[:] |= int(Mask.SAT)
    fakes = place_fakes(science, 5, 20.0, 24.0, np.random.default_rng(7))
    assert len(fakes) == 0
    assert np.array_equal(inject(science, fakes, GAIN, np.random.default_rng(1)).image, science.image)


def test_a_part_goes_on_galaxies() -> None:
    rng = np.random.default_rng(3)
    x, y = (g.ravel() for g in np.meshgrid(np.arange(30, 240, 40.0), np.arange(30, 240, 40.0)))
    galaxies = stars_image((N, N), x[:12], y[:12], np.full(12, 2e4), 7.0)
    light = galaxies + stars_image((N, N), x[12:], y[12:], np.full(len(x) - 12, 2e4), 3.5)
    science = exposure(light, 100.0, gaussian_psf(3.5, N), rng)
    fakes = place_fakes(science, 20, 20.0, 24.0, rng)
    hosted = fakes[fakes["kind"] == "injected_hosted"]
    assert 5 <= len(hosted) <= 8
    away = np.hypot(hosted["x"].to_numpy()[:, None] - x[:12], hosted["y"].to_numpy()[:, None] - y[:12]).min(1)
    assert away.max() < 12 and np.median(away) > 0.5


def test_the_predicted_snr_is_that_which_is_measured() -> None:
    science = blank(growth=0.0)
    x, y = np.meshgrid(np.linspace(40, 216, 5), np.linspace(40, 216, 5))
    with_fakes = inject(science, fakes_at(list(x.ravel()), list(y.ravel()), 23.0), GAIN, np.random.default_rng(1))
    flux, err = forced_flux(with_fakes, x.ravel(), y.ravel())
    assert with_fakes.injected is not None
    predicted = with_fakes.injected["science_snr"].to_numpy()
    assert np.allclose(predicted, with_fakes.injected["flux_njy"] / err, rtol=0.02)
    assert np.mean(flux / err) == pytest.approx(predicted.mean(), abs=0.6)


def test_a_catalogue_gives_those_on_the_image_by_their_row() -> None:
    science = pair().science
    ra, dec = science.wcs.pixel_to_sky(np.array([50.0, 120.0]), np.array([60.0, 130.0]))
    catalog = pd.DataFrame({"ra": [10.0, *ra], "dec": [-30.0, *dec], "mag": [20.0, 21.0, 22.0]})
    fakes = catalog_fakes(science, catalog)
    assert list(fakes["injectionId"]) == [1, 2] and list(fakes["mag"]) == [21.0, 22.0]
    assert np.allclose(fakes[["x", "y"]], [[50, 60], [120, 130]], atol=1e-6)
    assert len(catalog_fakes(science, catalog[:0])) == 0


@pytest.mark.parametrize(
    ("catalog", "message"),
    [
        ({"ra": [1.0], "dec": [2.0]}, "no column 'mag'"),
        ({"ra": [1.0], "dec": [np.nan], "mag": [20.0]}, "dec is not a number"),
        ({"ra": ["x"], "dec": [2.0], "mag": [20.0]}, "ra is not a number"),
    ],
)
def test_a_bad_catalogue_is_named(catalog: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        catalog_fakes(pair().science, pd.DataFrame(catalog))


def test_what_a_fake_touches_is_known_and_can_be_left_out() -> None:
    science = blank()
    with_fakes = inject(science, fakes_at([100.0], [100.0], 18.0), GAIN, np.random.default_rng(1))
    x, y = np.array([100.0, 118.0, 121.0, 200.0, np.nan, -40.0]), np.array([100.0, 100.0, 100.0, 50.0, 3.0, 100.0])
    assert touched(with_fakes, x, y).tolist() == [True, True, False, False, False, False]
    assert not touched(science, x, y).any()
    clean = without_fakes(with_fakes, with_fakes)
    light = (with_fakes.mask & int(Mask.INJECTED)) != 0
    assert np.isnan(clean.image[light]).all() and (clean.mask[light] & int(Mask.NO_DATA)).all()
    assert np.array_equal(clean.image[~light], science.image[~light])
    assert without_fakes(science, science) is science
