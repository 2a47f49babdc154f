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
from apflow.operate.difference import difference
from tests.pixels.scenes import pair, wcs

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
    other = write(tmp_path / "other.fits", np.ones((70, 90), np.float32))
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
    with pytest.raises(BadRequest, match=r"\(80, 90\).*\(70, 90\).*no WCS"):
        difference(good, other, out)
    assert not out.exists()


def test_no_overlap_is_named(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(100, 3, (100, 100)).astype(np.float32)
    s = write(tmp_path / "s.fits", image, wcs(100))
    t = write(tmp_path / "t.fits", image, wcs(100, shift=(5000.0, 0.0)))
    with pytest.raises(DataError, match=r"do not overlap.*\(150\.0000, \+2\.0000\)"):
        difference(s, t, tmp_path / "out")
