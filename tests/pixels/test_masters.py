"""Masters agree with the truth of the simulated CCD within the errors that they predict."""

import dataclasses

import numpy as np
import pytest

from apflow.errors import BadRequest, DataError
from apflow.model.calibration import Intent, Masters
from apflow.pixels.defects import find_defects
from apflow.pixels.masters import combine, separate
from apflow.simulate.calibration import Faults, lamp_level, render_calibration
from apflow.simulate.calibs import gain_ratio, response
from apflow.simulate.scenario import Scenario

SCENARIO = Scenario(camera="comcam", size=256, detectors=(4,))
DETECTOR = SCENARIO.load_camera().detector(4)
TRUTH, RATIO = response(SCENARIO, 4), gain_ratio(SCENARIO, 4)
PERFECT = Masters(bias=TRUTH.bias, dark=TRUTH.dark * RATIO)
TIMES_S = {Intent.BIAS: 0.0, Intent.DARK: 300.0, Intent.FLAT: 5.0}
WANTED = {Intent.BIAS: TRUTH.bias, Intent.DARK: TRUTH.dark * RATIO, Intent.FLAT: TRUTH.flat * RATIO}


def raws(intent, n, exposure_time_s=None, **faults):
    time_s = TIMES_S[intent] if exposure_time_s is None else exposure_time_s
    return [
        render_calibration(
            SCENARIO,
            intent,
            sequence,
            4,
            exposure_time_s=time_s,
            physical_filter="r" if intent is Intent.FLAT else "",
            faults=Faults(**faults),
        )
        for sequence in range(1, n + 1)
    ]


def masters(intent):
    return PERFECT if intent is Intent.FLAT else Masters(bias=PERFECT.bias if intent is Intent.DARK else None)


def part(amp, plane):
    return plane[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]


def pulls(master, intent):
    """Errors over those predicted, without defects; a flat is relative to its own level."""
    good = ~TRUTH.defects
    level = np.median((master.image / WANTED[intent])[good]) if intent is Intent.FLAT else 1.0
    return ((master.image / level - WANTED[intent]) / np.sqrt(master.variance))[good]


@pytest.mark.parametrize("n", [3, 10])
@pytest.mark.parametrize("intent", TIMES_S)
def test_errors_are_as_predicted_and_no_cosmic_ray_is_left(intent, n):
    found = pulls(combine(raws(intent, n), DETECTOR, masters(intent), intent), intent)
    assert abs(found.mean()) < 0.06  # a row's level is shared: 256 of them, not 65536 pixels
    assert found.std() == pytest.approx(1, abs=0.03)
    assert np.abs(found).max() < 6


def test_more_exposures_give_less_noise():
    few, many = (combine(raws(Intent.DARK, n), DETECTOR, masters(Intent.DARK), Intent.DARK) for n in (3, 12))
    assert np.median(few.variance) / np.median(many.variance) == pytest.approx(4, rel=0.05)
    assert np.median(many.n_frames) == 12 and (many.n_frames < 12).any()


def test_units_are_those_that_the_alert_pipeline_expects():
    dark = combine(raws(Intent.DARK, 3, 100.0), DETECTOR, masters(Intent.DARK), Intent.DARK)
    assert dark.levels == pytest.approx([100.0] * 3)
    hot = TRUTH.dark > 20
    assert dark.image[hot] == pytest.approx((TRUTH.dark * RATIO)[hot], rel=0.05)
    flat = combine(raws(Intent.FLAT, 3), DETECTOR, PERFECT, Intent.FLAT)
    assert np.median(flat.image) == pytest.approx(1, abs=0.01)


def test_levels_of_flats_are_those_of_the_lamp():
    master = combine(raws(Intent.FLAT, 6), DETECTOR, PERFECT, Intent.FLAT)
    lamp = np.array([lamp_level(SCENARIO, k) for k in range(1, 7)])
    assert np.std(lamp) > 1e-3
    assert master.levels / lamp == pytest.approx(np.full(6, np.median(master.levels / lamp)), rel=3e-4)


def test_darks_of_several_times_have_one_rate():
    mixed = raws(Intent.DARK, 3, 100.0) + raws(Intent.DARK, 4, 300.0)[3:]
    found = pulls(combine(mixed, DETECTOR, masters(Intent.DARK), Intent.DARK), Intent.DARK)
    assert found.std() == pytest.approx(1, abs=0.03)


def test_a_noisy_amplifier_predicts_its_own_noise():
    noisy, other = DETECTOR.amplifiers[:2]
    master = combine(raws(Intent.BIAS, 8, read_noise={noisy.name: 3.0}), DETECTOR, Masters(), Intent.BIAS)
    assert np.median(part(noisy, master.variance)) / np.median(part(other, master.variance)) == pytest.approx(
        9, rel=0.2
    )
    assert pulls(master, Intent.BIAS).std() == pytest.approx(1, abs=0.03)
    assert master.read_noise[0] / master.read_noise[1] == pytest.approx(3, rel=0.05)


def test_amplifiers_that_are_dead_in_some_exposures_come_from_the_others():
    amp, other = DETECTOR.amplifiers[0], DETECTOR.amplifiers[1]
    some = raws(Intent.FLAT, 5)
    some[1:3] = raws(Intent.FLAT, 3, dead=(amp.name,))[1:]
    master = combine(some, DETECTOR, PERFECT, Intent.FLAT)
    assert np.median(part(amp, master.n_frames)) == 3 and np.median(part(other, master.n_frames)) == 5
    assert np.abs(pulls(master, Intent.FLAT)).max() < 6


def test_an_amplifier_that_is_always_dead_has_no_value():
    amp = DETECTOR.amplifiers[0]
    master = combine(raws(Intent.FLAT, 3, dead=(amp.name,)), DETECTOR, PERFECT, Intent.FLAT)
    assert not part(amp, master.image).any() and not part(amp, master.n_frames).any()
    assert np.isinf(part(amp, master.variance)).all() and np.isnan(master.read_noise[0])
    assert np.isfinite(master.image).all()
    assert part(amp, find_defects(DETECTOR, None, [master.image])).all()


def test_pixels_without_value_are_left_out():
    some = raws(Intent.BIAS, 4)
    amp = DETECTOR.amplifiers[3]
    broken = some[2].segments[amp.segment].astype(np.float32)
    broken[: amp.ny // 2] = np.nan
    some[2] = dataclasses.replace(some[2], segments={**some[2].segments, amp.segment: broken})
    master = combine(some, DETECTOR, Masters(), Intent.BIAS)
    assert sorted(np.unique(part(amp, master.n_frames)))[-2:] == [3, 4]
    assert np.mean(part(amp, master.n_frames) == 3) == pytest.approx(0.5, abs=0.01)
    assert np.abs(pulls(master, Intent.BIAS)).max() < 6


def test_saturated_pixels_of_flats_are_left_out_and_hot_ones_of_darks_stay():
    amp = DETECTOR.amplifiers[0]
    some = raws(Intent.FLAT, 4)
    full = some[0].segments[amp.segment].copy()
    full[:, amp.prescan : amp.prescan + amp.nx] = int(amp.saturation)
    some[0] = dataclasses.replace(some[0], segments={**some[0].segments, amp.segment: full})
    master = combine(some, DETECTOR, PERFECT, Intent.FLAT)
    assert np.median(part(amp, master.n_frames)) == 3
    hottest = TRUTH.dark.max()
    dark = combine(raws(Intent.DARK, 3, 3000.0), DETECTOR, masters(Intent.DARK), Intent.DARK).image
    where = np.unravel_index(np.argmax(TRUTH.dark), dark.shape)
    assert 20 < dark[where] < 0.5 * hottest  # it saturates, and is hot all the same


def test_inputs_are_left_as_they_are():
    some, bias = raws(Intent.DARK, 3), TRUTH.bias.copy()
    before = {name: data.copy() for name, data in some[0].segments.items()}
    combine(some, DETECTOR, Masters(bias=bias), Intent.DARK)
    assert all(np.array_equal(some[0].segments[name], data) for name, data in before.items())
    assert np.array_equal(bias, TRUTH.bias)


def test_defects_are_those_of_the_ccd():
    dark = combine(raws(Intent.DARK, 5), DETECTOR, masters(Intent.DARK), Intent.DARK).image
    flat = combine(raws(Intent.FLAT, 5), DETECTOR, PERFECT, Intent.FLAT).image
    found = find_defects(DETECTOR, dark, [flat])
    assert found[TRUTH.defects].all()
    assert np.count_nonzero(found & ~TRUTH.defects) <= 40  # what hot pixels spill over, and the end of a bad column
    assert find_defects(DETECTOR, dark, [])[TRUTH.dark > 20].all()
    assert not find_defects(DETECTOR, None, [flat])[(TRUTH.dark > 20) & (TRUTH.flat > 0.9)].any()


def test_noise_makes_no_defects():
    rng = np.random.default_rng(1)
    dark = rng.normal(0.05, 2.0, DETECTOR.shape).astype(np.float32)  # as of three darks of 1 s
    flat = rng.normal(1.0, 0.06, DETECTOR.shape).astype(np.float32)
    assert not find_defects(DETECTOR, dark, [flat]).any()


def test_levels_are_those_of_the_lamp_times_those_of_the_parts():
    lamp, parts = np.array([1000.0, 1100.0, 900.0, 1050.0]), np.array([0.9, 1.0, 1.02])
    levels = lamp[:, None] * parts
    levels[0, 2] = levels[2, 0] = np.nan
    found_lamp, found_parts = separate(levels)
    assert found_parts == pytest.approx(parts / np.median(parts), rel=1e-6)
    assert found_lamp == pytest.approx(lamp * np.median(parts), rel=1e-6)
    levels[:, 1], levels[3] = np.nan, np.nan
    found_lamp, found_parts = separate(levels)
    assert np.isnan(found_parts[1]) and np.isnan(found_lamp[3])
    assert found_parts[2] / found_parts[0] == pytest.approx(1.02 / 0.9, rel=1e-6)


def test_bad_requests_and_data_are_named():
    bias = raws(Intent.BIAS, 1)
    with pytest.raises(BadRequest, match="1 cbp exposures"):
        combine(bias, DETECTOR, Masters(), Intent.CBP)
    with pytest.raises(BadRequest, match="0 bias exposures"):
        combine([], DETECTOR, Masters(), Intent.BIAS)
    with pytest.raises(DataError, match="no exposure time"):
        combine(bias, DETECTOR, Masters(), Intent.DARK)
    with pytest.raises(DataError, match="has light"):
        combine(raws(Intent.BIAS, 1), DETECTOR, Masters(bias=TRUTH.bias + 100), Intent.FLAT)
    with pytest.raises(DataError, match="not of detector"):
        combine(bias, SCENARIO.load_camera().detector(5), Masters(), Intent.BIAS)
    with pytest.raises(DataError, match="has data"):
        combine(raws(Intent.BIAS, 1, dead=tuple(a.name for a in DETECTOR.amplifiers)), DETECTOR, Masters(), Intent.BIAS)
    with pytest.raises(BadRequest, match="none; accepted"):
        find_defects(DETECTOR, None, [])
    with pytest.raises(BadRequest, match=r"\(3, 3\); accepted"):
        find_defects(DETECTOR, np.zeros((3, 3), np.float32), [])
