"""`apflow difference` of images that do not lie on one grid, and of cameras that say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from apflow.errors import BadRequest
from apflow.model.wcs import Wcs
from apflow.operate import any_fits
from apflow.operate.any_pair import on_one_grid
from apflow.operate.difference import difference
from tests.pixels.scenes import stars_image, wcs

N = 400
SKY, GAIN, FULL = 1500.0, 1.6, 6e4
#: Changes of the science image: x, y and flux in electrons.
CHANGES = np.array([[90.3, 110.7, 9000.0], [300.2, 95.4, 9000.0], [110.8, 310.1, 12000.0], [290.5, 300.6, 15000.0]])


def sky_stars(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stars on a field wider than the science image, in its pixels."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-200, N + 200, (2, 700))
    return x, y, np.minimum(8000 * (rng.random(700) + 1e-3) ** -1.1, 2.5e6)


def counts(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, flux: np.ndarray, fwhm: float, shape: tuple[int, int]
) -> np.ndarray:
    near = (x > -20) & (y > -20) & (x < shape[1] + 20) & (y < shape[0] + 20)
    electrons = rng.poisson(stars_image(shape, x[near], y[near], flux[near], fwhm) + SKY) + rng.normal(0, 6, shape)
    return np.rint(np.minimum(electrons, FULL) / GAIN).astype(np.int32)


def write_pair(
    folder: Path, transform: Any, shape: tuple[int, int] = (N, N), fwhm: float = 3.8, **cards: Any
) -> tuple[Path, Path]:
    """A science image with changes and a template whose pixels are `transform` of the science image's."""
    rng = np.random.default_rng(5)
    x, y, flux = sky_stars()
    new = [np.concatenate(pair) for pair in zip((x, y, flux), CHANGES.T, strict=True)]
    u, v = transform(x, y)
    for name, image in (
        ("s", counts(rng, new[0], new[1], new[2], 4.2, (N, N))),
        ("t", counts(rng, u, v, flux, fwhm, shape)),
    ):
        fits.PrimaryHDU(image, fits.Header(cards)).writeto(folder / f"{name}.fits")
    return folder / "s.fits", folder / "t.fits"


def turned(angle_deg: float, scale: float, mirrored: bool, shift: tuple[float, float]) -> Any:
    t = np.radians(angle_deg)

    def transform(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dx, dy = x - N / 2, y - N / 2
        u, v = np.cos(t) * dx - np.sin(t) * dy, np.sin(t) * dx + np.cos(t) * dy
        return scale * (-u if mirrored else u) + shift[0], scale * v + shift[1]

    return transform


def found(sources: pd.DataFrame) -> int:
    d = np.hypot(sources["x"].to_numpy()[:, None] - CHANGES[:, 0], sources["y"].to_numpy()[:, None] - CHANGES[:, 1])
    return int((d.min(0) < 2).sum())


@pytest.mark.parametrize(
    ("angle_deg", "scale", "mirrored", "shape"),
    [
        (0.0, 1.0, False, (N, N)),
        (37.0, 1.0, False, (560, 600)),
        (180.0, 0.8, True, (400, 420)),
        (5.0, 2.2, False, (900, 920)),
    ],
)
@pytest.mark.parametrize("method", ["alard-lupton", "zogy"])
def test_images_without_wcs_are_aligned_by_their_stars(
    tmp_path: Path, angle_deg: float, scale: float, mirrored: bool, shape: tuple[int, int], method: str
) -> None:
    """Also two of one shape that are 13 px apart."""
    shift = (shape[1] / 2 + 12.3, shape[0] / 2 - 4.6)
    s, t = write_pair(tmp_path, turned(angle_deg, scale, mirrored, shift), shape, 3.8 * scale)
    report = difference(s, t, tmp_path / "out", method=method)
    sources = pd.read_parquet(report["diasources.parquet"])
    assert found(sources) == len(CHANGES)
    assert len(sources) <= len(CHANGES) + 3
    assert report["aligned_by"] == "stars" and report["resampled"]
    assert report["mirrored"] == mirrored and report["scale"] == pytest.approx(scale, rel=1e-3)
    assert abs((report["rotation_deg"] - angle_deg + 180) % 360 - 180) < 0.05
    assert 0.3 * report["science_stars"] < report["matched_stars"] <= report["science_stars"]
    assert report["rms_px"] < 0.3 * scale
    near = sources[np.hypot(sources["x"] - CHANGES[3, 0], sources["y"] - CHANGES[3, 1]) < 2]
    assert float(near["psfFlux"].iloc[0]) == pytest.approx(CHANGES[3, 2] / GAIN, rel=0.06)


def test_two_wcs_that_disagree_are_refined(tmp_path: Path) -> None:
    """By 0.7 px, which leaves a dipole at every star, and by 6 px."""
    for n, off in enumerate(((0.7, -0.5), (6.0, 3.0))):
        folder = tmp_path / str(n)
        folder.mkdir()
        s, t = write_pair(folder, lambda x, y: (x + 30.0, y - 20.0))
        grid = wcs(N)
        other = Wcs(grid.crval_deg, (grid.crpix[0] + 30 + off[0], grid.crpix[1] - 20 + off[1]), grid.cd)
        for path, w in ((s, grid), (t, other)):
            with fits.open(path, mode="update") as hdus:
                hdus[0].header.update(w.to_header())
        report = difference(s, t, folder / "out")
        sources = pd.read_parquet(report["diasources.parquet"])
        assert found(sources) == len(CHANGES) and len(sources) <= len(CHANGES) + 2
        assert report["shift_x_px"] == pytest.approx(30.0, abs=0.05)
        assert report["alerts"] == len(sources)


def test_science_image_gets_its_wcs_from_the_template(tmp_path: Path) -> None:
    s, t = write_pair(tmp_path, lambda x, y: (x + 8.0, y + 5.0))
    with fits.open(t, mode="update") as hdus:
        hdus[0].header.update(wcs(N).to_header())
    science, template = (any_fits.prepare(any_fits.read(p)) for p in (s, t))
    aligned, resampled, placement = on_one_grid(science, template, (s, t))
    assert aligned.wcs is not None and resampled.wcs is aligned.wcs and placement.by == "stars"
    ra, dec = aligned.wcs.pixel_to_sky(100.0, 200.0)
    assert (float(ra), float(dec)) == pytest.approx(
        tuple(float(c) for c in wcs(N).pixel_to_sky(108.0, 205.0)), abs=0.02 / 3600
    )


def test_image_on_its_own_grid_is_not_resampled(tmp_path: Path) -> None:
    s, t = write_pair(tmp_path, lambda x, y: (x + 0.2, y))
    report = difference(s, t, tmp_path / "out")
    assert not report["resampled"] and report["aligned_by"] == "stars"
    assert report["shift_x_px"] == pytest.approx(0.2, abs=0.05)


def test_other_fields_are_refused_with_the_count(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name, seed in (("s", 0), ("t", 9)):
        x, y, flux = sky_stars(seed)
        fits.PrimaryHDU(counts(rng, x, y, flux, 4.0, (N, N))).writeto(tmp_path / f"{name}.fits")
    with pytest.raises(BadRequest, match=r"s\.fits and .*t\.fits, and \d+ of \d+ stars.*needed: 4 or more"):
        difference(tmp_path / "s.fits", tmp_path / "t.fits", tmp_path / "out")


def test_camera_is_estimated_and_the_header_comes_first(tmp_path: Path) -> None:
    s, t = write_pair(tmp_path, lambda x, y: (x, y))
    silent = any_fits.prepare(any_fits.read(s))
    known = {k: v for k, v in silent.summary.items() if k.startswith("gain")}
    assert len(known) == 1 and next(iter(known.values())) == pytest.approx(GAIN, rel=0.1)
    assert 0.9 * FULL / GAIN < silent.summary["saturation_by_plateau"] <= FULL / GAIN
    assert difference(s, t, tmp_path / "out")["science_saturated_pixels"] > 0
    with fits.open(s, mode="update") as hdus:
        hdus[0].header.update({"EGAIN": 1.7, "GAIN": 139, "SATURATE": 3e4, "RDNOISE": 6.0})
    stated = any_fits.prepare(any_fits.read(s)).summary
    assert stated["gain_in_header"] == 1.7 and "gain_by_sky" not in stated
    assert stated["saturation_in_header"] == 3e4 and stated["read_noise_in_header"] == 6.0
    with fits.open(s, mode="update") as hdus:
        hdus[0].header["EGAIN"] = 0.2
    refuted = any_fits.prepare(any_fits.read(s))
    bright = refuted.image > 20 * refuted.summary["sky_noise"]
    photons = (refuted.variance - refuted.summary["sky_noise"] ** 2)[bright] / refuted.image[bright]
    assert np.median(photons) == pytest.approx(1 / GAIN, rel=0.15)


def test_noise_and_mask_of_other_files(tmp_path: Path) -> None:
    s, t = write_pair(tmp_path, lambda x, y: (x, y))
    x, y = CHANGES[0, :2].round().astype(int)
    mask = np.zeros((N, N), np.uint8)
    mask[y - 5 : y + 6, x - 5 : x + 6] = 1
    noise = np.full((N, N), 50.0, np.float32)
    fits.PrimaryHDU(mask).writeto(tmp_path / "mask.fits")
    fits.PrimaryHDU(noise).writeto(tmp_path / "noise.fits")
    read = any_fits.read(s, tmp_path / "noise.fits", tmp_path / "mask.fits")
    assert np.unique(read.variance).tolist() == [2500.0]
    report = difference(s, t, tmp_path / "out", masks=(tmp_path / "mask.fits", None))
    assert found(pd.read_parquet(report["diasources.parquet"])) == len(CHANGES) - 1
    fits.PrimaryHDU(noise[1:]).writeto(tmp_path / "small.fits")
    with pytest.raises(BadRequest, match=r"the ERR given for .*s\.fits is of shape \(399, 400\)"):
        any_fits.read(s, tmp_path / "small.fits")
    with pytest.raises(BadRequest, match=r"none\.fits: no such file"):
        any_fits.read(s, None, tmp_path / "none.fits")
    with pytest.raises(BadRequest, match=r"'hotpants'; accepted: alard-lupton, zogy"):
        difference(s, t, tmp_path / "out", method="hotpants")
