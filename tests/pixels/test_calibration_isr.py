"""Calibration exposures corrected to the point that their intent allows."""

import dataclasses

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.model.calibration import Intent, Masters
from apflow.model.camera import load_camera
from apflow.model.exposure import Mask
from apflow.pixels.calibration_isr import correct
from tests.pixels.calibration_frames import CCD, SHAPE, Ccd, part, with_segments

RNG = np.random.default_rng(8)
NOISE_E = CCD.amplifiers[0].read_noise
TIME_S = 15.0


def structured(detector=CCD):
    ny, nx = detector.shape
    defects = np.zeros((ny, nx), bool)
    defects[100:110, 77] = True
    return Ccd(
        detector,
        bias=20 + np.arange(nx) / 10 + np.arange(ny)[:, None] / 20,
        dark=10 + np.arange(nx) / 100 + np.arange(ny)[:, None] / 50,
        flat=0.8 + np.arange(nx) / 2000 + np.arange(ny)[:, None] / 4000,
        defects=defects,
    )


@pytest.mark.parametrize("name", ["R22_S11", "R01_S00", "R00_SW0"])
@pytest.mark.parametrize("intent", Intent)
def test_what_is_left_is_what_the_exposure_was_taken_for(intent, name):
    ccd = structured(load_camera("lsstcam", 512).detector(name))
    light = {Intent.FLAT: 900.0, Intent.CBP: 900.0}.get(intent, 0.0)
    raw = ccd.expose(light, TIME_S, dark=intent is not Intent.BIAS)
    corrected = correct(raw, ccd.detector, ccd.masters(), intent)
    expected = {
        Intent.BIAS: 0.0, Intent.DARK: ccd.dark * TIME_S, Intent.FLAT: light * ccd.flat, Intent.CBP: light,
    }[intent]  # fmt: skip
    assert corrected.unit == ("adu" if intent is Intent.BIAS else "electron")
    assert corrected.image.dtype == np.float32 and corrected.mask.dtype == np.int32
    # Blocks of 64 x 64 px: the planes' slopes would show in any that is not in its place.
    off = (corrected.image - expected).reshape(8, 64, 8, 64).mean((1, 3))
    noise = np.sqrt((light + 15 * TIME_S + NOISE_E**2 * (1 + 64 / 50)) / 4096)
    assert np.abs(off).max() < 5 * noise


def test_missing_masters_are_left_out():
    ccd = structured()
    bias, dark = (ccd.expose(time_s=TIME_S, dark=d) for d in (False, True))
    left = correct(bias, CCD, Masters(), Intent.BIAS).image - ccd.bias
    assert abs(left.mean()) < 0.1
    left = correct(dark, CCD, Masters(), Intent.DARK).image - ccd.dark * TIME_S
    gains = np.zeros(SHAPE)
    for amp in CCD.amplifiers:
        gains[part(amp)] = amp.gain
    assert abs((left - ccd.bias * gains).mean()) < 0.2
    assert correct(dark, CCD, Masters(), Intent.CBP).mask.max() == 0


def test_masks_name_defects_saturation_and_what_has_no_data():
    ccd = structured()
    amps = CCD.amplifiers
    light = np.full(SHAPE, 900.0)
    light[300:310, 300:310] = 300_000.0
    raw = ccd.expose(light)
    nan = raw.segments[amps[4].segment].astype(np.float32)
    nan[7, 40] = np.nan
    raw = with_segments(raw, **{amps[4].segment: nan, amps[2].segment: np.full(amps[2].raw_shape, 7, np.uint16)})
    corrected = correct(raw, CCD, ccd.masters(), Intent.FLAT)
    assert np.isfinite(corrected.image).all()
    assert corrected.dead == (amps[2].name,)
    dead = np.zeros(SHAPE, bool)
    dead[part(amps[2])] = True
    saturated = light > 1000
    assert (corrected.mask[dead] == Mask.BAD | Mask.NO_DATA).all()
    assert ((corrected.mask & Mask.SAT != 0) == saturated).all()
    lost = (corrected.mask & Mask.NO_DATA != 0) & ~dead
    assert lost.sum() == 1 and corrected.image[lost] == 0
    assert ((corrected.mask & Mask.BAD != 0) == ccd.defects | lost | dead).all()


def test_beam_is_interpolated_over_defects_and_keeps_its_saturated_core():
    ccd = structured()
    light = np.full(SHAPE, 900.0)
    light[300:310, 300:310] = 300_000.0
    corrected = correct(ccd.expose(light), CCD, ccd.masters(), Intent.CBP)
    assert (corrected.mask[ccd.defects] == Mask.BAD | Mask.INTRP).all()
    assert corrected.image[ccd.defects].mean() == pytest.approx(900.0, abs=40.0)
    core = corrected.image[300:310, 300:310]
    assert (corrected.mask[300:310, 300:310] == Mask.SAT).all() and core.min() > 80_000


@pytest.mark.parametrize("intent", Intent)
def test_wrong_inputs_are_named(intent):
    ccd = structured()
    raw, masters = ccd.expose(), ccd.masters()
    segment = CCD.amplifiers[5].segment
    short = with_segments(raw, **{segment: raw.segments[segment][:-1]})
    lost = dataclasses.replace(raw, segments={k: v for k, v in raw.segments.items() if k != segment})
    other = dataclasses.replace(raw, info=dataclasses.replace(raw.info, detector=95))
    small = dataclasses.replace(masters, flat=np.ones((10, 10), np.float32))
    for bad, given, message in [
        (short, masters, rf"{segment} .*\(301, 128\).*\(302, 128\)"),
        (lost, masters, f"missing: {segment}"),
        (other, masters, "not of detector 94"),
        (raw, small, r"flat .*\(10, 10\).*\(512, 512\)"),
    ]:
        with pytest.raises(DataError, match=message):
            correct(bad, CCD, given, intent)


def test_inputs_stay():
    ccd = structured()
    raw, masters = ccd.expose(900.0), ccd.masters()
    before = {k: v.copy() for k, v in raw.segments.items()}, masters.flat.copy(), masters.dark.copy()
    correct(raw, CCD, masters, Intent.CBP)
    assert all((raw.segments[k] == v).all() for k, v in before[0].items())
    assert (masters.flat == before[1]).all() and (masters.dark == before[2]).all()
