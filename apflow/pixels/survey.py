"""What one amplifier's pixels hold: level, noise, profiles and blocks, in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.camera import Amplifier
from apflow.model.exposure import Mask

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

#: Pixels that tell nothing of their amplifier.
EXCLUDED = int(Mask.BAD | Mask.SAT | Mask.NO_DATA)
#: Pixels further than this from the median are left out of means; blocks take them as if they were there.
_CLIP_SIGMA = 5.0
#: Pixels from which median and scatter are guessed.
_SAMPLE = 16_384

_SAT = int(Mask.SAT)


@dataclass(frozen=True, eq=False)
class Survey:
    """Statistics of one amplifier; NaN where it has no usable pixel.

    Attributes
    ----------
    mean, sigma : `float`
        Clipped mean and standard deviation of the residual.
    image_mean : `float`
        Mean of the image itself over the same pixels.
    centre : `float`
        Median of a sample of the residual.
    rows, columns : `numpy.ndarray`, (amplifier's ny,) and (nx,), float64
        Clipped means of the residual, in the CCD's order.
    blocks, block_pixels : `numpy.ndarray`, (by, bx), float64
        Means of the residual over blocks, and of how many pixels.
    n, n_saturated : `int`
        Pixels in the means, and pixels at or above saturation.
    """

    mean: float
    sigma: float
    image_mean: float
    centre: float
    rows: F8
    columns: F8
    blocks: F8
    block_pixels: F8
    n: int
    n_saturated: int


def survey(
    image: F4,
    mask: I4,
    amp: Amplifier,
    reference: F4 | None,
    scale: float,
    blocks: tuple[int, int],
    *,
    divide: bool,
    bright: bool,
) -> Survey:
    """Measure the residual ``image - scale * reference``, or ``image / reference``, of one amplifier.

    Parameters
    ----------
    image, mask : `numpy.ndarray`, (ny, nx)
        Of the whole CCD.
    amp : `Amplifier`
    reference : `numpy.ndarray`, (ny, nx), float32, or `None`
        None: the residual is the image.
    scale : `float`
        Of a reference that is subtracted.
    blocks : `tuple` of `int`
        Rows and columns of blocks.
    divide : `bool`
        Whether to divide by the reference.
    bright : `bool`
        Whether what stands out is what the image was taken for: bad and
        saturated pixels count, and blocks have them as they are.
    """
    used = reference if reference is not None else np.empty((0, 0), np.float32)
    excluded = int(Mask.NO_DATA) if bright else EXCLUDED
    centre, scatter = _guess(image, mask, amp, reference, scale, divide, excluded)
    limit = _CLIP_SIGMA * scatter
    sums = np.zeros((6,))
    rows, columns = np.zeros((2, amp.ny)), np.zeros((2, amp.nx), np.float32)
    grid = np.zeros((2, *blocks))
    _accumulate(
        image, mask, (amp.x0, amp.y0, amp.nx, amp.ny), used, np.float32(scale), divide, np.int32(excluded),
        np.float32(0.0 if math.isnan(centre) else centre), np.float32(limit), np.float32(math.inf if bright else limit),
        sums, rows, columns, grid,
    )  # fmt: skip
    n, total, squares, image_total, n_saturated = sums[:5]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.float64(total) / n
        sigma = np.sqrt(np.maximum((squares - total * mean) / (n - 1), 0.0))
        row_means, column_means, block_means = (a[0] / a[1] + centre for a in (rows, columns, grid))
        image_mean = image_total / n
    return Survey(
        float(mean) + centre, float(sigma), float(image_mean), centre, row_means, column_means.astype(float),
        block_means, grid[1], int(n), int(n_saturated),
    )  # fmt: skip


def sample_of[T: np.generic](plane: NDArray[T], amp: Amplifier) -> NDArray[T]:
    """An evenly spread sample of one amplifier's part of a plane."""
    step = max(1, math.isqrt(amp.nx * amp.ny // _SAMPLE))
    return plane[amp.y0 : amp.y0 + amp.ny : step, amp.x0 : amp.x0 + amp.nx : step]


def _guess(
    image: F4, mask: I4, amp: Amplifier, reference: F4 | None, scale: float, divide: bool, excluded: int
) -> tuple[float, float]:
    """Median and robust scatter of a sample of the residual; NaN and 0 where there is none."""
    values = sample_of(image, amp)
    if reference is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            part = sample_of(reference, amp)
            values = values / part if divide else values - np.float32(scale) * part
    values = values[(sample_of(mask, amp) & excluded == 0) & np.isfinite(values)]
    if values.size == 0:
        return math.nan, 0.0
    centre = float(np.median(values))
    low, high = np.quantile(values, (0.1587, 0.8413))
    return centre, max(float(high - low) / 2, 1e-6 * abs(centre), 1e-6)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _accumulate(
    image: F4,
    mask: I4,
    box: tuple[int, int, int, int],
    reference: F4,
    scale: np.float32,
    divide: bool,
    excluded: np.int32,
    centre: np.float32,
    limit: np.float32,
    block_limit: np.float32,
    sums: F8,
    rows: F8,
    columns: F4,
    grid: F8,
) -> None:
    """Add up residuals about ``centre``: sums are n, residual, its square, image, saturated pixels."""
    x0, y0, nx, ny = box
    by, bx = grid.shape[1:]
    residual, weight = np.empty(nx, np.float32), np.empty(nx, np.float32)
    zero, one, huge = np.float32(0), np.float32(1), np.float32(1e30)
    column_sums, column_pixels = columns[0], columns[1]
    none, full = np.int32(0), np.int32(_SAT)
    for j in range(ny):
        y = y0 + j
        # Slices, since indices that might be negative keep the compiler from vectorizing.
        line, bits = image[y, x0 : x0 + nx], mask[y, x0 : x0 + nx]
        if reference.size:
            other = reference[y, x0 : x0 + nx]
            if divide:
                for i in range(nx):
                    residual[i] = line[i] / other[i] - centre
            else:
                for i in range(nx):
                    residual[i] = line[i] - scale * other[i] - centre
        else:
            for i in range(nx):
                residual[i] = line[i] - centre
        saturated = zero
        for i in range(nx):
            usable = (bits[i] & excluded) == none and abs(residual[i]) < huge
            residual[i] = residual[i] if usable else zero
            weight[i] = one if usable else zero
            saturated += one if (bits[i] & full) != none else zero
        sums[4] += saturated
        b = j * by // ny
        for k in range(bx):
            begin, end = (k * nx + bx - 1) // bx, ((k + 1) * nx + bx - 1) // bx
            part, part_weight = residual[begin:end], weight[begin:end]
            total, n = zero, zero
            for i in range(end - begin):
                r = part[i] if part[i] < block_limit else block_limit
                total += r if r > -block_limit else -block_limit
                n += part_weight[i]
            grid[0, b, k] += total
            grid[1, b, k] += n
        n, total, squares, light = zero, zero, zero, zero
        for i in range(nx):
            inside = weight[i] if abs(residual[i]) <= limit else zero
            r = residual[i] * inside
            n += inside
            total += r
            squares += r * r
            light += line[i] * inside
            column_sums[i] += r
            column_pixels[i] += inside
        rows[0, j], rows[1, j] = total, n
        sums[0] += n
        sums[1] += total
        sums[2] += squares
        sums[3] += light
