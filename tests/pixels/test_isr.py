"""Signature removal on raws whose signature is known."""

import dataclasses
import time

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.model.camera import load_camera
from apflow.model.exposure import Mask, Raw
from apflow.pixels.isr import remove_signature
from tests.pixels.night import TIME_S, make_calibs, make_raw

CAMERA = load_camera("lsstcam", 512)
CCD = CAMERA.detector(94)
EXCLUDED = Mask.BAD | Mask.SAT | Mask.NO_DATA


def sky_raw(structure=True, level=900.0, seed=1):
    calibs = make_calibs(CCD, structure=structure)
    rng = np.random.default_rng(seed)
    lit = level * calibs.flat + calibs.dark * TIME_S
    electrons = (rng.poisson(lit) - calibs.dark * TIME_S) / calibs.flat
    return make_raw(CCD, electrons, calibs, seed=seed), calibs


@pytest.mark.parametrize(("camera", "name"), [("lsstcam", "R22_S11"), ("lsstcam", "R01_S00"), ("lsstcam", "R00_SW0")])
def test_segments_line_up(camera, name):
    cam = load_camera(camera, 512)
    ccd = cam.detector(name)
    calibs = make_calibs(ccd)
    x, y = np.meshgrid(np.arange(ccd.nx), np.arange(ccd.ny))
    scene = 1000.0 + 2.0 * x + 3.0 * y
    exposure = remove_signature(make_raw(ccd, scene, calibs), ccd, calibs)
    good = exposure.mask == 0
    noise = 1.5 * ccd.amplifiers[0].read_noise
    assert np.abs(exposure.image - scene)[good].max() < 6 * noise
    assert np.median((exposure.image - scene)[good]) == pytest.approx(0.0, abs=0.1)
    assert exposure.unit == "electron" and exposure.image.dtype == exposure.variance.dtype == np.float32
    assert exposure.mask.dtype == np.int32


def test_variance_is_that_of_blank_sky():
    raw, calibs = sky_raw()
    exposure = remove_signature(raw, CCD, calibs)
    good = exposure.mask == 0
    seen = exposure.image[good].var()
    assert exposure.variance[good].mean() == pytest.approx(seen, rel=0.02)
    assert exposure.image[good].mean() == pytest.approx(900.0, abs=0.5)


def test_overscan_follows_rows_and_passes_over_hits():
    raw, calibs = sky_raw(structure=False)
    amp = CCD.amplifiers[3]
    segment = raw.segments[amp.segment].copy()
    segment += (40 * np.sin(np.arange(segment.shape[0]) / 9)).astype(np.int64).astype(np.uint16)[:, None]
    segment[20, -30:-20] = 60000
    spoilt = dataclasses.replace(raw, segments={**raw.segments, amp.segment: segment})
    before, after = remove_signature(raw, CCD, calibs), remove_signature(spoilt, CCD, calibs)
    # A fifth of the row's overscan is hit: its interquartile mean moves by part of the read noise.
    assert np.abs(after.image - before.image).max() < 2.5


def test_saturation_is_masked_grown_and_interpolated():
    raw, calibs = sky_raw(structure=False)
    amp = CCD.amplifiers[0]
    segment = raw.segments[amp.segment].copy()
    segment[50, amp.prescan + 30] = 65535
    exposure = remove_signature(dataclasses.replace(raw, segments={**raw.segments, amp.segment: segment}), CCD, calibs)
    y, x = np.nonzero(exposure.mask & Mask.SAT)
    assert len(y) == 25 and np.ptp(y) == np.ptp(x) == 4
    assert (exposure.mask[y, x] & Mask.INTRP).all()
    assert exposure.image[y, x].mean() == pytest.approx(900.0, abs=60.0)


def test_defects_and_nan_are_masked_and_finite():
    raw, calibs = sky_raw()
    amp = CCD.amplifiers[5]
    segment = raw.segments[amp.segment].astype(np.float32)
    segment[7, 40] = np.nan
    flat = calibs.flat.copy()
    flat[300, 300], flat[301, 301] = np.nan, 0.0
    exposure = remove_signature(
        dataclasses.replace(raw, segments={**raw.segments, amp.segment: segment}),
        CCD,
        dataclasses.replace(calibs, flat=flat),
    )
    assert np.isfinite(exposure.image).all() and np.isfinite(exposure.variance).all() and (exposure.variance > 0).all()
    assert (exposure.mask[calibs.defects] & Mask.BAD).all() and (exposure.mask[calibs.defects] & Mask.INTRP).all()
    # A pixel that the flat cannot correct is bad, but it has seen light.
    assert ((exposure.mask & Mask.NO_DATA) != 0).sum() == 1
    # Only what nothing foretold is an unmasked NaN.
    assert ((exposure.mask & Mask.UNMASKEDNAN) != 0).sum() == 1
    assert (exposure.mask[(exposure.mask & Mask.UNMASKEDNAN) != 0] & (Mask.BAD | Mask.NO_DATA)).all()
    assert exposure.mask[300, 300] == Mask.BAD | Mask.INTRP
    assert exposure.mask[301, 301] == Mask.BAD | Mask.INTRP
    assert exposure.image[calibs.defects].mean() == pytest.approx(900.0, abs=10.0)


def test_dead_amplifier_is_masked_and_the_others_live():
    raw, calibs = sky_raw()
    amp = CCD.amplifiers[2]
    dead = dataclasses.replace(raw, segments={**raw.segments, amp.segment: np.zeros(amp.raw_shape, np.uint16)})
    exposure = remove_signature(dead, CCD, calibs)
    own = np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]
    assert (exposure.mask[own] == Mask.BAD | Mask.NO_DATA).all()
    assert exposure.image[own].mean() == pytest.approx(900.0, abs=10.0)
    assert ((exposure.mask & Mask.NO_DATA) != 0).sum() == amp.nx * amp.ny


def test_big_endian_integers_are_read_as_they_are():
    raw, calibs = sky_raw()
    big = dataclasses.replace(raw, segments={k: v.astype(">i4") for k, v in raw.segments.items()})
    assert np.allclose(remove_signature(big, CCD, calibs).image, remove_signature(raw, CCD, calibs).image, atol=1e-2)


def segments_of(raw, **changes):
    return dataclasses.replace(raw, segments={k: v for k, v in {**raw.segments, **changes}.items() if v is not None})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: segments_of(r, Segment05=None), "missing: Segment05"),
        (lambda r: segments_of(r, Segment99=np.zeros((3, 3))), "unknown: Segment99"),
        (lambda r: segments_of(r, Segment05=r.segments["Segment05"][:-1]), r"Segment05 .*\(301, 128\).*\(302, 128\)"),
        (lambda r: segments_of(r, **{k: np.full(v.shape, np.nan, "f4") for k, v in r.segments.items()}), "finite"),
        (lambda r: segments_of(r, **{k: np.zeros_like(v) for k, v in r.segments.items()}), "constant"),
        (lambda r: Raw(r.segments, dataclasses.replace(r.info, detector=95)), "not of detector 94"),
    ],
)
def test_unusable_raws_are_refused(spoil, message):
    raw, calibs = sky_raw()
    with pytest.raises(DataError, match=message):
        remove_signature(spoil(raw), CCD, calibs)


def test_calib_of_another_shape_is_refused():
    raw, calibs = sky_raw()
    with pytest.raises(DataError, match=r"bias .*\(10, 10\).*\(512, 512\)"):
        remove_signature(raw, CCD, dataclasses.replace(calibs, bias=np.zeros((10, 10), np.float32)))


def test_inputs_stay_and_cost_is_small():
    raw, calibs = sky_raw()
    before = {k: v.copy() for k, v in raw.segments.items()}, calibs.flat.copy()
    remove_signature(raw, CCD, calibs)
    start = time.process_time()
    for _ in range(5):
        remove_signature(raw, CCD, calibs)
    assert (time.process_time() - start) / 5 < 0.05
    assert all((raw.segments[k] == v).all() for k, v in before[0].items()) and (calibs.flat == before[1]).all()
