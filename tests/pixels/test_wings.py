"""Light beyond the PSF's stamp: total fluxes, and how wrong the model of a PSF is."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from apflow.model.exposure import Exposure, Mask
from apflow.pixels.point_sources import fit_point_sources
from apflow.pixels.psf import fit_psf
from apflow.pixels.psf_error import psf_model_error
from apflow.pixels.wings import TOTAL_FWHM, ApertureCorrection, fit_aperture_correction
from tests.pixels.night import add, moffat

FWHM, SKY = 4.0, 1000.0


def field(n=80, side=900, beta=2.5, seed=1, curve=0.0, faint=0):
    """Moffat stars without a sky; the FWHM grows by ``curve`` with the square of the distance from the middle."""
    rng = np.random.default_rng(seed)
    cells = int(np.ceil(np.sqrt(n)))
    at = (np.stack(np.meshgrid(range(cells), range(cells)), -1).reshape(-1, 2)[:n] + 0.5) * side / cells
    x, y = (at + rng.uniform(-8, 8, at.shape)).T
    flux = rng.uniform(5e4, 4e5, n)
    image = np.zeros((side, side))
    for a, b, f in zip(x, y, flux, strict=True):
        r2 = ((2 * a / side - 1) ** 2 + (2 * b / side - 1) ** 2) / 2
        add(image, f * moffat(FWHM * (1 + curve * r2), 60, a - round(a), b - round(b), beta), round(a), round(b))
    for _ in range(faint):
        a, b = rng.integers(0, side, 2)
        add(image, rng.uniform(5e3, 5e4) * moffat(FWHM, 40, 0.0, 0.0, beta), a, b)
    variance = image + SKY
    noisy = (image + rng.normal(size=image.shape) * np.sqrt(variance)).astype(np.float32)
    exposure = Exposure(noisy, variance.astype(np.float32), np.zeros(image.shape, np.int32), "electron")
    return exposure, pd.DataFrame({"x": x, "y": y, "flux": flux, "fwhm": FWHM})


def correction(exposure, stars):
    psf = fit_psf(exposure, stars, 1)
    fitted = fit_point_sources(exposure, psf, stars["x"].to_numpy(), stars["y"].to_numpy())
    known = np.isfinite(fitted["flux"].to_numpy())
    x, y, flux = (fitted[c].to_numpy()[known] for c in ("x", "y", "flux"))
    return fit_aperture_correction(exposure, psf, x, y, flux, FWHM), flux, stars["flux"].to_numpy()[known]


def within(beta):
    """Part of a Moffat's light within `TOTAL_FWHM`."""
    alpha2 = FWHM**2 / 4 / (2 ** (1 / beta) - 1)
    return 1 - (1 + (TOTAL_FWHM * FWHM) ** 2 / alpha2) ** (1 - beta)


@pytest.mark.parametrize("beta", [2.5, 3.5])
@pytest.mark.parametrize("faint", [0, 150])
def test_aperture_correction_gives_the_total_flux_of_a_psf_with_wings_beyond_its_stamp(beta, faint):
    """With faint neighbours, too; the light is that within 5 FWHM."""
    found, flux, true = correction(*field(beta=beta, faint=faint))
    total = np.median(found.value * flux / true)
    assert total == pytest.approx(within(beta), abs=0.004)
    assert 0 < found.error < 0.003


def test_error_of_the_aperture_correction_is_its_scatter():
    found = [correction(*field(n=36, side=600, beta=3.5, seed=s))[0] for s in range(8)]
    scatter, error = np.std([f.value for f in found]), np.mean([f.error for f in found])
    assert 0.4 * error < scatter < 2.0 * error


def test_masked_and_nan_pixels_of_a_wing_do_not_count():
    exposure, stars = field(beta=3.5)
    clean = correction(exposure, stars)[0]
    image, mask = exposure.image.copy(), exposure.mask.copy()
    for a, b in stars[["x", "y"]].to_numpy()[::2].astype(int):
        image[b + 10, a - 8 : a + 8] = np.nan
        image[b - 17, a - 3 : a + 3], mask[b - 17, a - 3 : a + 3] = 1e5, int(Mask.SAT)
    spoiled = correction(dataclasses.replace(exposure, image=np.nan_to_num(image), mask=mask), stars)[0]
    assert spoiled.value == pytest.approx(clean.value, abs=3 * clean.error)


def test_no_star_tells_nothing():
    exposure, stars = field(n=16, side=500)
    none = np.zeros(0)
    psf = fit_psf(exposure, stars, 0)
    found = fit_aperture_correction(exposure, psf, none, none, none, FWHM)
    assert found.value == 1.0 and 0 < found.error < 0.1
    assert np.isnan(psf_model_error(exposure, psf, none, none, none))


def test_relative_correction_is_one_in_the_middle():
    tilted = ApertureCorrection(1.01, 0.001, (0.01, -0.02))
    assert tilted.relative(np.array([49.5]), np.array([49.5]), (100, 100)) == pytest.approx(1.0)
    assert tilted.relative(np.array([99.0]), np.array([0.0]), (100, 100)) == pytest.approx(1 + 0.03 / 1.01)


@pytest.mark.parametrize("curve", [0.06, 0.12])
def test_model_error_predicts_the_flux_errors_of_stars_left_out(curve):
    """A PSF that varies as the square of the position, and a model that cannot follow."""
    exposure, stars = field(n=196, side=1400, beta=3.5, curve=curve, seed=4)
    used = np.random.default_rng(1).random(len(stars)) < 0.6
    psf = fit_psf(exposure, stars[used], 1)
    own, others = (
        fit_point_sources(exposure, psf, stars[u]["x"].to_numpy(), stars[u]["y"].to_numpy()) for u in (used, ~used)
    )
    predicted = psf_model_error(exposure, psf, *(own.dropna()[c].to_numpy() for c in ("x", "y", "flux")))
    off = (others["flux"] / stars[~used]["flux"].to_numpy()).dropna()
    noise = np.median(others["flux_err"] / others["flux"])
    seen = np.sqrt(np.var(off) - noise**2)
    assert predicted == pytest.approx(seen, rel=0.4)


def test_a_model_that_is_right_has_hardly_an_error():
    exposure, stars = field(n=100, side=1000, beta=3.5, seed=2)
    psf = fit_psf(exposure, stars, 1)
    fitted = fit_point_sources(exposure, psf, stars["x"].to_numpy(), stars["y"].to_numpy()).dropna()
    assert psf_model_error(exposure, psf, *(fitted[c].to_numpy() for c in ("x", "y", "flux"))) < 0.002
