"""The WCS found again after pointing errors."""

import numpy as np
import pandas as pd
import pytest

from apflow.errors import DataError
from apflow.model.camera import load_camera
from apflow.model.sky import separation_arcsec
from apflow.pixels.astrometry import fit_wcs

RA, DEC = 210.3, -42.7


def field(n=60, size=512, shift=(1.4, -1.3), turn=32.0, error_px=0.05, galaxies=30, seed=1, detector=8, dec=DEC):
    rng = np.random.default_rng(seed)
    camera = load_camera("lsstcam", size)
    ccd = camera.detector(detector)
    guess = camera.wcs(ccd, RA, dec, 20.0)
    true = camera.wcs(ccd, RA + shift[0] / 3600 / np.cos(np.radians(dec)), dec + shift[1] / 3600, 20.0 + turn / 3600)
    x, y = rng.uniform(0, ccd.nx - 1, n), rng.uniform(0, ccd.ny - 1, n)
    ra, dec_ = true.pixel_to_sky(x, y)
    known = rng.random(n) < 0.9
    reference = pd.DataFrame({"ra": ra, "dec": dec_, "mag": rng.uniform(17, 22, n)})[known].reset_index(drop=True)
    x = np.concatenate([x + rng.normal(0, error_px, n), rng.uniform(0, ccd.nx - 1, galaxies)])
    y = np.concatenate([y + rng.normal(0, error_px, n), rng.uniform(0, ccd.ny - 1, galaxies)])
    order = rng.permutation(len(x))
    return x[order], y[order], reference, guess, true, ccd


def worst(fitted, true, ccd):
    x, y = np.meshgrid(np.linspace(0, ccd.nx - 1, 7), np.linspace(0, ccd.ny - 1, 7))
    return separation_arcsec(*fitted.pixel_to_sky(x, y), *true.pixel_to_sky(x, y)).max()


@pytest.mark.parametrize("shift", [(0.0, 0.0), (2.0, 0.0), (-1.4, 1.4), (0.0, -2.0)])
@pytest.mark.parametrize("turn", [-32.0, 32.0])
def test_pointing_errors_are_taken_out(shift, turn):
    x, y, reference, guess, true, ccd = field(shift=shift, turn=turn)
    fitted, found = fit_wcs(x, y, reference, guess, 5.0)
    assert worst(fitted, true, ccd) < 0.01
    assert found.scatter_arcsec == pytest.approx(0.01, rel=0.4)
    assert len(found.star) >= 45


def test_full_ccd_keeps_its_distortion():
    x, y, reference, guess, true, ccd = field(n=1200, size=None, galaxies=800)
    fitted, found = fit_wcs(x, y, reference, guess, 5.0)
    assert worst(fitted, true, ccd) < 0.003
    assert fitted.order == guess.order and (fitted.a == guess.a).all()
    assert found.offset_arcsec == pytest.approx(
        separation_arcsec(*guess.pixel_to_sky(2000, 2000), *true.pixel_to_sky(2000, 2000)), abs=0.1
    )


def test_near_the_pole_the_meridians_turn():
    x, y, reference, guess, true, ccd = field(dec=-88.5)
    fitted, _ = fit_wcs(x, y, reference, guess, 5.0)
    assert worst(fitted, true, ccd) < 0.01


def test_matches_are_pairs_of_the_same_star():
    x, y, reference, guess, true, _ = field()
    _, found = fit_wcs(x, y, reference, guess, 5.0)
    px, py = true.sky_to_pixel(reference["ra"].to_numpy(), reference["dec"].to_numpy())
    assert np.hypot(px[found.reference] - x[found.star], py[found.reference] - y[found.star]).max() < 0.5
    assert len(np.unique(found.reference)) == len(found.reference)


def test_wrong_pairs_are_rejected():
    x, y, reference, guess, true, ccd = field(n=50)
    rng = np.random.default_rng(2)
    off = rng.random(len(reference)) < 0.2
    reference.loc[off, "ra"] += rng.normal(0, 0.2 / 3600, off.sum())
    fitted, _ = fit_wcs(x, y, reference, guess, 5.0)
    assert worst(fitted, true, ccd) < 0.015


@pytest.mark.parametrize(("n", "size"), [(60, 512), (1500, None)])
def test_another_field_does_not_match(n, size):
    x, y, _, guess, _, _ = field(n=n, size=size)
    _, _, reference, _, _, _ = field(n=n, size=size, seed=77)
    with pytest.raises(DataError, match=rf"of {len(x)} stars match \d+ reference stars"):
        fit_wcs(x, y, reference, guess, 5.0, 10)


def test_empty_catalogues_are_an_error():
    x, y, reference, guess, _, _ = field()
    for stars, known in ((slice(0, 0), reference), (slice(None), reference[:0])):
        with pytest.raises(DataError, match="no astrometric match"):
            fit_wcs(x[stars], y[stars], known, guess, 5.0)
