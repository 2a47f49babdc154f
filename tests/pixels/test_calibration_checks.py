"""What checks measure of calibration exposures whose truth is known."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from apflow.errors import DataError
from apflow.model.calibration import Intent, Masters
from apflow.model.calibration_metrics import AMPLIFIER, DETECTOR
from apflow.model.camera import load_camera
from apflow.pixels.calibration_checks import check
from tests.pixels.calibration_frames import CCD, SHAPE, Ccd, part, with_segments
from tests.pixels.night import cosmic_rays

AMPS = CCD.amplifiers
NOISE_E = AMPS[0].read_noise
PIXELS = AMPS[0].nx * AMPS[0].ny
LEVEL, TIME_S = 30_000.0, 100.0


def of(checks, name):
    return np.array([values[name] for values in checks.amplifiers.values()])


def scattered(rng, n, away=3):
    """Pixels (y, x) not within some pixels of one another or of a border of an amplifier."""
    found = np.zeros(SHAPE, bool)
    while found.sum() < n:
        y, x = rng.integers(away, 512 - away, 2)
        inside = away <= y % 256 < 256 - away and away <= x % 64 < 64 - away
        if inside and not found[y - away : y + away + 1, x - away : x + away + 1].any():
            found[y, x] = True
    return found


def test_read_noise_and_overscan():
    rng = np.random.default_rng(3)
    ccd = Ccd(noises=rng.uniform(0.5, 2, 16))
    for intent, light in ((Intent.BIAS, 0.0), (Intent.FLAT, LEVEL)):
        checks = check(ccd.expose(light), CCD, ccd.masters(), intent)
        truth = ccd.noises * np.sqrt(1 + (AMPS[0].gain / NOISE_E / ccd.noises) ** 2 / 12)  # ADC steps are noise too
        error = truth / math.sqrt(2 * 256 * 53)
        pulls = (of(checks, "read_noise_ratio") - truth) / error
        assert (pulls**2).sum() < 35 and np.abs(pulls).max() < 4  # chi^2 of 16
        assert of(checks, "read_noise_electron") == pytest.approx(of(checks, "read_noise_ratio") * NOISE_E)
        assert checks.detector["mean_read_noise_ratio"] == pytest.approx(truth.mean(), rel=0.01)
        level = [1000 + 20 * a.x0 / a.nx + 1.5 * a.ny / a.raw_shape[0] for a in AMPS]
        assert of(checks, "overscan_level_adu") == pytest.approx(level, abs=0.3)
        # Of the ramp of 3 ADU the 16 blocks' medians see 15/16 of what the science rows have, besides noise.
        assert of(checks, "overscan_drift_adu") == pytest.approx(3 * 256 / 302 * 15 / 16, abs=1.0)


def test_hits_on_the_overscan_do_not_count_as_noise():
    raw = Ccd().expose()
    segment = raw.segments[AMPS[3].segment].copy()
    segment[::10, -20:-17] = 9000
    clean, hit = (
        check(r, CCD, Masters(), Intent.BIAS) for r in (raw, with_segments(raw, **{AMPS[3].segment: segment}))
    )
    name = AMPS[3].name
    assert hit.amplifiers[name]["read_noise_electron"] == pytest.approx(
        clean.amplifiers[name]["read_noise_electron"], rel=0.01
    )


def test_bias_against_its_master():
    rng = np.random.default_rng(4)
    ccd = Ccd(bias=5 + rng.normal(0, 3, SHAPE[1]) + np.zeros(SHAPE))
    masters = ccd.masters()
    same = check(ccd.expose(dark=False), CCD, masters, Intent.BIAS)
    # Beyond its noise nothing is left, and noise is subtracted but for its own scatter.
    assert np.abs(of(same, "bias_residual_adu")).max() < 0.25
    assert of(same, "bias_row_rms_adu").mean() < 0.25 and of(same, "bias_column_rms_adu").mean() < 0.15
    assert same.picture.std() == pytest.approx(NOISE_E / AMPS[0].gain / math.sqrt(16), rel=0.15)

    rows, columns = rng.normal(0, 2, 512), rng.normal(0, 1.5, 512)
    ramp = np.zeros(SHAPE)
    for amp in AMPS:  # 0 to 8 ADU in the order of readout
        ramp[part(amp)] = np.linspace(0, 8, amp.ny)[:: -1 if amp.flip_y else 1, None]
    for change, expected in [
        (np.full(SHAPE, 3.0), {"bias_residual_adu": 3.0}),
        (rows[:, None] + np.zeros(SHAPE), {"bias_row_rms_adu": [rows[a.y0 : a.y0 + a.ny].std() for a in AMPS]}),
        (columns + np.zeros(SHAPE), {"bias_column_rms_adu": [columns[a.x0 : a.x0 + a.nx].std() for a in AMPS]}),
        (ramp, {"bias_drift_adu": 7.0, "bias_residual_adu": 4.0}),
    ]:
        moved = dataclasses.replace(ccd, bias=ccd.bias + change).expose(dark=False)
        checks = check(moved, CCD, masters, Intent.BIAS)
        for name, value in expected.items():
            assert of(checks, name) == pytest.approx(value, abs=0.7 if "drift" in name else 0.35), name


def test_dark_current_is_the_true_one_within_its_error():
    ccd = Ccd()
    for amp, rate in zip(AMPS, np.linspace(0.02, 0.4, 16), strict=True):
        ccd.dark[part(amp)] = rate
    masters = dataclasses.replace(ccd.masters(), dark=np.full(SHAPE, 0.1, np.float32))
    checks = check(ccd.expose(time_s=TIME_S), CCD, masters, Intent.DARK)
    rates = np.linspace(0.02, 0.4, 16)
    # Pixels and, one for each row, the overscan's levels.
    error = np.sqrt((rates * TIME_S + NOISE_E**2) / PIXELS + 1.2 * NOISE_E**2 / 54 / 256) / TIME_S
    pulls = (of(checks, "dark_current_electron_per_s") - rates) / error
    assert (pulls**2).sum() < 35 and np.abs(pulls).max() < 4
    assert of(checks, "dark_residual_electron_per_s") == pytest.approx(rates - 0.1, abs=4 * error.max())
    assert checks.detector["median_dark_current_electron_per_s"] == pytest.approx(np.median(rates), abs=0.002)


def test_hot_pixels_new_and_gone_are_counted_and_cosmic_rays_are_not():
    rng = np.random.default_rng(6)
    chosen = np.flatnonzero(scattered(rng, 90))
    rng.shuffle(chosen)
    new, gone, known = chosen[:40], chosen[40:60], chosen[60:]
    before, now = Ccd(), Ccd()
    for where, planes in ((known, (before.dark, now.dark)), (gone, (before.dark,)), (new, (now.dark,))):
        for plane in planes:
            plane.reshape(-1)[where] = 10 ** rng.uniform(1, 2, where.size)
    before.defects.reshape(-1)[[*known, *gone]] = True
    charge = gaussian_filter(1.0 * (scattered(rng, 30)), 0.45) * 3000 + cosmic_rays(rng, SHAPE, 40)
    for hits in (0.0, charge):
        raw = now.expose(time_s=TIME_S, charge=np.round(hits))
        checks = check(raw, CCD, before.masters(), Intent.DARK)
        assert checks.detector["n_gone_bad_pixels"] == gone.size
        if np.any(hits):
            # Some hot pixels are under a hit or beside one.
            assert checks.detector["n_new_bad_pixels"] == pytest.approx(new.size, abs=3)
            assert checks.detector["n_cosmic_ray_pixels"] > 100
        else:
            assert checks.detector["n_new_bad_pixels"] == new.size
            assert checks.detector["n_hot_pixels"] == new.size + known.size
            assert checks.detector["n_cosmic_ray_pixels"] == 0
            y, _ = np.divmod(new, 512)
            in_first = [((part(a)[0].start <= y) & (y < part(a)[0].stop)).sum() for a in (AMPS[0],)]
            assert sum(v["n_new_bad_pixels"] for v in list(checks.amplifiers.values())[:8]) == in_first[0]


def test_what_bleeds_from_hot_pixels_is_neither_bad_nor_a_hit():
    ccd = Ccd()
    ccd.dark[30, 30] = ccd.dark[90, 40] = 2000.0
    charge = np.zeros(SHAPE)
    charge[[29, 31, 89, 91], [30, 30, 40, 40]] = 30_000
    masters = Ccd().masters()
    masters.defects[90, 40] = True
    checks = check(ccd.expose(time_s=TIME_S, charge=charge), CCD, masters, Intent.DARK)
    assert checks.amplifiers[AMPS[0].name]["saturated_fraction"] == 2 / PIXELS
    found = checks.detector
    assert (found["n_new_bad_pixels"], found["n_hot_pixels"], found["n_cosmic_ray_pixels"]) == (1, 2, 0)


def test_bright_column_is_no_cosmic_ray():
    ccd = Ccd()
    ccd.dark[20:120, 200] = 50.0
    checks = check(ccd.expose(time_s=TIME_S), CCD, Ccd().masters(), Intent.DARK)
    assert checks.detector["n_new_bad_pixels"] == 100 and checks.detector["n_cosmic_ray_pixels"] == 0


def test_flat_level_and_drift_of_gains():
    rng = np.random.default_rng(7)
    ccd = Ccd(flat=1 + 0.01 * rng.normal(size=SHAPE), gains=rng.uniform(0.95, 1.05, 16))
    masters = ccd.masters()
    drift = rng.uniform(0.97, 1.03, 16)
    checks = check(dataclasses.replace(ccd, gains=ccd.gains * drift).expose(LEVEL), CCD, masters, Intent.FLAT)
    error = 3 / math.sqrt(LEVEL * 16_384)
    believed = 1 / (ccd.gains * drift)
    assert of(checks, "flat_level_electron") == pytest.approx(LEVEL * believed, rel=1e-3)
    assert of(checks, "flat_level_ratio") == pytest.approx(believed / np.median(believed), rel=1e-3)
    assert of(checks, "gain_drift_ratio") == pytest.approx(1 / drift / np.median(1 / drift), rel=3 * error)
    assert of(checks, "flat_structure_ratio").max() < 1e-3
    assert checks.detector["n_new_bad_pixels"] == checks.detector["n_gone_bad_pixels"] == 0


def test_structure_and_slope_of_a_flat():
    x, y = np.meshgrid(np.arange(512) / 512 - 0.5, np.arange(512) / 512 - 0.5)
    masters = Ccd().masters()
    checks = check(Ccd().expose(LEVEL * (1 + 0.03 * x - 0.04 * y)), CCD, masters, Intent.FLAT)
    assert checks.detector["illumination_slope_ratio"] == pytest.approx(0.05, rel=0.02)
    # A slope of the light is no drift of gains.
    assert of(checks, "gain_drift_ratio") == pytest.approx(1.0, abs=1e-3)
    level = check(Ccd().expose(LEVEL), CCD, masters, Intent.FLAT)
    assert level.detector["illumination_slope_ratio"] < 5e-4
    waves = 0.01 * np.sin(np.arange(512) * 2 * np.pi / 64)
    checks = check(Ccd().expose(LEVEL * (1 + waves)), CCD, masters, Intent.FLAT)
    assert of(checks, "flat_structure_ratio") == pytest.approx(0.01 / math.sqrt(2), rel=0.03)
    assert checks.picture.shape == (128, 128) and checks.picture.dtype == np.float32
    assert checks.picture.std() == pytest.approx(0.01 / math.sqrt(2), rel=0.1)


def test_low_and_high_pixels_of_a_flat_new_and_gone():
    rng = np.random.default_rng(9)
    chosen = np.flatnonzero(scattered(rng, 80))
    rng.shuffle(chosen)
    low, high, gone, known = chosen[:30], chosen[30:40], chosen[40:60], chosen[60:]
    before, now = Ccd(), Ccd()
    for where, factor, flats in ((low, 0.5, (now.flat,)), (high, 1.4, (now.flat,)), (gone, 0.3, (before.flat,)),
                                 (known, 0.1, (before.flat, now.flat))):  # fmt: skip
        for flat in flats:
            flat.reshape(-1)[where] = factor
    before.flat[300:400, 35], before.defects[300:400, 35] = 0.3, True  # a column that works again
    before.defects.reshape(-1)[[*gone, *known]] = True
    before.defects[5, 5] = True  # hot: a flat does not show it, nor whether it is gone
    checks = check(now.expose(LEVEL), CCD, before.masters(), Intent.FLAT)
    assert checks.detector["n_new_bad_pixels"] == low.size + high.size
    assert checks.detector["n_gone_bad_pixels"] == gone.size + 100


def test_gain_by_photon_transfer():
    rng = np.random.default_rng(10)
    ccd = Ccd(gains=rng.uniform(0.9, 1.1, 16))
    raw, partner = ccd.expose(LEVEL), ccd.expose(LEVEL * 1.02, seed=2)
    checks = check(raw, CCD, ccd.masters(), Intent.FLAT, partner)
    pulls = (of(checks, "ptc_gain_electron_per_adu") / AMPS[0].gain - ccd.gains) / (
        of(checks, "ptc_gain_error_electron_per_adu") / AMPS[0].gain
    )
    assert (pulls**2).sum() < 35
    assert of(checks, "ptc_gain_ratio") == pytest.approx(of(checks, "ptc_gain_electron_per_adu") / AMPS[0].gain)
    assert of(checks, "ptc_read_noise_ratio") == pytest.approx(1.0, abs=0.06)
    alone = check(raw, CCD, ccd.masters(), Intent.FLAT)
    assert np.isnan(of(alone, "ptc_gain_ratio")).all() and math.isnan(alone.detector["median_ptc_gain_ratio"])
    other = dataclasses.replace(partner, info=dataclasses.replace(partner.info, detector=95))
    with pytest.raises(DataError, match="detector 95"):
        check(raw, CCD, ccd.masters(), Intent.FLAT, other)


def test_saturated_flat():
    light = np.full(SHAPE, LEVEL)
    light[part(AMPS[0])] = 300_000.0
    light[part(AMPS[1])][:64] = 300_000.0
    checks = check(Ccd().expose(light), CCD, Ccd().masters(), Intent.FLAT)
    first, second, third = (checks.amplifiers[a.name] for a in AMPS[:3])
    assert first["saturated_fraction"] == 1 and first["peak_ratio"] > 1 and math.isnan(first["flat_level_electron"])
    assert second["saturated_fraction"] == 0.25 and second["peak_ratio"] > 1
    assert second["flat_level_electron"] == pytest.approx(LEVEL, rel=1e-3)
    assert third["saturated_fraction"] == 0 and third["peak_adu"] == pytest.approx(
        1000 + LEVEL / AMPS[2].gain, rel=0.05
    )
    assert checks.detector["n_new_bad_pixels"] == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_flat_without_light_has_a_level_and_no_ratios_that_it_cannot_have(seed):
    raw = Ccd().expose(0.0, seed=seed)
    checks = check(raw, CCD, Ccd().masters(), Intent.FLAT, Ccd().expose(0.0, seed=9))
    assert np.abs(of(checks, "flat_level_electron")).max() < 1
    assert np.isnan(of(checks, "ptc_gain_ratio")).all()
    for name in ("n_new_bad_pixels", "n_gone_bad_pixels"):  # a pixel that sees nothing is like the others
        assert np.isnan(of(checks, name)).all()


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_ccd_without_noise_is_measured(noise):
    ccd = Ccd(noises=np.full(16, noise))
    for intent, light in ((Intent.BIAS, 0.0), (Intent.DARK, 0.0), (Intent.FLAT, LEVEL), (Intent.CBP, 0.0)):
        checks = check(ccd.expose(light, TIME_S), CCD, ccd.masters(), intent, ccd.expose(light, TIME_S, seed=2))
        assert of(checks, "read_noise_electron").max() < 0.5 and checks.detector["n_dead_amplifiers"] == 0


@pytest.mark.parametrize("intent", Intent)
def test_dead_amplifiers_and_nan(intent):
    raw = Ccd().expose(LEVEL if intent is Intent.FLAT else 0.0, time_s=TIME_S)
    nan = raw.segments[AMPS[1].segment].astype(np.float32)
    nan[5:50, 20:40] = np.nan
    nothing = np.full(AMPS[2].raw_shape, np.nan, np.float32)
    spoilt = with_segments(
        raw,
        **{AMPS[0].segment: np.full(AMPS[0].raw_shape, 99, np.uint16), AMPS[1].segment: nan, AMPS[2].segment: nothing},
    )
    clean, checks = (check(r, CCD, Ccd().masters(), intent) for r in (raw, spoilt))
    assert checks.detector["n_dead_amplifiers"] == 2 and of(checks, "is_dead").sum() == 2
    for amp in (AMPS[0], AMPS[2]):
        assert checks.amplifiers[amp.name]["is_dead"] == 1
        assert math.isnan(checks.amplifiers[amp.name]["saturated_fraction"])
        assert math.isnan(checks.amplifiers[amp.name]["n_new_bad_pixels"])
    for amp in AMPS[3:]:
        assert checks.amplifiers[amp.name]["read_noise_electron"] == clean.amplifiers[amp.name]["read_noise_electron"]
    name = {Intent.BIAS: "bias_residual_adu", Intent.DARK: "dark_current_electron_per_s",
            Intent.FLAT: "flat_level_electron", Intent.CBP: "background_electron"}[intent]  # fmt: skip
    assert checks.amplifiers[AMPS[1].name][name] == pytest.approx(
        clean.amplifiers[AMPS[1].name][name], rel=0.3, abs=0.3
    )
    assert np.isnan(of(checks, name)).sum() == 2 and math.isfinite(checks.detector[f"median_{name}"])
    assert np.isnan(checks.picture).mean() == pytest.approx(2 / 16, abs=0.01)


def test_all_dead_is_no_error():
    raw = Ccd().expose()
    dead = with_segments(raw, **{name: np.zeros_like(s) for name, s in raw.segments.items()})
    for intent in Intent:
        checks = check(dead, CCD, Ccd().masters(), intent, dead if intent is Intent.FLAT else None)
        assert checks.detector["n_dead_amplifiers"] == 16
        assert math.isnan(checks.detector["n_new_bad_pixels"])


#: What is known of each intent without any master.
WITHOUT = {
    Intent.BIAS: set(),
    Intent.DARK: {"dark_current_electron_per_s", "n_hot_pixels", "n_cosmic_ray_pixels"},
    Intent.FLAT: {"flat_level_electron", "flat_level_ratio"},
    Intent.CBP: {"background_electron"},
}
ALWAYS = {
    "is_dead", "overscan_level_adu", "overscan_drift_adu", "read_noise_electron", "read_noise_ratio",
    "saturated_fraction", "peak_adu", "peak_ratio",
}  # fmt: skip


@pytest.mark.parametrize("intent", Intent)
def test_what_is_not_known_is_nan_and_not_zero(intent):
    raw = Ccd().expose(LEVEL if intent is Intent.FLAT else 0.0)
    checks = check(raw, CCD, Masters(), intent)
    assert list(checks.detector) == [m.name for m in DETECTOR]
    for values in checks.amplifiers.values():
        assert list(values) == [m.name for m in AMPLIFIER]
        assert {name for name, value in values.items() if not math.isnan(value)} == ALWAYS | WITHOUT[intent]
    own = {
        name for name, value in checks.detector.items() if not math.isnan(value) and not name.startswith(("m", "sc"))
    }
    extra = {Intent.FLAT: {"illumination_slope_ratio"}, Intent.CBP: {"n_spots"}}.get(intent, set())
    assert own == {"n_dead_amplifiers"} | extra | {n for n in WITHOUT[intent] if n.startswith("n_")}


def test_dark_of_no_time_has_no_current():
    checks = check(Ccd().expose(time_s=0.0), CCD, Ccd().masters(), Intent.DARK)
    assert np.isnan(of(checks, "dark_current_electron_per_s")).all() and np.isnan(of(checks, "n_hot_pixels")).all()


def test_spots_of_a_beam():
    y, x = np.mgrid[:512, :512]
    light = np.full(SHAPE, 50.0)
    radius = 12.0
    for cy, cx, height in ((100, 130, 5000.0), (300, 400, 20_000.0), (420, 60, 150_000.0)):
        light += height * (np.hypot(y - cy, x - cx) <= radius)
    raw = Ccd().expose(light, charge=np.round(cosmic_rays(np.random.default_rng(1), SHAPE, 30)))
    checks = check(raw, CCD, Ccd().masters(), Intent.CBP)
    whole = checks.detector
    area = (np.hypot(y - 300, x - 400) <= radius).sum()
    full = (65535 - 1000 - 20 * 0) * AMPS[0].gain
    assert whole["n_spots"] == 3
    # Blocks of 4 x 4 px: each spot is in the picture as bright as it is, saturated or not.
    assert checks.picture[[25, 75, 105], [32, 100, 15]] == pytest.approx([5050.0, 20_050.0, full], rel=0.02)
    assert whole["median_background_electron"] == pytest.approx(50.0, abs=0.5)
    assert whole["spot_flux_electron"] == pytest.approx(area * full, rel=0.02)
    assert whole["spot_peak_electron"] == pytest.approx(full, rel=0.02)
    assert whole["spot_saturated_fraction"] == pytest.approx(1 / 3, abs=0.1)


def test_flips_change_nothing():
    """The same light on CCDs that differ in how amplifiers are read out."""
    e2v, itl = (load_camera("lsstcam", 512).detector(name) for name in ("R22_S11", "R01_S00"))
    amps = [dataclasses.replace(a, flip_x=b.flip_x, flip_y=b.flip_y) for a, b in zip(AMPS, itl.amplifiers, strict=True)]
    turned = dataclasses.replace(e2v, amplifiers=tuple(dataclasses.replace(a, flip_x=not a.flip_x) for a in amps))
    rng = np.random.default_rng(2)
    spots = scattered(rng, 20)
    light = LEVEL * (1 + 0.1 * np.arange(512) / 512)
    found = []
    for detector in (e2v, turned):
        ccd = Ccd(detector, flat=np.where(spots, 0.4, 1.0))
        found.append(check(ccd.expose(light), detector, Ccd(detector).masters(), Intent.FLAT))
    assert [c.detector["n_new_bad_pixels"] for c in found] == [20, 20]
    assert np.array_equal(*[of(c, "n_new_bad_pixels") for c in found])
    assert np.abs(found[0].picture - found[1].picture).max() < 0.02
    assert of(found[0], "flat_level_electron") == pytest.approx(of(found[1], "flat_level_electron"), rel=1e-3)
