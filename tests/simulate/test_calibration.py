"""Simulated calibration exposures hold the truth of their CCD, and the faults that are asked for."""

import dataclasses
import itertools

import numpy as np
import pytest

from apflow.errors import BadRequest
from apflow.io.fits import read_info, write_raw
from apflow.model.calibration import Intent
from apflow.simulate.calibration import Faults, lamp_level, lamp_rate, render_calibration
from apflow.simulate.calibs import response
from apflow.simulate.scenario import Scenario

SCENARIO = Scenario(camera="comcam", size=256, detectors=(4,))
DETECTOR = SCENARIO.load_camera().detector(4)


def render(intent, sequence=1, exposure_time_s=0.0, physical_filter="", **faults):
    return render_calibration(
        SCENARIO,
        intent,
        sequence,
        4,
        exposure_time_s=exposure_time_s,
        physical_filter=physical_filter,
        faults=Faults(**faults),
    )


def image(raw):
    """Overscan-corrected CCD in true electrons, crosstalk removed by the inverse of its matrix."""
    out = np.empty(DETECTOR.shape)
    segments = [raw.segments[amp.segment].astype(float) for amp in DETECTOR.amplifiers]
    lit = [data[: a.ny, a.prescan : a.prescan + a.nx] for data, a in zip(segments, DETECTOR.amplifiers, strict=True)]
    levels = [data[: a.ny, a.prescan + a.nx :].mean(1) for data, a in zip(segments, DETECTOR.amplifiers, strict=True)]
    signals = np.array([light - level[:, None] for light, level in zip(lit, levels, strict=True)])
    own = np.linalg.solve(np.eye(16) + DETECTOR.crosstalk, signals.reshape(16, -1)).reshape(signals.shape)
    for amp, gain, signal in zip(DETECTOR.amplifiers, response(SCENARIO, 4).gains, own, strict=True):
        part = signal[:: -1 if amp.flip_y else 1, :: -1 if amp.flip_x else 1]
        out[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx] = part * gain
    return out


def part(amp, plane):
    return plane[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]


def gains():
    return dict(zip((a.name for a in DETECTOR.amplifiers), response(SCENARIO, 4).gains, strict=True))


def test_bias_holds_structure_and_read_noise_alone():
    truth = response(SCENARIO, 4)
    left = image(render(Intent.BIAS))
    for amp in DETECTOR.amplifiers:
        noise = part(amp, left) - part(amp, truth.bias) * gains()[amp.name]
        assert abs(noise.mean()) < 0.5
        assert 0.97 < noise.std() / amp.read_noise < 1.06  # the row's level adds its own


def test_dark_counts_electrons_of_its_time_and_cosmic_rays():
    truth, time_s = response(SCENARIO, 4), 300.0
    dark = image(render(Intent.DARK, exposure_time_s=time_s)) - image(render(Intent.BIAS))
    good = ~truth.defects
    quiet = good & (dark < 150)
    assert dark[quiet].mean() == pytest.approx(truth.dark[quiet].mean() * time_s, rel=0.03)
    tracks = (dark > 500) & good
    area_cm2 = truth.dark.size * (SCENARIO.load_camera().pixel_mm / 10) ** 2
    rays = 5 / 60 * time_s * area_cm2  # what the sky sends
    assert 1 <= rays < tracks.sum() < 60 * rays
    hot = truth.dark * time_s > 5000
    assert hot.any()
    assert dark[hot] == pytest.approx(truth.dark[hot] * time_s, rel=0.06)


def test_flat_is_the_lamp_through_the_response_with_the_noise_of_photons():
    truth, light = response(SCENARIO, 4), lamp_rate(SCENARIO.load_camera()) * 5.0
    raws = [render(Intent.FLAT, n, 5.0, "r") for n in (1, 2)]
    flats = [image(raw) / (light * lamp_level(SCENARIO, n)) for n, raw in enumerate(raws, 1)]
    good = ~truth.defects & (truth.flat > 0.5)
    assert np.mean((flats[0] / truth.flat)[good]) == pytest.approx(1, abs=2e-4)
    spread = np.std((flats[0] / truth.flat - flats[1] / truth.flat)[good])
    assert spread == pytest.approx(np.sqrt(2 / light), rel=0.05)
    saturation = DETECTOR.amplifiers[0].saturation * DETECTOR.amplifiers[0].gain
    assert light == pytest.approx(saturation / 2, rel=0.1)


def test_projector_draws_round_spots_on_dark():
    truth, light = response(SCENARIO, 4), lamp_rate(SCENARIO.load_camera()) * 5.0
    cbp = image(render(Intent.CBP, exposure_time_s=5.0, physical_filter="r"))
    lit = cbp > light / 2
    assert 0.003 < lit.mean() < 0.03
    assert np.median(cbp[lit] / truth.flat[lit]) == pytest.approx(light, rel=0.01)
    assert abs(np.median(cbp[~lit])) < 10


def test_the_same_image_every_time_and_another_for_each_sequence():
    first, again, next_one = render(Intent.BIAS), render(Intent.BIAS), render(Intent.BIAS, 2)
    segment = DETECTOR.amplifiers[0].segment
    assert np.array_equal(first.segments[segment], again.segments[segment])
    assert not np.array_equal(first.segments[segment], next_one.segments[segment])


def test_faults_are_those_asked_for_and_of_their_amplifier_alone():
    bad, other, dead = (a for a in DETECTOR.amplifiers[:3])
    sound = render(Intent.FLAT, 1, 5.0, "r")
    raw = render(Intent.FLAT, 1, 5.0, "r", gain={bad.name: 1.1}, level_adu={bad.name: 50.0}, dead=(dead.name,))
    ratio = part(bad, image(raw)).mean() / part(bad, image(sound)).mean()
    assert ratio == pytest.approx(1 / 1.1, rel=1e-3)
    assert part(other, image(raw)).mean() == pytest.approx(part(other, image(sound)).mean(), rel=1e-3)
    assert np.ptp(raw.segments[dead.segment]) == 0
    edge = np.s_[:, bad.prescan + bad.nx :]
    rise = raw.segments[bad.segment][edge].mean() - sound.segments[bad.segment][edge].mean()
    assert rise == pytest.approx(50, abs=0.5)


def test_noise_bias_hot_pixels_and_tilt():
    amp, truth = DETECTOR.amplifiers[0], response(SCENARIO, 4)
    raw = render(Intent.BIAS, read_noise={amp.name: 2.0}, bias_adu={amp.name: 5.0})
    left = part(amp, image(raw)) - part(amp, truth.bias) * gains()[amp.name]
    assert left.std() / amp.read_noise == pytest.approx(2, rel=0.05)
    assert left.mean() / gains()[amp.name] == pytest.approx(5, abs=0.3)
    dark, sound = (image(render(Intent.DARK, exposure_time_s=100.0, hot_pixels=n)) for n in (40, 0))
    assert 35 <= ((dark - sound) > 1500).sum() <= 60
    flat, sound = (image(render(Intent.FLAT, 1, 5.0, "r", lamp_tilt=t)) for t in (0.1, 0.0))
    columns = np.median(flat / sound, axis=0)
    assert columns[-20:].mean() - columns[:20].mean() == pytest.approx(0.1 * 236 / 256, abs=0.003)


def test_headers_are_those_of_a_calibration(tmp_path):
    raw = render(Intent.DARK, 3, 30.0)
    assert not {"RA", "DEC", "ROTPA", "FILTER", "BAND"} & raw.header.keys()
    assert raw.header["IMGTYPE"] == "DARK" and raw.header["EXPTIME"] == 30.0
    write_raw(tmp_path / "raw.fits", raw)
    read = read_info(tmp_path / "raw.fits")
    assert read.exposure == 2025042000003 and read.group and np.isnan(read.ra_deg) and read.physical_filter == ""
    flat = render(Intent.FLAT, 4, 5.0, "r")
    assert flat.header["FILTER"] == SCENARIO.load_camera().filter("r").physical_filter


def test_exposures_of_a_day_follow_one_another():
    infos = [render(Intent.DARK, n, 30.0).info for n in (1, 2, 3)]
    assert [i.exposure % 100_000 for i in infos] == [1, 2, 3]
    assert all(a.mjd_end_tai < b.mjd_begin_tai for a, b in itertools.pairwise(infos))
    later = dataclasses.replace(SCENARIO, first_seq=3)
    info = render_calibration(later, Intent.DARK, 3, 4, exposure_time_s=30.0).info
    assert info.mjd_begin_tai == SCENARIO.start_mjd_tai


@pytest.mark.parametrize(
    ("intent", "time_s", "name", "faults", "told"),
    [
        (Intent.BIAS, 1.0, "", {}, "exposure time 1.0"),
        (Intent.DARK, 0.0, "", {}, "exposure time 0.0"),
        (Intent.FLAT, 5.0, "", {}, "filter ''"),
        (Intent.DARK, 5.0, "r", {}, "filter 'r'"),
        (Intent.BIAS, 0.0, "", {"dead": ("C99",)}, "no amplifier 'C99'"),
    ],
)
def test_bad_requests_are_named(intent, time_s, name, faults, told):
    with pytest.raises(BadRequest, match=told):
        render(intent, 1, time_s, name, **faults)
