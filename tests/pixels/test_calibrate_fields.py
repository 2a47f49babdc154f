"""Calibration of fields that are hard: crowded, with saturated stars, at any rotation of the camera."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apflow.model.exposure import Exposure, Mask
from apflow.model.sky import separation_arcsec
from apflow.pixels.calibrate import calibrate
from apflow.pixels.point_sources import fit_point_sources
from tests.pixels.night import ZERO_POINT, Night, make_night


def wcs_error_arcsec(night: Night, exposure: Exposure) -> float:
    x, y = np.meshgrid(np.linspace(0, 511, 6), np.linspace(0, 511, 6))
    assert exposure.wcs is not None
    return float(separation_arcsec(*exposure.wcs.pixel_to_sky(x, y), *night.wcs.pixel_to_sky(x, y)).max())


@pytest.fixture(scope="module")
def fwhm_px() -> float:
    """FWHM of the model where it is easy to make."""
    night = make_night(3)
    psf = calibrate(night.exposure, night.guess, night.reference).psf
    assert psf is not None
    return psf.fwhm_px()


def test_a_crowded_field_has_the_right_sky_psf_and_zero_point(fwhm_px):
    night = make_night(11, n_stars=1100, n_galaxies=60)
    exposure = calibrate(night.exposure, night.guess, night.reference)
    s = exposure.summary
    assert s["zero_point_mag"] == pytest.approx(ZERO_POINT, abs=0.02)
    assert s["sky_electron"] == pytest.approx(1200.0, rel=0.02)  # light of stars that nobody sees is left in it
    assert wcs_error_arcsec(night, exposure) < 0.02
    assert exposure.psf is not None and exposure.psf.fwhm_px() == pytest.approx(fwhm_px, rel=0.02)


def test_saturated_stars_spoil_neither_zero_point_nor_psf(fwhm_px):
    plain = make_night(12, n_stars=150)
    image, mask = plain.exposure.image.copy(), plain.exposure.mask.copy()
    full = np.quantile(image, 0.9995)  # the brightest stars' cores
    saturated = image > full
    image[saturated] = full
    mask[saturated] |= Mask.SAT
    night = dataclasses.replace(plain, exposure=dataclasses.replace(plain.exposure, image=image, mask=mask))
    exposure = calibrate(night.exposure, night.guess, night.reference)
    assert saturated.sum() > 100
    assert ((exposure.mask & Mask.SAT) != 0)[saturated].all()
    assert exposure.summary["zero_point_mag"] == pytest.approx(ZERO_POINT, abs=0.015)
    assert exposure.psf is not None and exposure.psf.fwhm_px() == pytest.approx(fwhm_px, rel=0.02)
    assert wcs_error_arcsec(night, exposure) < 0.015
    near = [
        saturated[max(0, int(y) - 8) : int(y) + 9, max(0, int(x) - 8) : int(x) + 9].any()
        for x, y in zip(night.x, night.y, strict=True)
    ]
    inside = (night.x > 15) & (night.x < 496) & (night.y > 15) & (night.y < 496)
    bright = inside & ~np.array(near) & (night.flux > 3e4)
    measured = fit_point_sources(exposure, exposure.psf, night.x[bright], night.y[bright])["flux"].to_numpy()
    true = night.flux[bright] / 30.0 * 10 ** (0.4 * (31.4 - ZERO_POINT))
    assert np.isfinite(measured).sum() > 20
    assert np.nanmedian(measured / true) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_image_gives_the_turned_answer(quarters):
    """The pixels turned by quarters about the first pixel's corner, with the mapping of the header turned likewise."""
    night = make_night(13)
    exposure = night.exposure
    planes = {
        name: np.ascontiguousarray(np.rot90(getattr(exposure, name), quarters))
        for name in ("image", "variance", "mask")
    }
    turned = calibrate(dataclasses.replace(exposure, **planes), _turned(night.guess, quarters), night.reference)
    plain = calibrate(exposure, night.guess, night.reference)
    assert turned.summary["zero_point_mag"] == pytest.approx(plain.summary["zero_point_mag"], abs=0.003)
    assert turned.summary["psf_fwhm_arcsec"] == pytest.approx(plain.summary["psf_fwhm_arcsec"], rel=0.005)
    back = np.rot90(turned.image, -quarters)
    good = (plain.mask | np.rot90(turned.mask, -quarters)) == 0
    assert good.mean() > 0.9
    noise = np.sqrt(np.median(plain.variance))
    assert np.abs(back - plain.image)[good].max() < 0.5 * noise + 0.005 * np.abs(plain.image[good]).max()
    assert np.median(np.abs(back - plain.image)[good]) < 0.05 * noise
    x, y = np.meshgrid(np.linspace(0, 511, 5), np.linspace(0, 511, 5))
    assert turned.wcs is not None and plain.wcs is not None
    there = turned.wcs.pixel_to_sky(*_moved(x, y, quarters))
    assert separation_arcsec(*there, *plain.wcs.pixel_to_sky(x, y)).max() < 0.01


def _moved(x, y, quarters):
    """Where pixels of a 512 px square are after `numpy.rot90`."""
    for _ in range(quarters):
        x, y = y, 511.0 - x
    return x, y


def _turned(wcs, quarters):
    """The mapping of an image after `numpy.rot90`: without distortion, as the guess is."""
    (a, b) = _moved(*np.array(wcs.crpix), quarters)
    matrix = np.linalg.matrix_power(np.array([[0.0, 1.0], [-1.0, 0.0]]), quarters)  # of (x, y) offsets
    return dataclasses.replace(wcs, crpix=(float(a), float(b)), cd=wcs.cd @ np.linalg.inv(matrix))
