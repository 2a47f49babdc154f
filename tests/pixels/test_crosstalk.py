"""Ghosts of bright pixels are removed down to the noise, whatever way the amplifiers are read."""

import dataclasses

import numpy as np
import pytest

from apflow.model.camera import load_camera
from apflow.model.exposure import Mask
from apflow.pixels.isr import remove_signature
from tests.pixels.night import make_calibs, make_raw

SKY = 900.0


def without(ccd):
    return dataclasses.replace(ccd, crosstalk=None)


def starry(ccd, seed=3):
    """Sky with shot noise, and blocks and columns of 40,000 to 85,000 electrons in some amplifiers."""
    rng = np.random.default_rng(seed)
    light = np.full(ccd.shape, SKY)
    sources = rng.choice(len(ccd.amplifiers), max(1, len(ccd.amplifiers) // 4), replace=False)
    for number in sources:
        amp = ccd.amplifiers[number]
        for _ in range(4):
            y, x = amp.y0 + rng.integers(4, amp.ny - 24), amp.x0 + rng.integers(4, amp.nx - 24)
            light[y : y + 20, x : x + 20] = rng.uniform(40_000, 85_000)
    return rng.poisson(light).astype(float), light


@pytest.mark.parametrize(
    ("camera", "name", "times"),
    [("lsstcam", "R22_S11", 1), ("lsstcam", "R01_S00", 1), ("lsstcam", "R00_SW0", 1), ("decam", "N4", 5)],
)
def test_ghosts_vanish_to_the_noise(camera, name, times):
    ccd = load_camera(camera, 512).detector(name)
    ccd = dataclasses.replace(ccd, crosstalk=ccd.crosstalk * np.float32(times))  # DECam's are less than its ADU
    calibs = make_calibs(ccd)
    electrons, light = starry(ccd)
    raw = make_raw(ccd, electrons, calibs)
    left, cleaned = (remove_signature(raw, one, calibs) for one in (without(ccd), ccd))
    clean = remove_signature(make_raw(without(ccd), electrons, calibs), without(ccd), calibs)
    dark = (clean.mask == 0) & (light == SKY)
    ghost = (left.image - clean.image)[dark]
    strongest = ccd.crosstalk.max() * 40_000
    assert ghost.max() > 0.9 * strongest  # there is something to be removed
    lost = (cleaned.image - clean.image)[dark]
    quantum = 1.5 * ccd.amplifiers[0].gain  # both raws are rounded
    assert np.abs(lost).max() < quantum + 0.1 * strongest
    bright = ghost > 0.8 * strongest
    assert lost[bright].mean() == pytest.approx(0.0, abs=0.1 * ccd.amplifiers[0].read_noise)
    assert lost.mean() == pytest.approx(0.0, abs=0.02)  # and so do the ghosts of the sky itself


def test_large_corrections_are_flagged_where_the_victims_are():
    ccd = load_camera("lsstcam", 512).detector(94)
    calibs, light = make_calibs(ccd, structure=False), np.full(ccd.shape, SKY)
    source, victim = ccd.amplifiers[2], ccd.amplifiers[3]
    light[source.y0 + 40 : source.y0 + 50, source.x0 + 5 : source.x0 + 15] = 85_000.0
    exposure = remove_signature(make_raw(ccd, light, calibs), ccd, calibs)
    y, x = np.nonzero(exposure.mask & Mask.CROSSTALK)
    same_side = {a.x0 for a in ccd.amplifiers if a.flip_y == source.flip_y and abs(a.x0 - source.x0) == source.nx}
    assert {x0 for x0 in same_side if ((x >= x0) & (x < x0 + victim.nx)).any()} == same_side
    assert len(y) == 200 and exposure.summary["n_crosstalk_pixels"] == 200
    # 85,000 e leave 17 e in the neighbours, and 7 in the next ones, which is less than 3 read noises.
    mirrored = victim.flip_x != source.flip_x
    column = victim.x0 + (victim.nx - 1 - 14 if mirrored else 5)
    assert (exposure.mask[source.y0 + 40 : source.y0 + 50, column : column + 10] & Mask.CROSSTALK).all()
    assert not exposure.mask[source.y0 + 40, source.x0 + 5] & Mask.CROSSTALK


def test_what_is_passed_over_is_below_a_tenth_of_the_read_noise():
    ccd = load_camera("lsstcam", 512).detector(94)
    calibs = make_calibs(ccd, structure=False)
    noise = ccd.amplifiers[0].read_noise
    for level, removed in ((0.8, False), (3.0, True)):
        light = np.full(ccd.shape, SKY)
        amp = ccd.amplifiers[0]
        light[amp.y0 : amp.y0 + 64, amp.x0 : amp.x0 + 32] += level * 0.1 * noise / ccd.crosstalk.max()
        one, other = (remove_signature(make_raw(ccd, light, calibs), c, calibs) for c in (ccd, without(ccd)))
        change = np.unique(np.round((other.image - one.image)[amp.y0 : amp.y0 + 64, amp.nx : 2 * amp.nx], 2))
        # The backgrounds' ghost is one number for an amplifier; that of brighter pixels is another one.
        assert (len(change) > 1) == removed
        assert np.ptp(change) == pytest.approx(level * 0.1 * noise if removed else 0.0, rel=0.3)


def test_saturated_victims_stay_saturated():
    ccd = load_camera("lsstcam", 512).detector(94)
    amps = tuple(dataclasses.replace(a, saturation=65535.0) for a in ccd.amplifiers)
    ccd = dataclasses.replace(ccd, amplifiers=amps)
    calibs, light = make_calibs(ccd, structure=False), np.full(ccd.shape, SKY)
    for amp in amps[:2]:
        light[100:110, amp.x0 + 20 : amp.x0 + 30] = 200_000.0
    mask = remove_signature(make_raw(ccd, light, calibs), ccd, calibs).mask
    for amp in amps[:2]:
        assert (mask[100:110, amp.x0 + 20 : amp.x0 + 30] & Mask.SAT).all()


def test_dead_and_blank_amplifiers_leave_no_ghosts():
    ccd = load_camera("lsstcam", 512).detector(94)
    calibs = make_calibs(ccd, structure=False)
    raw = make_raw(ccd, np.full(ccd.shape, SKY), calibs)
    segments = dict(raw.segments)
    for number, value in ((0, 65535.0), (5, np.nan)):
        name = ccd.amplifiers[number].segment
        segments[name] = np.full(segments[name].shape, value, np.float32)
    exposure = remove_signature(dataclasses.replace(raw, segments=segments), ccd, calibs)
    good = exposure.mask == 0
    assert exposure.summary["n_dead_amplifiers"] == 2
    assert exposure.image[good].mean() == pytest.approx(SKY, abs=0.5)
    assert not (exposure.mask & Mask.CROSSTALK).any()
