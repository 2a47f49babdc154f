"""Where full pixels spilled their charge nothing is taken for sky."""

import numpy as np
import pytest

from apflow.model.camera import load_camera
from apflow.model.exposure import Mask
from apflow.pixels.isr import remove_signature
from apflow.pixels.saturation import spread_saturation
from apflow.simulate.draw import bleed
from tests.pixels.night import make_calibs, make_raw, moffat

CCD = load_camera("lsstcam", 512).detector(94)
LEVEL = CCD.amplifiers[0].saturation * CCD.amplifiers[0].gain


@pytest.mark.parametrize("depth", [1.01, 0.8])
def test_a_trail_is_masked_to_its_end_even_where_wells_are_shallower(depth):
    rng, y0, x0 = np.random.default_rng(4), 120, 200
    star = np.full(CCD.shape, 900.0)
    stamp = moffat(4.0, 60, 0.3, 0.1) * 3e7
    star[y0 - 60 : y0 + 61, x0 - 60 : x0 + 61] += stamp
    bled = star.copy()
    bleed(bled, LEVEL * 1.01, 0, CCD.ny // 2)
    column = bled[:, x0]
    trail = np.flatnonzero(column >= LEVEL)
    assert len(trail) > 60  # this one runs far beyond the star's core
    # Wells of the outer half of the trail are less deep: less than the level that tells saturation.
    outer = np.abs(np.arange(CCD.ny) - y0) > len(trail) // 4
    lowered = np.where((bled >= LEVEL) & outer[:, None], LEVEL * depth, bled)
    calibs = make_calibs(CCD, structure=False)
    exposure = remove_signature(make_raw(CCD, rng.poisson(lowered).astype(float), calibs), CCD, calibs)
    unknown = (exposure.mask & Mask.SAT) == 0
    # What is not masked is the star as it would be without saturation.
    pull = (exposure.image - star)[unknown] / np.sqrt(exposure.variance[unknown] + (0.02 * star[unknown]) ** 2)
    assert np.abs(pull).max() < 6
    assert (exposure.mask[trail[0] - 1 : trail[-1] + 2, x0] & Mask.SAT).all()


def test_a_bright_star_that_does_not_saturate_keeps_its_pixels():
    image = np.full((64, 64), 900.0, np.float32)
    image[20:40, 30] = 0.9 * LEVEL
    mask = np.zeros(image.shape, np.int32)
    spread_saturation(image, mask, LEVEL)
    assert not mask.any()


def test_a_single_full_pixel_is_grown_and_no_more():
    image, mask = np.full((64, 64), 900.0, np.float32), np.zeros((64, 64), np.int32)
    image[0, 5], mask[0, 5] = LEVEL, Mask.SAT
    spread_saturation(image, mask, LEVEL)
    assert np.argwhere(mask).min(0).tolist() == [0, 3] and np.argwhere(mask).max(0).tolist() == [2, 7]


def test_a_trail_follows_columns_not_rows_to_the_border():
    image, mask = np.full((64, 64), 900.0, np.float32), np.zeros((64, 64), np.int32)
    image[:, 20] = image[30, :] = 0.7 * LEVEL
    mask[30, 20] = Mask.SAT
    spread_saturation(image, mask, LEVEL)
    assert (mask[:, 18:23] & Mask.SAT).all() and not (mask[:, :18] & Mask.SAT).any()
