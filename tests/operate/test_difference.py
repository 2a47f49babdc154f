"""`apflow difference`: two FITS files of any telescope in, what changed out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from apflow.errors import BadRequest, DataError
from apflow.io.fits import read_exposure
from apflow.operate import any_fits
from apflow.operate.any_psf import estimate_psf, sharpest
from apflow.operate.difference import difference
from apflow.pixels.stars import find_stars
from apflow.pixels.warp import warp
from tests.pixels.scenes import exposure, gaussian_psf, pair, stars_image, wcs

SNR = (15.0, 25.0, 40.0, -25.0)
SKY = 3000.0


def write(path: Path, image: np.ndarray, wcs_of: Any = None, **cards: Any) -> Path:
    header = fits.Header({**(wcs_of.to_header() if wcs_of else {}), **cards})
    fits.PrimaryHDU(image, header).writeto(path)
    return path


def both(tmp_path: Path, *, with_wcs: bool, cards: dict[str, Any] | None = None) -> tuple[Path, Path, Any]:
    """Two images with sky left in, as integers, without variance."""
    p = pair(n=300, stars=150, snr=SNR, sky=(SKY, 1000.0))
    grid = wcs(300) if with_wcs else None
    s = write(tmp_path / "s.fits", (p.science.image + SKY).clip(0, 6e4).astype(np.int32), grid, **(cards or {}))
    t = write(tmp_path / "t.fits", (p.template.image + 1000).clip(0, 6e4).astype(np.int32), grid)
    return s, t, p


def found(sources: pd.DataFrame, p: Any) -> int:
    d = np.hypot(sources["x"].to_numpy()[:, None] - p.x, sources["y"].to_numpy()[:, None] - p.y)
    return int((d.min(0) < 2).sum())


def test_aligned_images_without_wcs(tmp_path: Path) -> None:
    s, t, p = both(tmp_path, with_wcs=False)
    report = difference(s, t, tmp_path / "out")
    sources = pd.read_parquet(report["diasources.parquet"])
    assert found(sources, p) == len(SNR)
    assert len(sources) <= len(SNR) + 2
    assert sources["ra"].isna().all()
    assert report["flux_unit"] == "ADU" and report["alerts"] == 0
    assert Table.read(report["diasources.ecsv"])["psfFlux"].unit == "adu"
    nearest = np.hypot(sources["x"] - p.x[2], sources["y"] - p.y[2]).idxmin()
    assert sources.loc[nearest, "psfFlux"] == pytest.approx(p.flux[2], rel=0.1)


def test_products_of_images_with_wcs(tmp_path: Path) -> None:
    s, t, p = both(tmp_path, with_wcs=True, cards={"MAGZERO": 31.4, "FILTER": "r DECam", "MJD-OBS": 60000.0})
    report = difference(s, t, tmp_path / "out")
    exposure = read_exposure(report["difference.fits"])
    assert exposure.shape == (300, 300) and exposure.unit == report["flux_unit"] == "nJy"
    with open(report["alerts.avro"], "rb") as file:
        alerts = list(fastavro.reader(file))
    assert len(alerts) == report["sources"] >= len(SNR)
    assert alerts[0]["cutoutDifference"].startswith(b"SIMPLE")
    ra, dec = wcs(300).pixel_to_sky(p.x, p.y)
    got = np.array([[a["diaSource"]["ra"], a["diaSource"]["dec"]] for a in alerts])
    assert (np.abs(got[:, None] - np.stack([ra, dec], -1)).max(2).min(0) * 3600 < 0.4).all()
    with Image.open(report["stamps.png"]) as sheet:
        assert sheet.width > 300


def test_template_on_another_grid_is_warped(tmp_path: Path) -> None:
    p = pair(n=300, stars=150, snr=SNR)
    turned = p.template.image[::-1, ::-1]
    back = wcs(300).cd * -1
    grid = type(wcs(300))((150.0, 2.0), (149.5, 149.5), back)
    s = write(tmp_path / "s.fits", p.science.image, wcs(300))
    t = write(tmp_path / "t.fits", np.ascontiguousarray(turned), grid)
    sources = pd.read_parquet(difference(s, t, tmp_path / "out")["diasources.parquet"])
    assert found(sources, p) == len(SNR)


def test_variance_and_mask_of_the_file_are_used(tmp_path: Path) -> None:
    p = pair(n=300, stars=150, snr=SNR)
    mask = np.zeros((300, 300), np.uint8)
    x, y = (int(c[0]) for c in (p.x, p.y))
    mask[y - 4 : y + 6, x - 4 : x + 6] = 1
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(p.science.image, name="SCI")]
    hdus += [fits.ImageHDU(np.sqrt(p.science.variance), name="ERR"), fits.ImageHDU(mask, name="MASK")]
    fits.HDUList(hdus).writeto(tmp_path / "s.fits")
    t = write(tmp_path / "t.fits", p.template.image)
    report = difference(tmp_path / "s.fits", t, tmp_path / "out")
    sources = pd.read_parquet(report["diasources.parquet"])
    assert found(sources, p) == len(SNR) - 1
    assert report["variance_scale"] == pytest.approx(1.0, abs=0.15)


def test_bad_input_is_named(tmp_path: Path) -> None:
    good = write(tmp_path / "good.fits", np.random.default_rng(0).normal(100, 3, (80, 90)).astype(np.float32))
    other = write(tmp_path / "other.fits", np.random.default_rng(1).normal(100, 3, (70, 90)).astype(np.float32))
    flat = write(tmp_path / "flat.fits", np.full((80, 90), 7, np.float32))
    broken = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CD1_1": 0.0, "CD2_2": 0.0, "CD1_2": 0.0}
    singular = write(tmp_path / "singular.fits", np.eye(80, 90, dtype=np.float32), **broken)
    nans = write(tmp_path / "nan.fits", np.full((80, 90), np.nan, np.float32))
    cube = write(tmp_path / "cube.fits", np.ones((3, 8, 9), np.float32))
    text = tmp_path / "text.fits"
    text.write_text("not a FITS file")
    out = tmp_path / "out"
    with pytest.raises(BadRequest, match=r"missing\.fits: no such file"):
        difference(tmp_path / "missing.fits", good, out)
    with pytest.raises(BadRequest, match=r"text\.fits is not a FITS file"):
        difference(good, text, out)
    with pytest.raises(DataError, match=r"cube\.fits has no two-dimensional image"):
        difference(cube, good, out)
    with pytest.raises(DataError, match=r"nan\.fits has no pixel with a value"):
        difference(nans, good, out)
    with pytest.raises(DataError, match=r"flat\.fits shows nothing: all its pixels are 7"):
        difference(good, flat, out)
    with pytest.raises(DataError, match=r"singular\.fits has a WCS that cannot be used"):
        difference(singular, good, out)
    with pytest.raises(BadRequest, match=r"\(80, 90\).*\(70, 90\).*no WCS"):
        difference(good, other, out)
    assert not out.exists()


def test_no_overlap_is_named(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(100, 3, (100, 100)).astype(np.float32)
    s = write(tmp_path / "s.fits", image, wcs(100))
    t = write(tmp_path / "t.fits", image, wcs(100, shift=(5000.0, 0.0)))
    with pytest.raises(DataError, match=r"do not overlap.*\(150\.0000, \+2\.0000\)"):
        difference(s, t, tmp_path / "out")


def test_identical_images_have_no_source_and_the_sheet_shows_them(tmp_path: Path) -> None:
    s, _, _ = both(tmp_path, with_wcs=True)
    report = difference(s, s, tmp_path / "out")
    assert report["sources"] == report["alerts"] == 0
    with Image.open(report["stamps.png"]) as sheet:
        assert sheet.width > 3 * 300


@pytest.mark.parametrize("seed", [0, 1])
def test_template_broader_than_the_science_image(tmp_path: Path, seed: int) -> None:
    p = pair(n=300, seed=seed, science_fwhm=3.2, template_fwhm=5.0, stars=150, snr=SNR)
    s, t = write(tmp_path / "s.fits", p.science.image), write(tmp_path / "t.fits", p.template.image)
    report = difference(s, t, tmp_path / "out")
    sources = pd.read_parquet(report["diasources.parquet"])
    assert report["science_convolved"] == 1.0
    assert found(sources, p) >= len(SNR) - 1
    assert len(sources) <= len(SNR) + 2
    nearest = np.hypot(sources["x"] - p.x[2], sources["y"] - p.y[2]).idxmin()
    assert sources.loc[nearest, "psfFlux"] == pytest.approx(p.flux[2], rel=0.15)
    assert not sources.loc[nearest, "isNegative"]


def test_template_of_another_scale_and_rotation(tmp_path: Path) -> None:
    p = pair(n=300, stars=150, snr=SNR, growth=0.0)
    grid = wcs(360, rotation_deg=30.0, scale=1.2)
    turned = warp(p.template, grid, (360, 360))
    image = np.where(turned.mask == 0, turned.image, np.float32(np.nan))
    s, t = write(tmp_path / "s.fits", p.science.image, wcs(300)), write(tmp_path / "t.fits", image, grid)
    assert found(pd.read_parquet(difference(s, t, tmp_path / "out")["diasources.parquet"]), p) == len(SNR)


def galaxies_and_few_stars(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """60 galaxies of FWHM 6 to 12 px, 6 stars of 2.6 px, and 5 cosmic rays of one pixel."""
    rng = np.random.default_rng(seed)
    x, y = np.random.default_rng(9).uniform(20, 280, (2, 66))
    image = sum(
        stars_image((300, 300), x[i : i + 1], y[i : i + 1], np.array([f]), w)
        for i, (f, w) in enumerate([(4e4, w) for w in np.linspace(6, 12, 60)] + [(1.5e4, 2.6)] * 6)
    )
    noisy = exposure(np.asarray(image), 1000.0, gaussian_psf(2.6, 300), rng)
    noisy.image[rng.integers(20, 280, 5), rng.integers(20, 280, 5)] += 5000
    return noisy.image, noisy.variance


def test_psf_of_a_field_of_galaxies_is_that_of_its_few_stars(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{seed}.fits", galaxies_and_few_stars(seed)[0]) for seed in (1, 2)]
    first, second = (any_fits.prepare(any_fits.read(f)) for f in files)
    psf, fwhm = estimate_psf(first, second)
    assert fwhm == pytest.approx(2.6, rel=0.08)
    assert psf.fwhm_px() == pytest.approx(2.6, rel=0.15)
    objects = find_stars(first, 15.0)
    assert objects["fwhm"].median() > 5
    objects = objects[objects["fwhm"] > 1.5]
    assert 3 <= sharpest(objects).sum() <= 8


@pytest.mark.parametrize(
    "layout", ["compressed", "second", "hst", "ivar", "blank", "zeros", "nan", "gradient", "cards"]
)
def test_other_peoples_files(tmp_path: Path, layout: str) -> None:
    p = pair(n=300, stars=150, snr=SNR)
    image, sigma = p.science.image + np.float32(SKY), np.sqrt(p.science.variance)
    dq = np.zeros((300, 300), np.uint32)
    dq[150:152] = 4
    header = fits.Header(wcs(300).to_header())
    hdus: list[Any] = [fits.PrimaryHDU(), fits.ImageHDU(image, header)]
    match layout:
        case "compressed":
            hdus[1] = fits.CompImageHDU(image.round().astype(np.int32), header)
        case "second":
            hdus[0].header.update({"EXPTIME": 30.0, "FILTER": "r", "DATE-OBS": "2024-01-02T03:04:05"})
        case "hst":
            hdus[1:] = [fits.ImageHDU(plane, name=name) for plane, name in ((sigma, "ERR"), (dq, "DQ"))]
            hdus.append(fits.ImageHDU(image, header, name="SCI"))
        case "ivar":
            hdus.insert(1, fits.ImageHDU(1 / p.science.variance, name="IVAR"))
        case "blank":
            whole = image.round().astype(np.int32)
            whole[:, 290:] = -9999
            hdus = [fits.PrimaryHDU(whole, header)]
            hdus[0].header["BLANK"] = -9999
        case "zeros" | "nan":
            image[:, 288:] = 0 if layout == "zeros" else np.nan
        case "gradient":
            image += np.linspace(0, 3000, 300, dtype=np.float32)
        case "cards":
            header.update({"GAIN": -1.0, "SATURATE": -5.0, "EXPTIME": "abc", "DATE-OBS": "2020-13-45T99"})
            header.update({"MAGZERO": -99.0, "BUNIT": "counts"})
            hdus = [fits.PrimaryHDU(image, header)]
    fits.HDUList(hdus).writeto(tmp_path / "s.fits")
    t = write(tmp_path / "t.fits", p.template.image + 1000, wcs(300))
    report = difference(tmp_path / "s.fits", t, tmp_path / "out")
    sources = pd.read_parquet(report["diasources.parquet"])
    assert found(sources, p) == len(SNR)
    assert len(sources) <= len(SNR) + 2
    assert report["flux_unit"] == "ADU"
