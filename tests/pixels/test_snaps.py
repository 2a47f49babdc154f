"""Two snaps of one visit."""

import dataclasses

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.model.exposure import Mask
from apflow.pixels.snaps import combine
from tests.pixels.night import cosmic_rays, info, make_night


def snaps(fwhm=4.5, rays=20):
    first, second = make_night(1, n_hits=0), make_night(1, n_hits=0, fwhm=fwhm)
    charge = cosmic_rays(np.random.default_rng(5), first.exposure.shape, rays)
    image = (first.exposure.image + charge).astype(np.float32)
    hit = dataclasses.replace(first.exposure, image=image, variance=image + np.float32(29))
    later = info(mjd_begin_tai=60785.0004, mjd_end_tai=60785.0008)
    return hit, dataclasses.replace(second.exposure, info=later), first.exposure, charge


def test_hits_are_found_by_comparison_and_replaced():
    first, second, quiet, charge = snaps()
    visit = combine(first, second)
    hits = (visit.mask & Mask.CR) != 0
    sure = charge > 8 * np.sqrt(first.variance + second.variance)
    assert (hits & sure).sum() / sure.sum() > 0.9
    clean = quiet.image + second.image
    assert np.abs(visit.image - clean)[hits].mean() < 3 * np.sqrt(2 * 2500)
    assert np.allclose(visit.image[~hits], (first.image + second.image)[~hits])


def test_variance_is_the_sum_and_four_times_one_snap_where_hit():
    first, second, _, _ = snaps()
    visit = combine(first, second)
    hits = (visit.mask & Mask.CR) != 0
    assert np.allclose(visit.variance[~hits], (first.variance + second.variance)[~hits])
    assert np.allclose(visit.variance[hits], 4 * second.variance[hits])


@pytest.mark.parametrize("fwhm", [3.6, 4.1, 4.7])
def test_seeing_may_change_without_harm_to_stars(fwhm):
    first, second, _, _ = snaps(fwhm, rays=0)
    assert ((combine(first, second).mask & Mask.CR) != 0).sum() <= 2


def test_time_and_planes_are_joined():
    first, second, _, _ = snaps()
    mask = first.mask.copy()
    mask[3, 4] |= Mask.BAD
    visit = combine(first, dataclasses.replace(second, mask=mask))
    assert visit.info.exposure_time_s == 60.0
    assert (visit.info.mjd_begin_tai, visit.info.mjd_end_tai) == (first.info.mjd_begin_tai, 60785.0008)
    assert visit.mask[3, 4] & Mask.BAD


def test_snaps_of_two_detectors_are_refused():
    first, second, _, _ = snaps()
    with pytest.raises(DataError, match="different detectors: 94 and 95"):
        combine(first, dataclasses.replace(second, info=info(95)))
