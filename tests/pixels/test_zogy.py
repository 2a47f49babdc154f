"""Proper image subtraction: noise, fluxes, S/N, and what must not spoil them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apflow.errors import DataError, NoTemplate
from apflow.model.exposure import Exposure, Mask
from apflow.pixels.convolve import grow
from apflow.pixels.detect import detect
from apflow.pixels.forced import forced_flux
from apflow.pixels.planes import unusable
from apflow.pixels.subtract import subtract
from apflow.pixels.zogy import subtract_zogy
from apflow.pixels.zogy_filters import TILE, Match, image_of, make_filters
from tests.pixels.scenes import Pair, exposure, gaussian_psf, pair, stars_image

N = 400
SNRS = (12.0,) * 8 + (30.0,) * 8 + (-30.0,) * 8


def recovered(difference: Exposure, p: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Measured over true fluxes and S/N of the changes on good pixels."""
    flux, err = forced_flux(difference, p.x, p.y)
    hidden = grow(unusable(difference.mask), 6)
    ok = np.isfinite(flux) & ~hidden[p.y.round().astype(int), p.x.round().astype(int)]
    return (flux / p.flux)[ok], (flux / err)[ok]


@pytest.mark.parametrize(("science_fwhm", "template_fwhm"), [(4.0, 3.2), (3.6, 3.6), (3.2, 4.2)])
def test_fluxes_are_unbiased_and_next_to_nothing_else_is_found(science_fwhm: float, template_fwhm: float) -> None:
    p = pair(n=N, stars=150, snr=SNRS, science_fwhm=science_fwhm, template_fwhm=template_fwhm, gain=2.5)
    result = subtract_zogy(p.science, p.template)
    ratio, snr = recovered(result.exposure, p)
    assert len(ratio) >= 20
    weight = snr**2
    # Of 24 changes of S/N 12 to 30 the mean flux is known to about 1 %.
    assert (ratio * weight).sum() / weight.sum() == pytest.approx(1.0, abs=4 / np.sqrt(weight.sum()))
    assert result.exposure.summary["kernel_sum"] == pytest.approx(2.5, rel=0.01)
    found = detect(result, 5.0)
    near = np.hypot(found["x"].to_numpy()[:, None] - p.x, found["y"].to_numpy()[:, None] - p.y).min(1)
    assert (near > 3).sum() <= 2


def test_noise_is_white_and_of_the_variance_stated() -> None:
    p = pair(n=N, stars=4, snr=(), science_fwhm=4.0, template_fwhm=3.0)
    exposure = subtract_zogy(p.science, p.template).exposure
    snr = (exposure.image / np.sqrt(exposure.variance))[30:-30, 30:-30]
    snr = np.clip(snr, -4, 4)
    assert snr.std() == pytest.approx(1.0, abs=0.02)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (3, 0)):
        shifted = snr[dy:, dx:] * snr[: snr.shape[0] - dy, : snr.shape[1] - dx]
        assert abs(shifted.mean()) < 0.02
    assert exposure.summary["diff_mad_snr"] == pytest.approx(1.0, abs=0.04)


def test_signal_to_noise_is_that_of_the_fitted_kernel_or_better() -> None:
    """On equal PSFs both are optimal; a sharper template leaves no room either, with the noise whitened."""
    p = pair(n=N, stars=150, snr=SNRS, science_fwhm=4.0, template_fwhm=4.0)
    proper, fitted = (np.abs(recovered(f(p.science, p.template).exposure, p)[1]) for f in (subtract_zogy, subtract))
    assert np.median(proper) > 0.98 * np.median(fitted)
    # What was put in is the S/N for these PSFs and skies.
    assert np.median(proper[8:]) == pytest.approx(30.0, rel=0.1)


def test_filters_satisfy_their_equations() -> None:
    """K_n P_n = b K_r P_r, and s_n |K_n|^2 + s_r |K_r|^2 = s_n + s_r / b^2 at every frequency."""
    n, r, b, noise = gaussian_psf(4.0, 300), gaussian_psf(3.2, 300), 2.5, (900.0, 400.0)
    filters = make_filters(n, r, Match(np.array([b]), np.zeros((2, 1))), noise)
    to_n, to_r, match, psf = filters.at(149.5, 149.5)
    assert noise[0] * np.abs(to_n) ** 2 + noise[1] * np.abs(to_r) ** 2 == pytest.approx(
        noise[0] + noise[1] / b**2, rel=1e-3
    )
    science, template = psf / to_n, match
    assert image_of(science, 25).sum() == pytest.approx(1.0, abs=1e-3)
    assert image_of(template, 31).sum() == pytest.approx(1 / b, rel=0.01)
    assert np.abs(to_n[0, 0]) == pytest.approx(1.0, rel=1e-4) and to_n.shape == (TILE, TILE // 2 + 1)


def test_shifted_template_is_registered() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, N, (2, 120))
    flux = np.minimum(4000 * (rng.random(120) + 1e-3) ** -1.2, 4e5)
    images = [stars_image((N, N), x + d, y - d, flux, f) for d, f in ((0.0, 4.0), (0.3, 3.6))]
    science, template = (exposure(i, 500.0, gaussian_psf(f, N), rng) for i, f in zip(images, (4.0, 3.6), strict=True))
    result = subtract_zogy(science, template)
    summary = result.exposure.summary
    assert (summary["residual_shift_x_px"], summary["residual_shift_y_px"]) == pytest.approx((0.3, -0.3), abs=0.02)
    assert len(detect(result, 5.0)) <= 1


def test_saturated_star_does_not_ring_over_the_image() -> None:
    p = pair(n=N, stars=60, snr=())
    without = subtract_zogy(p.science, p.template).exposure
    planes = []
    for e, fwhm in ((p.science, 4.0), (p.template, 3.4)):
        star = stars_image((N, N), np.array([200.3]), np.array([190.6]), np.array([2e7]), fwhm)
        image = np.minimum(e.image + star, 8e4).astype(np.float32)
        mask = e.mask | np.where(e.image + star >= 8e4, int(Mask.SAT), 0).astype(np.int32)
        planes.append(dataclasses.replace(e, image=image, mask=mask, variance=(e.variance + star).astype(np.float32)))
    with_star = subtract_zogy(planes[0], planes[1]).exposure
    v, u = np.mgrid[:N, :N]
    far = (np.hypot(u - 200.3, v - 190.6) > 25) & ~unusable(without.mask) & ~unusable(with_star.mask)
    change = np.abs(with_star.image - without.image)[far] / np.sqrt(without.variance[far])
    # The flux scale and the noise level, from all stars, may be others by a hair.
    assert np.quantile(change, 0.999) < 0.4
    assert (with_star.mask[190, 200] & Mask.SAT) != 0


def test_bad_pixels_spread_nothing() -> None:
    p = pair(n=256, stars=60, snr=())
    image, mask, other = p.science.image.copy(), p.science.mask.copy(), p.template.image.copy()
    image[:, 100] = 1e6
    mask[:, 100] |= Mask.BAD
    image[50:60, 50:60] = np.nan
    other[200, 30:200] = -1e6
    t_mask = p.template.mask.copy()
    t_mask[200, 30:200] |= Mask.CR
    science = dataclasses.replace(p.science, image=image, mask=mask)
    template = dataclasses.replace(p.template, image=other, mask=t_mask)
    before = image.copy()
    result = subtract_zogy(science, template)
    clean = subtract_zogy(p.science, p.template)
    assert np.isfinite(result.exposure.image).all() and np.isfinite(result.exposure.variance).all()
    good = ~grow(unusable(result.exposure.mask), 2) & ~unusable(clean.exposure.mask)
    change = np.abs(result.exposure.image - clean.exposure.image)[good] / np.sqrt(clean.exposure.variance[good])
    assert np.quantile(change, 0.999) < 1.0
    assert (result.exposure.mask[50:60, 50:60] & Mask.NO_DATA).all()
    assert len(detect(result, 5.0)) <= 1
    np.testing.assert_array_equal(image, before)


def test_matched_template_gives_forced_fluxes() -> None:
    """A star's PSF flux in the matched template is its flux on the science image's scale."""
    for science_fwhm, template_fwhm in ((4.0, 3.4), (3.4, 4.0)):
        p = pair(n=300, stars=0, snr=(-60.0,) * 9, science_fwhm=science_fwhm, template_fwhm=template_fwhm, gain=2.0)
        u, v = np.random.default_rng(1).uniform(20, 280, (2, 40))
        star = stars_image((300, 300), u, v, np.full(40, 4e5), science_fwhm, 0.03)
        other = stars_image((300, 300), u, v, np.full(40, 2e5), template_fwhm, -0.03)
        science = dataclasses.replace(p.science, image=(p.science.image + star).astype(np.float32))
        template = dataclasses.replace(p.template, image=(p.template.image + other).astype(np.float32))
        matched = subtract_zogy(science, template).matched
        assert matched.psf is science.psf
        flux, err = forced_flux(matched, p.x, p.y)
        alone = np.hypot(p.x[:, None] - u, p.y[:, None] - v).min(1) > 20
        assert alone.sum() >= 3
        assert np.median(flux[alone] / -p.flux[alone]) == pytest.approx(1.0, abs=0.05)
        assert (err[alone] > 0).all()


def test_what_cannot_be_subtracted_is_named() -> None:
    p = pair(n=128, stars=20, snr=())
    with pytest.raises(DataError, match=r"template has no PSF"):
        subtract_zogy(p.science, dataclasses.replace(p.template, psf=None))
    with pytest.raises(DataError, match=r"\(128, 128\).*must agree"):
        subtract_zogy(p.science, pair(n=100, stars=5, snr=()).template)
    empty = dataclasses.replace(p.template, mask=np.full((128, 128), int(Mask.NO_DATA), np.int32))
    with pytest.raises(NoTemplate, match=r"covers 0\.000"):
        subtract_zogy(p.science, empty)


def test_same_input_same_output() -> None:
    p = pair(n=200, stars=40)
    first, second = (subtract_zogy(p.science, p.template) for _ in range(2))
    np.testing.assert_array_equal(first.exposure.image, second.exposure.image)
    np.testing.assert_array_equal(first.exposure.variance, second.exposure.variance)
