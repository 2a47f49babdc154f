"""What a difference is worth: noise, stars, changes and its own description, whichever image is the sharper."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from apflow.errors import BadRequest
from apflow.model.exposure import Exposure, Mask
from apflow.model.products import Difference
from apflow.model.psf import Psf
from apflow.pixels.decorrelation import matched_psf
from apflow.pixels.planes import EDGE, unusable
from apflow.pixels.residuals import noise_ratio, residual_power, with_matching_variance
from apflow.pixels.subtract import subtract
from tests.pixels.scenes import gaussian_psf, pair


def snr_map(d: Difference) -> NDArray[np.float64]:
    assert d.filtered is not None and d.exposure.psf is not None
    power = (d.exposure.psf.centre() ** 2).sum()
    return np.asarray(d.filtered / np.sqrt(d.exposure.variance * power), np.float64)


def usable(d: Difference) -> NDArray[np.bool_]:
    return np.asarray(~unusable(d.exposure.mask) & ((d.exposure.mask & EDGE) == 0))


def turned(exposure: Exposure) -> Exposure:
    psf = exposure.psf
    assert psf is not None
    # A quarter turn takes (x, y) to (y, n - 1 - x): u becomes -v', v becomes u'.
    c, u, v = (np.rot90(term) for term in psf.terms)
    image, variance, mask = (
        np.ascontiguousarray(np.rot90(e)) for e in (exposure.image, exposure.variance, exposure.mask)
    )
    return dataclasses.replace(
        exposure,
        image=image.astype(np.float32),
        variance=variance.astype(np.float32),
        mask=mask.astype(np.int32),
        psf=Psf(np.stack([c, v, -u]), psf.shape),
    )


@pytest.mark.parametrize(("stars", "template_fwhm"), [(120, 3.2), (120, 4.0), (120, 5.2), (12, 3.4), (900, 3.4)])
def test_nothing_is_left_where_nothing_changed(stars: int, template_fwhm: float) -> None:
    """Template sharper, equal and worse; few stars; a crowded field."""
    p = pair(n=400, stars=stars, template_fwhm=template_fwhm, snr=(), growth=0.02)
    d = subtract(p.science, p.template)
    snr, good = snr_map(d), usable(d)
    blank = good & (p.light < 10)
    assert 1.4826 * np.median(np.abs(snr[blank])) == pytest.approx(1.0, abs=0.05)
    bright = good & (p.light > 3000)
    assert stars < 20 or snr[bright].std() <= 1.1
    peaks = (maximum_filter(np.abs(snr), 5) == np.abs(snr)) & (np.abs(snr) > 5)
    assert (peaks & good).sum() <= 1
    assert d.exposure.summary["residual_power"] < 0.01


@pytest.mark.parametrize("template_fwhm", [3.2, 4.0, 5.2])
def test_changes_are_there_at_their_signal_to_noise(template_fwhm: float) -> None:
    p = pair(n=400, stars=120, template_fwhm=template_fwhm, snr=(12.0,) * 30 + (-12.0,) * 30)
    d = subtract(p.science, p.template)
    snr = snr_map(d)
    y, x = np.rint(p.y).astype(int), np.rint(p.x).astype(int)
    # Not those on bright stars, of which the difference says itself that they are hard to see.
    inside = usable(d)[y, x] & (d.exposure.variance[y, x] < 2 * np.median(d.exposure.variance))
    assert inside.sum() > 45
    found = np.array(
        [(np.sign(f) * snr[j - 1 : j + 2, i - 1 : i + 2]).max() for f, i, j in zip(p.flux, x, y, strict=True)]
    )
    assert (found[inside] > 5).mean() >= 0.99


def test_noise_is_measured_whatever_is_new() -> None:
    """A hundred changes in the difference are no noise."""
    quiet, busy = (
        subtract(p.science, p.template).exposure.summary["diff_mad_snr"]
        for p in (pair(n=400, stars=150, snr=s) for s in ((), (30.0, -30.0) * 50))
    )
    assert busy == pytest.approx(quiet, abs=0.03)


def test_understated_variances_are_put_right() -> None:
    p = pair(n=400, stars=150, snr=())
    science = dataclasses.replace(p.science, variance=(p.science.variance / 4).astype(np.float32))
    template = dataclasses.replace(p.template, variance=(p.template.variance / 4).astype(np.float32))
    summary = subtract(science, template).exposure.summary
    assert summary["diff_mad_snr"] == pytest.approx(2.0, abs=0.1)
    assert summary["variance_scale"] == pytest.approx(4.0, abs=0.4)


def test_a_turned_pair_gives_the_turned_difference() -> None:
    p = pair(n=300, stars=150)
    d, t = subtract(p.science, p.template), subtract(turned(p.science), turned(p.template))
    noise = np.sqrt(np.median(d.exposure.variance))
    inner = np.s_[20:-20, 20:-20]
    good = (usable(d) & np.rot90(usable(t), -1))[inner]
    apart = (np.rot90(t.exposure.image, -1) - d.exposure.image)[inner][good]
    assert np.abs(apart).max() < 0.25 * noise
    assert t.exposure.summary["kernel_sum"] == pytest.approx(d.exposure.summary["kernel_sum"], rel=1e-3)


def test_exchanged_images_give_the_difference_of_the_other_sign() -> None:
    p = pair(n=300, stars=150, template_fwhm=3.2)
    d, back = subtract(p.science, p.template), subtract(p.template, p.science)
    assert (d.exposure.summary["science_convolved"], back.exposure.summary["science_convolved"]) == (0.0, 1.0)
    good = usable(d) & usable(back)
    ratio = back.exposure.image[good] * d.exposure.summary["kernel_sum"] / np.sqrt(np.median(d.exposure.variance))
    assert np.abs(ratio + d.exposure.image[good] / np.sqrt(np.median(d.exposure.variance))).max() < 1e-3


def test_filtered_map_is_the_sum_of_psf_times_image() -> None:
    p = pair(n=300, stars=100)
    p.template.mask[140:145, 140:145] |= Mask.NO_DATA
    for convolve in ("template", "science"):
        d = subtract(p.science, p.template, convolve=convolve)
        assert d.filtered is not None and d.exposure.psf is not None
        psf, image = d.exposure.psf.centre(), np.where(unusable(d.exposure.mask), 0, d.exposure.image)
        half = len(psf) // 2
        for x, y in ((150, 90), (60, 200)):
            direct = (psf * image[y - half : y + half + 1, x - half : x + half + 1]).sum()
            assert d.filtered[y, x] == pytest.approx(direct, abs=0.01 * float(np.abs(d.filtered).max()))


def test_order_of_the_kernel_follows_the_stamps() -> None:
    assert subtract(*pair(n=800, stars=2000, snr=())[:2]).kernel.order == 2
    assert subtract(*pair(n=300, stars=100, snr=())[:2]).kernel.order == 1
    assert subtract(*pair(n=300, stars=6, snr=())[:2]).kernel.order == 0
    assert subtract(*pair(n=800, stars=2000, snr=())[:2], kernel_order=1).kernel.order == 1


def test_convolved_psf_follows_image_and_kernel() -> None:
    p = pair(n=300, stars=300, template_fwhm=3.2, growth=0.04)
    d = subtract(p.science, p.template, convolve="template")
    assert p.template.psf is not None and p.science.psf is not None
    psf = matched_psf(p.template.psf, d.kernel)
    for at in ((20.0, 150.0), (280.0, 30.0)):
        assert np.abs(psf.at(*at) - p.science.psf.at(*at)).sum() < 0.08


def test_variance_beside_stars_gives_the_error_asked_for() -> None:
    """A star whose subtraction is wrong by 2 % has an S/N of about 1 by the variance of an error of 2 %."""
    n, flux = 101, 1e6
    psf = gaussian_psf(4.0, n)
    light = np.zeros((n, n), np.float32)
    light[38:63, 38:63] = flux * psf.centre()
    variance = with_matching_variance(np.full((n, n), 1e-4, np.float32), light, 1.0, psf, 0.02)
    p = psf.centre()
    error = np.sqrt((p**2 * variance[38:63, 38:63]).sum()) / (p**2).sum()
    assert error == pytest.approx(0.02 * flux, rel=0.02)
    assert variance[50, 90] == pytest.approx(1e-4)


def test_residuals_and_noise_of_nothing() -> None:
    n = 128
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(n, n)).astype(np.float32)
    empty = Exposure(noise, np.ones((n, n), np.float32), np.zeros((n, n), np.int32), "nJy", None, gaussian_psf(3.0, n))
    assert residual_power(empty, np.zeros((n, n), np.float32)) == 0.0
    masked = dataclasses.replace(empty, mask=np.full((n, n), int(Mask.NO_DATA), np.int32))
    assert noise_ratio(masked, noise, noise) == 1.0


def test_unknown_choice_is_named() -> None:
    p = pair(n=64, stars=3, snr=())
    with pytest.raises(BadRequest, match=r"convolve is 'sharper'; accepted: auto, template, science"):
        subtract(p.science, p.template, convolve="sharper")
