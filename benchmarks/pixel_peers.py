"""Other codes on the same pairs: HOTPANTS (acbecker) for the subtraction, SExtractor for the detection.

Both run as commands found on PATH; CPU is what the operating system counts for the finished child.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from apflow.model.exposure import Exposure
from apflow.model.psf import Psf
from apflow.pixels.planes import unusable

F4 = NDArray[np.float32]
Bool = NDArray[np.bool_]

HOTPANTS, SEXTRACTOR = "hotpants", ("source-extractor", "sex")
#: Settings of HOTPANTS by name: "recommended" is what its author advises, with Gaussians and radii scaled by the two
#: FWHM; "ko1" and "ko2" its own Gaussians with a kernel of first and of second order.
SETTINGS = ("recommended", "ko1", "ko2")
#: Two images this alike in FWHM are left to HOTPANTS's own choice of which to convolve.
_ALIKE = 1.05
_FILL = 1e-30


@dataclass(frozen=True, eq=False)
class PeerDifference:
    """A difference of another code, with its PSF; `bad` are the pixels that it has given up."""

    image: F4
    variance: F4
    psf: Psf
    bad: Bool
    cpu_s: float


def hotpants_path() -> str | None:
    """The binary, None where there is none."""
    return shutil.which(HOTPANTS)


def sextractor_path() -> str | None:
    """The binary under either of its names, None where there is none."""
    return next((path for name in SEXTRACTOR if (path := shutil.which(name))), None)


def run(command: Sequence[str], folder: Path) -> float:
    """Run a command to its end in a folder; the CPU seconds that it took.

    Raises
    ------
    RuntimeError
        It failed; the message has the end of what it said.
    """
    with open(folder / "said.txt", "w+") as said:
        child = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if child.returncode != 0:
            raise RuntimeError(f"{command[0]} ended with {child.returncode}: {said.read()[-500:]}")
    return used.ru_utime + used.ru_stime


def write_pair(folder: Path, science: Exposure, template: Exposure) -> None:
    """The images, their noise and their masks, as HOTPANTS reads them: science.fits, science_noise.fits..."""
    for name, exposure in (("science", science), ("template", template)):
        bad = unusable(exposure.mask) | ~np.isfinite(exposure.image) | ~(exposure.variance > 0)
        image = np.where(np.isfinite(exposure.image), exposure.image, 0).astype(np.float32)
        noise = np.sqrt(np.where(bad, np.median(exposure.variance[~bad]), exposure.variance)).astype(np.float32)
        fits.writeto(folder / f"{name}.fits", image, overwrite=True)
        fits.writeto(folder / f"{name}_noise.fits", noise, overwrite=True)
        fits.writeto(folder / f"{name}_mask.fits", bad.astype(np.int16), overwrite=True)


def hotpants_command(science: Exposure, template: Exposure, setting: str) -> list[str]:
    """The command on the files of `write_pair`, which leaves difference.fits and noise.fits."""
    assert science.psf is not None and template.psf is not None
    wide = max(science.psf.fwhm_px(), template.psf.fwhm_px())
    command = [hotpants_path() or HOTPANTS, "-inim", "science.fits", "-tmplim", "template.fits"]
    command += ["-outim", "difference.fits", "-oni", "noise.fits", "-ini", "science_noise.fits"]
    command += ["-tni", "template_noise.fits", "-imi", "science_mask.fits", "-tmi", "template_mask.fits"]
    command += ["-n", "i", "-v", "0", "-bgo", "2", *_limits("i", science), *_limits("t", template)]
    command += _direction(science, template)
    if setting == "recommended":
        command += ["-r", f"{max(5, round(2.5 * wide))}", "-rss", f"{max(8, round(6 * wide))}", "-ko", "2"]
        command += _gaussians(science.psf.fwhm_px(), template.psf.fwhm_px())
    else:
        command += ["-ko", {"ko1": "1", "ko2": "2"}[setting]]
    return command


def _limits(which: str, exposure: Exposure) -> list[str]:
    """Lower and upper limits of valid data, beyond all that is not masked; -l x u x of one image."""
    good = exposure.image[~unusable(exposure.mask) & np.isfinite(exposure.image)]
    top = max(1.01 * float(good.max()), 1.0)
    low = float(good.min()) - 1.0
    return [f"-{which}u", f"{top:.6g}", f"-{which}uk", f"{top:.6g}", f"-{which}l", f"{low:.6g}"]


def _direction(science: Exposure, template: Exposure) -> list[str]:
    """Which image is convolved: the sharper one."""
    assert science.psf is not None and template.psf is not None
    ratio = template.psf.fwhm_px() / science.psf.fwhm_px()
    if 1 / _ALIKE < ratio < _ALIKE:
        return []
    return ["-c", "t" if ratio < 1 else "i"]


def _gaussians(one_fwhm: float, other_fwhm: float) -> list[str]:
    """Gaussians of half, one and two times the sigma that turns the one PSF into the other."""
    match = np.sqrt(abs(one_fwhm**2 - other_fwhm**2)) / 2.3548
    match = max(float(match), 0.25 * min(one_fwhm, other_fwhm))
    return ["-ng", "3", "6", f"{0.5 * match:.3f}", "4", f"{match:.3f}", "2", f"{2 * match:.3f}"]


def hotpants(science: Exposure, template: Exposure, setting: str) -> PeerDifference:
    """HOTPANTS's difference, in the flux scale of the science image, with one of `SETTINGS`.

    Raises
    ------
    RuntimeError
        It failed on this pair.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pair(folder, science, template)
        cpu_s = run(hotpants_command(science, template, setting), folder)
        image, header = fits.getdata(folder / "difference.fits", header=True)
        noise = fits.getdata(folder / "noise.fits")
    image, noise = np.asarray(image, np.float32), np.asarray(noise, np.float32)
    given_up = (np.abs(image) <= 2 * _FILL) | ~np.isfinite(image) | ~(noise > 0)
    convolved = str(header.get("CONVOL00", "TEMPLATE")).strip().upper()
    psf = science.psf if convolved.startswith("TEMPLATE") else template.psf
    assert psf is not None
    return PeerDifference(image, noise**2, psf, given_up, cpu_s)
