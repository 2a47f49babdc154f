"""What a difference image was made with can be read back from its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.io.fits import read_exposure, write_exposure
from apflow.io.kernels import read_kernel
from apflow.pixels.subtract import subtract
from tests.pixels.scenes import pair


def test_kernel_and_stamps_come_back(tmp_path: Path) -> None:
    p = pair(stars=150)
    d = subtract(p.science, p.template, kernel_order=1)
    write_exposure(tmp_path / "d.fits", d.exposure, kernel=d.kernel)
    kernel = read_kernel(tmp_path / "d.fits")
    assert (kernel.order, kernel.shape) == (1, (256, 256))
    np.testing.assert_array_equal(kernel.at(10.0, 200.0), d.kernel.at(10.0, 200.0))
    assert kernel.stamps is not None and d.kernel.stamps is not None
    for name in ("x", "y", "used", "chi2"):
        np.testing.assert_array_equal(getattr(kernel.stamps, name), getattr(d.kernel.stamps, name))
    assert kernel.stamps.used.sum() == d.exposure.summary["n_stamps"]
    np.testing.assert_array_equal(read_exposure(tmp_path / "d.fits").image, d.exposure.image)


def test_a_kernel_without_stamps_comes_back(tmp_path: Path) -> None:
    p = pair(stars=0, snr=())
    d = subtract(p.science, p.template)
    write_exposure(tmp_path / "d.fits", d.exposure, kernel=d.kernel)
    kernel = read_kernel(tmp_path / "d.fits")
    assert kernel.stamps is None
    np.testing.assert_array_equal(kernel.terms, d.kernel.terms)


def test_a_file_without_a_kernel_is_named(tmp_path: Path) -> None:
    write_exposure(tmp_path / "science.fits", pair(stars=3, snr=()).science)
    with pytest.raises(DataError, match=r"science\.fits has no HDU KERNEL"):
        read_kernel(tmp_path / "science.fits")
