"""Differences are flat, white, and say their own noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apflow.errors import DataError, NoTemplate
from apflow.model.exposure import Mask
from apflow.pixels.decorrelation import decorrelation
from apflow.pixels.forced import forced_flux, sky_snr
from apflow.pixels.subtract import subtract
from tests.pixels.scenes import gaussian_psf, pair


def mad(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


@pytest.mark.parametrize("template_fwhm", [3.0, 4.0, 4.6])
def test_sky_is_white_and_calibrated(template_fwhm: float) -> None:
    """Template sharper than, as sharp as, and worse than the science image."""
    p = pair(template_fwhm=template_fwhm, sky=(1000.0, 600.0), snr=(), stars=150)
    d = subtract(p.science, p.template)
    y, x = (c.ravel() for c in np.mgrid[20:236:3, 20:236:3])
    snr = sky_snr(d.exposure, x, y)
    # At bright stars the variance also holds the matching error.
    empty = np.isfinite(snr) & (p.light[y, x] < 10)
    assert mad(snr[empty]) == pytest.approx(1.0, abs=0.05)
    assert d.exposure.summary["diff_mad_snr"] == pytest.approx(1.0, abs=0.08)
    pixels = np.where(p.light < 10, d.exposure.image, 0)
    neighbours = np.mean(pixels[:, 1:] * pixels[:, :-1]) / np.mean(pixels**2)
    assert abs(neighbours) < 0.06


def test_without_decorrelation_the_noise_stays_correlated() -> None:
    p = pair(template_fwhm=3.0, sky=(300.0, 1000.0), snr=(), stars=150)
    d = subtract(p.science, p.template, decorrelate=False)
    assert d.exposure.psf is p.science.psf
    assert d.exposure.summary["diff_mad_snr"] > 1.05


@pytest.mark.parametrize("template_fwhm", [3.0, 4.0])
def test_fluxes_of_changes_are_right(template_fwhm: float) -> None:
    p = pair(template_fwhm=template_fwhm, snr=(60.0,) * 12 + (-60.0,) * 13, stars=80)
    d = subtract(p.science, p.template)
    flux, err = forced_flux(d.exposure, p.x, p.y)
    ok = np.isfinite(flux)
    assert ok.sum() >= 20
    pulls = (flux - p.flux)[ok] / err[ok]
    assert np.median(flux[ok] / p.flux[ok]) == pytest.approx(1.0, abs=0.015)
    assert abs(np.median(pulls)) < 1.0
    assert mad(pulls) < 1.8


@pytest.mark.parametrize(("template_fwhm", "convolved"), [(3.0, 0.0), (5.5, 1.0)])
def test_sharper_image_is_convolved_and_fluxes_stay_on_the_science_scale(
    template_fwhm: float, convolved: float
) -> None:
    p = pair(n=320, template_fwhm=template_fwhm, snr=(60.0,) * 12 + (-60.0,) * 13, stars=150, gain=2.0)
    science = dataclasses.replace(p.science, unit="ADU")
    d = subtract(science, p.template)
    assert d.exposure.summary["science_convolved"] == convolved
    assert d.exposure.summary["kernel_sum"] == pytest.approx(2.0, rel=0.02)
    assert d.exposure.unit == d.matched.unit == "ADU" and d.exposure.info == science.info
    flux, _ = forced_flux(d.exposure, p.x, p.y)
    ok = np.isfinite(flux)
    assert ok.sum() >= 20
    assert np.median(flux[ok] / p.flux[ok]) == pytest.approx(1.0, abs=0.03)
    light, _ = forced_flux(science, p.x, p.y)
    faded, _ = forced_flux(d.matched, p.x, p.y)
    assert np.median((light - faded)[ok] / p.flux[ok]) == pytest.approx(1.0, abs=0.05)


def test_no_rings_where_the_template_is_much_broader() -> None:
    p = pair(n=320, science_fwhm=3.0, template_fwhm=6.0, snr=(), stars=100, growth=0.0)
    sharper, usual = (subtract(p.science, p.template, convolve=c).exposure for c in ("auto", "template"))
    bright = (p.light > 3000) & ((usual.mask | sharper.mask) == 0)
    noise = np.sqrt(p.science.variance + p.template.variance)[bright]
    assert (sharper.image[bright] / noise).std() < 0.5 * (usual.image[bright] / noise).std()


def test_broader_template_that_covers_too_little() -> None:
    p = pair(template_fwhm=5.5)
    p.template.mask[:, 30:] |= Mask.NO_DATA
    with pytest.raises(NoTemplate, match=r"covers 0\.1"):
        subtract(p.science, p.template)


def test_constant_stars_leave_nothing() -> None:
    p = pair(snr=(), stars=150)
    d = subtract(p.science, p.template)
    bright = (p.science.image > 5 * np.sqrt(1250)) & (d.exposure.mask == 0)
    residual = d.exposure.image[bright] / np.sqrt(d.exposure.variance[bright])
    assert residual.std() <= 1.1


def test_saturation_and_template_holes_are_masked() -> None:
    p = pair(snr=())
    science, template = p.science, p.template
    science.mask[100, 100] |= Mask.SAT
    template.mask[50:60, 200:210] |= Mask.NO_DATA
    template.image[50:60, 200:210] = np.nan
    d = subtract(science, template)
    assert (d.exposure.mask[98:103, 98:103] & Mask.SAT).all()
    assert (d.exposure.mask[48:62, 198:212] & Mask.NO_DATA).all()
    assert (d.exposure.mask[0] & Mask.EDGE).all()
    assert np.isfinite(d.exposure.image).all() and np.isfinite(d.exposure.variance).all()
    assert science.mask[98, 98] == 0, "inputs are never changed"


def test_the_difference_describes_itself() -> None:
    p = pair()
    d = subtract(p.science, p.template)
    assert {
        "kernel_sum",
        "n_stamps",
        "kernel_chi2",
        "template_coverage",
        "variance_scale",
        "diff_mad_snr",
        "matching_error",
    } <= set(d.exposure.summary)
    assert all(np.isfinite(v) for v in d.exposure.summary.values())
    assert d.exposure.info is p.science.info and d.exposure.wcs is p.science.wcs
    assert d.exposure.psf is not None and d.exposure.psf.centre().sum() == pytest.approx(1.0)
    assert d.exposure.image.dtype == d.exposure.variance.dtype == np.float32


def test_too_little_template_is_no_work() -> None:
    p = pair(stars=20)
    p.template.mask[:, 40:] |= Mask.NO_DATA
    with pytest.raises(NoTemplate, match=r"0\.156.*0\.2"):
        subtract(p.science, p.template)


def test_bad_input_is_named() -> None:
    p = pair(n=64, stars=3, snr=())
    with pytest.raises(DataError, match=r"\(64, 64\)"):
        subtract(pair(n=128, stars=3, snr=()).science, p.template)
    with pytest.raises(DataError, match="no PSF"):
        subtract(dataclasses.replace(p.science, psf=None), p.template)


def test_decorrelation_kernel_whitens() -> None:
    kernel = gaussian_psf(3.0, 64).centre()
    phi = decorrelation(kernel, 1.0, 2.0)
    assert phi.sum() == pytest.approx(1.0)
    k, f = (np.abs(np.fft.fft2(a, (64, 64))) ** 2 for a in (kernel, phi))
    power = f * (1.0 + 2.0 * k)
    assert power.std() / power.mean() < 0.02
