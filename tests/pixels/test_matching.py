"""The matching kernel turns the template's PSF into the science image's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.signal import fftconvolve

from apflow.errors import DataError
from apflow.model.kernel import Kernel
from apflow.pixels import matching
from apflow.pixels.basis import make_basis
from apflow.pixels.convolve import convolve, convolve_varying, grow, smooth
from apflow.pixels.matching import fit_kernel
from tests.pixels.scenes import gaussian_psf, pair


def test_basis_has_one_image_with_a_sum() -> None:
    basis = make_basis(4.0, 3.5)
    np.testing.assert_allclose(basis.images.sum((1, 2)), np.eye(len(basis.images))[0], atol=1e-12)
    assert basis.images.shape[-1] in range(21, 36, 2)
    assert make_basis(12.0, 3.0).images.shape[-1] == 35


def test_kernel_matches_the_psfs() -> None:
    p = pair(stars=150, growth=0.0)
    kernel, background, summary = fit_kernel(p.science, p.template)
    matched = fftconvolve(gaussian_psf(3.4, 256, 41).centre(), kernel.centre() / kernel.centre().sum(), mode="same")
    wanted = gaussian_psf(4.0, 256, 41).centre()
    assert np.abs(matched - wanted).sum() < 0.06
    assert summary["kernel_sum"] == pytest.approx(1.0, abs=0.01)
    assert summary["kernel_chi2"] == pytest.approx(1.0, abs=0.25)
    assert np.abs(background.image()).max() < 6
    assert kernel.order == 1


def test_kernel_sum_is_the_flux_ratio_everywhere() -> None:
    kernel, _, summary = fit_kernel(*pair(gain=4.0)[:2])
    assert summary["kernel_sum"] == pytest.approx(4.0, rel=0.01)
    for at in ((0.0, 0.0), (255.0, 100.0)):
        assert kernel.at(*at).sum() == pytest.approx(summary["kernel_sum"], rel=1e-6)


def test_noise_of_the_convolved_image_takes_nothing_from_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Least squares with noise in the models makes their coefficients too small."""
    pairs = [pair(seed=seed, snr=(), stars=150, sky=(250.0, 4000.0)) for seed in range(8)]

    def mean_sum() -> float:
        return float(np.mean([fit_kernel(p.science, p.template)[2]["kernel_sum"] for p in pairs]))

    assert mean_sum() == pytest.approx(1.0, abs=0.003)
    monkeypatch.setattr(matching, "_NOISIER", np.inf)
    assert mean_sum() < 0.992


def test_kernel_follows_a_varying_psf() -> None:
    kernel, _, _ = fit_kernel(*pair(n=384, stars=350, growth=0.1)[:2])
    h = len(kernel.centre()) // 2

    def peak(x: float) -> float:
        return float(kernel.at(x, 190.0)[h - 1 : h + 2, h - 1 : h + 2].sum())

    assert peak(20.0) > 1.3 * peak(360.0)


def test_background_difference_is_found() -> None:
    p = pair(background=80.0, stars=250)
    _, background, _ = fit_kernel(p.science, p.template)
    assert background.image()[:, 0].mean() == pytest.approx(-80, abs=20)
    assert background.image()[:, -1].mean() == pytest.approx(80, abs=20)


def test_variable_stars_do_not_bias_the_fit() -> None:
    p = pair(stars=150, snr=())
    image = p.science.image.copy()
    rng = np.random.default_rng(0)
    # A quarter of the image flares.
    image[:128, :128] *= rng.uniform(1.3, 2.0)
    _, _, summary = fit_kernel(dataclasses.replace(p.science, image=image), p.template)
    assert summary["kernel_sum"] == pytest.approx(1.0, abs=0.02)
    assert summary["n_stamps_rejected"] > 0


@pytest.mark.parametrize("stars", [0, 3, 12, 40])
def test_few_stars_fall_back(stars: int) -> None:
    kernel, _, summary = fit_kernel(*pair(stars=stars, snr=())[:2])
    assert summary["kernel_sum"] == pytest.approx(1.0, abs=0.03)
    assert np.isfinite(kernel.terms).all()
    if summary["n_stamps"] < 15:
        assert kernel.order == 0


def test_no_stars_and_no_psf_is_an_error() -> None:
    p = pair(stars=0, snr=())
    with pytest.raises(DataError, match="0 objects"):
        fit_kernel(p.science, dataclasses.replace(p.template, psf=None))


def test_shapes_must_agree() -> None:
    with pytest.raises(DataError, match=r"\(128, 128\).*\(256, 256\)"):
        fit_kernel(pair(stars=0).science, pair(n=128, stars=0).template)


def test_convolutions_agree_with_the_definition() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(60, 70)).astype(np.float32)
    kernel = rng.normal(size=(7, 7))
    out = convolve(image, kernel)
    y, x = 30, 41
    direct = sum(kernel[j + 3, i + 3] * image[y - j, x - i] for j in range(-3, 4) for i in range(-3, 4))
    assert out[y, x] == pytest.approx(direct, rel=1e-4)
    np.testing.assert_allclose(smooth(np.full((9, 9), 2.0, np.float32), 1.3), 2.0, rtol=1e-6)


def test_tiles_give_what_whole_images_give() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1200, 1150)).astype(np.float32)
    constant = Kernel(rng.normal(size=(1, 21, 21)), 0, image.shape)
    whole = fftconvolve(np.pad(image, 10, "symmetric"), constant.terms[0], mode="valid")
    np.testing.assert_allclose(convolve_varying(image, constant), whole, atol=2e-4)


def test_grow_is_a_square_dilation() -> None:
    mask = np.zeros((20, 20), bool)
    mask[3, 18] = mask[10, 5] = True
    out = grow(mask, 2)
    assert out.sum() == 25 + 5 * 4
    assert out[8:13, 3:8].all() and out[1:6, 16:20].all()
