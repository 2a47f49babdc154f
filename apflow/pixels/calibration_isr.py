"""Instrument signature removal of calibration exposures, to the point that their intent allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.calibration import Intent, Masters
from apflow.model.camera import Detector
from apflow.model.exposure import Mask, Raw
from apflow.pixels.crosstalk import Segments
from apflow.pixels.interpolate import fill, masked_pixels, typical
from apflow.pixels.linearity import linearise, linearity_table
from apflow.pixels.segments import check_raw, read_row

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]

#: Flats below this are no measure of sensitivity.
_FLAT_MIN = 0.05

_BAD, _SAT, _INTRP, _NO_DATA = int(Mask.BAD), int(Mask.SAT), int(Mask.INTRP), int(Mask.NO_DATA)


@dataclass(frozen=True, eq=False)
class Corrected:
    """A calibration exposure on the grid of the assembled CCD.

    Attributes
    ----------
    image : `numpy.ndarray`, (ny, nx), float32
        In `unit`, finite everywhere; 0 where there is no data.
    mask : `numpy.ndarray`, (ny, nx), int32
        BAD: defects, no usable flat, or no data; SAT: at or above the
        amplifier's saturation; NO_DATA: no finite value, or a dead amplifier;
        INTRP: interpolated.
    unit : `str`
        ``adu`` for a bias, else ``electron``.
    overscan : mapping of `str` to `numpy.ndarray`, (amplifier's ny,), float32
        Levels that were subtracted by amplifier, in the order of readout, ADU.
    dead : `tuple` [`str`, ...]
        Amplifiers that are constant below saturation or have no finite pixel.
    """

    image: F4
    mask: I4
    unit: str
    overscan: Mapping[str, F4]
    dead: tuple[str, ...]


def correct(raw: Raw, detector: Detector, masters: Masters, intent: Intent) -> Corrected:
    """Remove what earlier steps of calibration explain, and nothing of what the exposure is taken for.

    ========  =============================================================
    bias      crosstalk, overscan row by row, linearity, master bias; ADU
    dark      the same, gain; electrons
    flat      the same, master dark times the exposure time; electrons
    cbp       the same, master flat; BAD pixels interpolated
    ========  =============================================================

    A master that is missing is left out.

    Parameters
    ----------
    raw : `Raw`
    detector : `Detector`
    masters : `Masters`
    intent : `Intent`

    Raises
    ------
    DataError
        See `apflow.pixels.segments.check_raw`.
    """
    used = {"bias": masters.bias, "dark": None, "flat": None}
    if intent in (Intent.FLAT, Intent.CBP):
        used["dark"] = masters.dark
    if intent is Intent.CBP:
        used["flat"] = masters.flat
    present = {name: getattr(masters, name) for name in ("bias", "dark", "flat", "defects")}
    check_raw(raw, detector, {name: plane for name, plane in present.items() if plane is not None})
    empty = np.empty((0, 0), np.float32)
    bias, dark, flat = (plane if plane is not None else empty for plane in used.values())
    defects = masters.defects if masters.defects is not None else np.empty((0, 0), np.bool_)

    image, mask = np.zeros(detector.shape, np.float32), np.zeros(detector.shape, np.int32)
    overscan, dead = {}, []
    for number, segment in enumerate(Segments(raw, detector)):
        amp, pixels = segment.amp, segment.pixels
        overscan[amp.name] = segment.levels
        # All at the converter's limit is light, not death.
        if segment.dead and not pixels[0, amp.prescan] >= amp.saturation:
            mask[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx] = _NO_DATA
            dead.append(amp)
            continue
        _correct_segment(
            pixels, segment.levels + segment.pedestal, linearity_table(detector, number),
            (amp.x0, amp.y0, amp.nx, amp.ny), amp.prescan, amp.flip_x, amp.flip_y,
            np.float32(1.0 if intent is Intent.BIAS else amp.gain), np.float32(amp.saturation),
            np.float32(raw.info.exposure_time_s), bias, dark, flat, defects, image, mask,
        )  # fmt: skip
    if intent is Intent.CBP:
        where = masked_pixels(mask, _BAD)
        fill(image, mask, _BAD | _NO_DATA, where, np.float32(typical(image, mask, _BAD | _NO_DATA)))
        mask.reshape(-1)[where] |= _INTRP
    for amp in dead:
        mask[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx] |= _BAD
    unit = "adu" if intent is Intent.BIAS else "electron"
    return Corrected(image, mask, unit, overscan, tuple(amp.name for amp in dead))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _correct_segment(
    segment: NDArray[Any],
    levels: F4,
    table: F4,
    box: tuple[int, int, int, int],
    prescan: int,
    flip_x: bool,
    flip_y: bool,
    gain: np.float32,
    saturation: np.float32,
    exposure_time_s: np.float32,
    bias: F4,
    dark: F4,
    flat: F4,
    defects: NDArray[np.bool_],
    image: F4,
    mask: I4,
) -> None:
    """Write one amplifier's part of the planes; masters of size 0 are left out."""
    x0, y0, nx, ny = box
    line, bits = np.empty(nx, np.float32), np.empty(nx, np.int32)
    zero, one, huge, least = np.float32(0), np.float32(1), np.float32(1e30), np.float32(_FLAT_MIN)
    none, bad, sat, lost = np.int32(0), np.int32(_BAD), np.int32(_SAT), np.int32(_BAD | _NO_DATA)
    for j in range(ny):
        y = y0 + (ny - 1 - j if flip_y else j)
        # Slices, since indices that might be negative keep the compiler from vectorizing.
        own, own_mask = image[y, x0 : x0 + nx], mask[y, x0 : x0 + nx]
        read_row(segment, j, prescan, flip_x, line)
        level = levels[j]
        for i in range(nx):
            bits[i] = sat if line[i] >= saturation else none
            line[i] -= level
        if table.size:
            linearise(line, table)
        if bias.size:
            other = bias[y, x0 : x0 + nx]
            for i in range(nx):
                line[i] -= other[i]
        for i in range(nx):
            line[i] *= gain
        if dark.size:
            other = dark[y, x0 : x0 + nx]
            for i in range(nx):
                line[i] -= other[i] * exposure_time_s
        if flat.size:
            other = flat[y, x0 : x0 + nx]
            for i in range(nx):
                usable = least < other[i] < huge
                line[i] *= one / (other[i] if usable else one)
                bits[i] |= none if usable else bad
        if defects.size:
            known = defects[y, x0 : x0 + nx]
            for i in range(nx):
                bits[i] |= bad if known[i] else none
        for i in range(nx):
            finite = abs(line[i]) < huge
            own[i] = line[i] if finite else zero
            own_mask[i] = bits[i] | (none if finite else lost)
