"""Real pairs of a folder, as `apflow difference` prepares them, and changes put into them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pixel_sky import ideal_snr
from scipy.ndimage import shift as shifted

from apflow.model.exposure import Exposure
from apflow.operate import any_fits
from apflow.operate.any_pair import on_one_grid
from apflow.pixels.convolve import grow
from apflow.pixels.planes import unusable

F8 = NDArray[np.float64]

#: Changes put in lie one each in boxes of this side, this far from the rim, pixels.
_BOX_PX, _RIM_PX = 40, 8
#: Their S/N, in turn.
_SNRS = (7.0,) * 5 + (40.0,)


@dataclass(frozen=True)
class RealPair:
    """Files of two images of one sky.

    Attributes
    ----------
    name : `str`
    science, template : `pathlib.Path`
    noises : `tuple`
        Files of the noise of both, where there are such.
    known : `tuple`
        Places (x, y) that really changed.

    Pairs of one name are of one field and are judged together.
    """

    name: str
    science: Path
    template: Path
    noises: tuple[Path | None, Path | None] = (None, None)
    known: tuple[tuple[float, float], ...] = ()


def real_pairs(folder: Path) -> Iterator[RealPair]:
    """The pairs that are in a folder, by the names of their subfolders."""
    eso = sorted((folder / "eso085-030").glob("aligned_*.fit"))
    if len(eso) == 2:
        yield RealPair("eso085-030", eso[1], eso[0])
    nircam = folder / "nircam_a2744"
    images = sorted(nircam.glob("*_stamp.fits"))
    if len(images) == 2:
        # The folder's mask marks objects to fit a kernel with, not bad pixels.
        old, new = (p.with_suffix(".noise.fits") for p in images)
        yield RealPair("nircam_a2744", images[1], images[0], (new, old), ((280.0, 643.0),))
    for new in sorted((folder / "decam_minis").glob("DEC-OBS18?.mini.fits")):
        old = new.with_name(new.name.replace("OBS18", "OBS04"))
        if old.is_file():
            # Cut out about the object that changed.
            yield RealPair("decam_minis", new, old, known=((127.5, 127.5),))


def prepared(pair: RealPair, change: Callable[[Exposure], Exposure] | None = None) -> tuple[Exposure, Exposure]:
    """Science image and template as `apflow difference` has them before it subtracts.

    Parameters
    ----------
    pair : `RealPair`
    change : callable, optional
        What is done to the science image when it has just been read.
    """
    paths = pair.science, pair.template
    science, template = (any_fits.read(path, noise) for path, noise in zip(paths, pair.noises, strict=True))
    if change is not None:
        science = change(science)
    science, template = any_fits.prepare(science), any_fits.prepare(template)
    science, template, _ = on_one_grid(science, template, paths)
    science, template = any_fits.with_psf(science, template), any_fits.with_psf(template, science)
    return any_fits.without_cosmic_rays(science, template), any_fits.without_cosmic_rays(template, science)


def changes_for(science: Exposure, template: Exposure, noise_ratio: float, seed: int) -> pd.DataFrame:
    """Points to be put into the science image: x, y, flux, snr, asked (0 where a pixel near is masked).

    Parameters
    ----------
    science, template : `Exposure`
        As prepared.
    noise_ratio : `float`
        Noise of PSF fluxes in the difference over what the variances say.
    seed : `int`
    """
    assert science.psf is not None and template.psf is not None
    rng = np.random.default_rng(seed)
    ny, nx = science.shape
    rows, columns = ny // _BOX_PX, nx // _BOX_PX
    corner = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2) * _BOX_PX
    x, y = (corner + rng.uniform(_RIM_PX, _BOX_PX - _RIM_PX, corner.shape)).T
    asked = rng.permutation(np.resize(_SNRS, len(x)))
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    bad = unusable(science.mask) | unusable(template.mask)
    one = [_flux_at_one(science, template, i, j, bad) for i, j in zip(ix, iy, strict=True)]
    flux = asked * np.array(one) * noise_ratio
    margin = science.psf.size // 2 + 1
    near = grow(bad, 3)[iy, ix] | (x < margin) | (x > nx - 1 - margin) | (y < margin) | (y > ny - 1 - margin)
    table = pd.DataFrame({"x": x, "y": y, "flux": flux, "snr": asked, "asked": np.where(near, 0.0, asked)})
    kept: pd.DataFrame = table[np.isfinite(table["flux"])].reset_index(drop=True)
    return kept


def _flux_at_one(science: Exposure, template: Exposure, x: int, y: int, bad: NDArray[np.bool_]) -> float:
    """Flux of S/N 1 in an ideal difference at a pixel."""
    assert science.psf is not None and template.psf is not None
    box = np.s_[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4]
    if bad[box].all():
        return float("nan")
    ours, theirs = (float(e.variance[box][~bad[box]].mean()) for e in (science, template))
    return float(1 / ideal_snr(science.psf.at(x, y), template.psf.at(x, y), ours, theirs))


def put_in(points: pd.DataFrame, science: Exposure) -> Callable[[Exposure], Exposure]:
    """What adds points with the PSF of a prepared science image to the image as it was read."""
    psf = science.psf
    assert psf is not None
    half = psf.size // 2

    def add(exposure: Exposure) -> Exposure:
        ny, nx = exposure.shape
        light = np.zeros((ny + 2 * half, nx + 2 * half))
        for x, y, flux in zip(*(points[c].to_numpy(float) for c in ("x", "y", "flux")), strict=True):
            ix, iy = round(x), round(y)
            stamp = shifted(psf.at(x, y), (y - iy, x - ix), order=3)
            light[iy : iy + 2 * half + 1, ix : ix + 2 * half + 1] += flux * stamp
        inside = light[half : half + ny, half : half + nx].astype(np.float32)
        return dataclasses.replace(exposure, image=exposure.image + inside)

    return add
