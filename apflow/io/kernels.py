"""The matching kernel of a subtraction, kept in the file of its difference image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apflow.errors import DataError
from apflow.io.hdu import Hdu, read_hdus
from apflow.model.kernel import Kernel, KernelStamps

#: Columns of the HDU of stamps, in order.
_COLUMNS = ("x", "y", "used", "chi2")


def kernel_hdus(kernel: Kernel) -> list[Hdu]:
    """HDU KERNEL with its terms (nterms, k, k), and KERNEL_STAMPS with a row a stamp: x, y, used, chi2."""
    ny, nx = kernel.shape
    hdus = [Hdu("KERNEL", {"KORDER": kernel.order, "KERNELNX": nx, "KERNELNY": ny}, np.asarray(kernel.terms, "f8"))]
    if kernel.stamps is not None and len(kernel.stamps.x):
        names = {f"COLUMN{n}": name for n, name in enumerate(_COLUMNS, 1)}
        rows = np.stack([np.asarray(getattr(kernel.stamps, name), np.float64) for name in _COLUMNS], 1)
        hdus.append(Hdu("KERNEL_STAMPS", names, rows))
    return hdus


def read_kernel(path: str | Path) -> Kernel:
    """The kernel of a difference image, with the stamps that it was fitted to where there were any.

    Raises
    ------
    DataError
        The file is missing, not FITS or truncated, or has no kernel.
    """
    hdus = {hdu.name: hdu for hdu in read_hdus(path)}
    if "KERNEL" not in hdus or hdus["KERNEL"].data is None:
        raise DataError(f"{path} has no HDU KERNEL; accepted: a difference image of Alard & Lupton's method")
    header, data = hdus["KERNEL"].header, np.asarray(hdus["KERNEL"].data, np.float64)
    stamps = None
    if "KERNEL_STAMPS" in hdus:
        x, y, used, chi2 = np.asarray(hdus["KERNEL_STAMPS"].data, np.float64).T
        stamps = KernelStamps(x.astype(np.int64), y.astype(np.int64), used > 0, chi2)
    return Kernel(data, int(header["KORDER"]), (int(header["KERNELNY"]), int(header["KERNELNX"])), stamps)
