"""The sky is found under the sources."""

import dataclasses

import numpy as np
import pytest

from apflow.model.exposure import Mask
from apflow.pixels.background import subtract_background
from tests.pixels.night import make_night


def test_level_and_noise_of_a_field_of_stars():
    exposure, sky, noise = subtract_background(make_night(2).exposure)
    # The light of unseen sources and of wings is part of what is called sky.
    assert sky == pytest.approx(1200.0, abs=0.15 * noise)
    assert noise == pytest.approx(np.sqrt(1200.0 + 5.4**2), rel=0.05)
    assert np.median(exposure.image) == pytest.approx(0.0, abs=0.15 * noise)


@pytest.mark.parametrize("shape", [(512, 512), (400, 648), (130, 1100)])
def test_a_gradient_is_followed(shape):
    rng = np.random.default_rng(1)
    base = make_night(1, n_stars=0, n_galaxies=0, n_hits=0).exposure
    sky = 1000.0 * (1 + 0.05 * np.linspace(-1, 1, shape[1]))[None, :] * np.ones((shape[0], 1))
    image = rng.poisson(sky).astype(np.float32)
    exposure = dataclasses.replace(base, image=image, variance=image, mask=np.zeros(shape, np.int32))
    flat = subtract_background(exposure)[0].image
    thirds = [flat[:, i * shape[1] // 6 : (i + 1) * shape[1] // 6].mean() for i in range(6)]
    assert np.abs(thirds).max() < 0.12 * np.sqrt(1000.0)


def test_masked_pixels_do_not_count():
    exposure = make_night(1, n_stars=0, n_galaxies=0, n_hits=0).exposure
    image, mask = exposure.image.copy(), exposure.mask.copy()
    image[100:160, 100:160] += 50.0
    mask[100:160, 100:160] |= Mask.BAD
    _, sky, _ = subtract_background(dataclasses.replace(exposure, image=image, mask=mask))
    assert sky == pytest.approx(1200.0, abs=1.0)


def test_the_input_stays():
    exposure = make_night(1).exposure
    before = exposure.image.copy()
    subtract_background(exposure)
    assert (exposure.image == before).all()
