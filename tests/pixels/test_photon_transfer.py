"""Gain and read noise from pairs of flats whose gain is known."""

import dataclasses
import math

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.model.calibration import Masters
from apflow.pixels.photon_transfer import photon_transfer
from tests.pixels.calibration_frames import CCD, SHAPE, Ccd, with_segments

RNG = np.random.default_rng(5)
LUMPY = Ccd(
    bias=RNG.normal(0, 4, SHAPE[1]) + np.zeros(SHAPE),
    flat=1 + 0.03 * RNG.normal(size=SHAPE) + 0.05 * np.sin(np.arange(SHAPE[1]) / 100),
    gains=RNG.uniform(0.9, 1.1, 16),
    noises=RNG.uniform(0.8, 1.4, 16),
    defects=RNG.random(SHAPE) < 1e-3,
)
LUMPY.flat[LUMPY.defects] *= 0.1
NONE = Masters()


def pulls(ccd, measured):
    """Departures of gains and of read noises from the truth, in their own errors."""
    gains = [(measured[a.name].gain - a.gain * g) / measured[a.name].gain_error
             for a, g in zip(ccd.detector.amplifiers, ccd.gains, strict=True)]  # fmt: skip
    reads = []
    for a, g, n in zip(ccd.detector.amplifiers, ccd.gains, ccd.noises, strict=True):
        truth = math.hypot(n * a.read_noise, a.gain * g / math.sqrt(12))  # the converter's steps are noise too
        reads.append((measured[a.name].read_noise - truth) / measured[a.name].read_noise_error)
    return np.array(gains), np.array(reads)


@pytest.mark.parametrize(("level", "other"), [(20_000, 20_000), (20_000, 14_000), (500, 520), (60_000, 60_500)])
def test_gain_and_noise_are_the_true_ones_within_their_errors(level, other):
    found = [
        pulls(
            LUMPY,
            photon_transfer(LUMPY.expose(level, seed=s), LUMPY.expose(other, seed=s + 50), CCD, LUMPY.masters()),
        )
        for s in (1, 2, 3)
    ]
    for values in (np.concatenate([gains for gains, _ in found]), np.concatenate([reads for _, reads in found])):
        # chi^2 of 48 values: 48 +- 9.8; their mean 0 +- 0.14
        assert 25 < (values**2).sum() < 85
        assert abs(values.mean()) < 0.5


def test_error_is_that_of_a_variance():
    found = photon_transfer(LUMPY.expose(20_000, seed=1), LUMPY.expose(20_000, seed=2), CCD, NONE)
    for p in found.values():
        assert p.gain_error / p.gain == pytest.approx(math.sqrt(2 / (64 * 256)), rel=0.05)


def test_hits_in_one_flat_and_unknown_defects_change_nothing():
    charge = np.zeros(SHAPE)
    charge[RNG.integers(0, 512, 300), RNG.integers(0, 512, 300)] = 30_000
    ccd = dataclasses.replace(LUMPY, defects=np.zeros(SHAPE, bool))
    gains, _ = pulls(ccd, photon_transfer(ccd.expose(20_000, charge=charge), ccd.expose(20_000, seed=2), CCD, NONE))
    assert (gains**2).sum() < 35 and abs(gains.mean()) < 0.8


def test_order_of_the_flats_does_not_matter():
    one, two = LUMPY.expose(20_000), LUMPY.expose(15_000, seed=2)
    ahead, back = (photon_transfer(*pair, CCD, NONE) for pair in ((one, two), (two, one)))
    for name in ahead:
        assert ahead[name].gain == pytest.approx(back[name].gain, rel=1e-3)


def test_what_tells_nothing_is_nan_and_leaves_the_others():
    ccd = Ccd()
    light = np.full(SHAPE, 20_000.0)
    amps = CCD.amplifiers
    light[amps[0].y0 : amps[0].y0 + amps[0].ny, amps[0].x0 : amps[0].x0 + amps[0].nx] = 200_000.0
    first, second = ccd.expose(light), ccd.expose(light, seed=2)
    unlit = Ccd(dark=np.zeros(SHAPE)).expose(seed=3).segments[amps[2].segment]
    first = with_segments(first, **{amps[1].segment: np.zeros(amps[1].raw_shape, np.uint16), amps[2].segment: unlit})
    nan = first.segments[amps[3].segment].astype(np.float32)
    nan[:, ::3] = np.nan
    first = with_segments(first, **{amps[3].segment: nan})
    found = photon_transfer(first, second, CCD, NONE)
    for amp in amps[:3]:
        assert math.isnan(found[amp.name].gain) and math.isnan(found[amp.name].read_noise_error), amp.name
    for amp in amps[3:]:
        assert found[amp.name].gain == pytest.approx(amp.gain, rel=0.05)


def test_pair_of_another_ccd_is_refused():
    raw = LUMPY.expose(1000)
    other = dataclasses.replace(raw, info=dataclasses.replace(raw.info, detector=95))
    with pytest.raises(DataError, match="detector 95 is not of detector 94"):
        photon_transfer(raw, other, CCD, NONE)
