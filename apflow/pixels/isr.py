"""Instrument signature removal: raw segments to one image in electrons."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.camera import Detector
from apflow.model.exposure import Exposure, Mask, Raw
from apflow.model.products import Calibs
from apflow.pixels.crosstalk import Segments
from apflow.pixels.interpolate import fill, masked_pixels, typical
from apflow.pixels.linearity import linearise, linearity_table
from apflow.pixels.saturation import spread_saturation
from apflow.pixels.segments import check_raw, raw_name, read_row

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]

#: Flats below this are no measure of sensitivity.
_FLAT_MIN = 0.05

_BAD, _SAT, _INTRP, _NO_DATA = int(Mask.BAD), int(Mask.SAT), int(Mask.INTRP), int(Mask.NO_DATA)
_CROSSTALK, _UNMASKED_NAN = int(Mask.CROSSTALK), int(Mask.UNMASKEDNAN)


def remove_signature(raw: Raw, detector: Detector, calibs: Calibs) -> Exposure:
    """Overscan, crosstalk, linearity, bias, gain, dark, flat, saturation and defects of one raw image.

    Per amplifier: the others' ghosts are removed, the serial overscan is
    subtracted row by row, prescan and overscans are trimmed, the segment is
    put into the CCD by its flips, and ``((linear(ADU - overscan) - bias) *
    gain - dark * exposure time) / flat`` with variance ``(max(electrons, 0) +
    read_noise^2) / flat^2``. Crosstalk and linearity are the detector's
    (`apflow.pixels.crosstalk`, `apflow.pixels.linearity`), none where it has none.

    Parameters
    ----------
    raw : `Raw`
    detector : `Detector`
    calibs : `Calibs`
        On the grid of the assembled CCD.

    Returns
    -------
    exposure : `Exposure`
        In ``electron``. BAD: defects, pixels without data or without flat,
        dead amplifiers; NO_DATA: no finite value, and UNMASKEDNAN where no
        defect or flat foretold that; SAT: at or above the amplifier's
        saturation, and where that spilled (`apflow.pixels.saturation`); these
        are INTRP, and their image is interpolated while their variance is
        kept, but dead amplifiers hold the sky's level. CROSSTALK: more than 3
        read noises of ghosts were removed. Image and variance are finite everywhere.
        `summary` counts n_saturated_pixels, n_bad_pixels, n_crosstalk_pixels,
        n_dead_amplifiers.

    Raises
    ------
    DataError
        The raw is of another detector; a segment is missing, unknown or of a
        wrong shape; a calib has not the shape of the CCD; or no amplifier has
        two different finite values.
    """
    check_raw(raw, detector, {name: getattr(calibs, name) for name in ("bias", "dark", "flat", "defects")})
    image, variance = np.zeros(detector.shape, np.float32), np.ones(detector.shape, np.float32)
    mask = np.zeros(detector.shape, np.int32)
    dead, n_ghosts = [], 0
    for number, segment in enumerate(Segments(raw, detector)):
        amp = segment.amp
        own = np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]
        if segment.dead:
            variance[own], mask[own] = amp.read_noise**2, _NO_DATA
            dead.append(own)
            continue
        _assemble(
            segment.pixels, segment.levels + segment.pedestal, linearity_table(detector, number),
            (amp.x0, amp.y0, amp.nx, amp.ny), amp.prescan, amp.flip_x, amp.flip_y,
            np.float32(amp.gain), np.float32(amp.read_noise), np.float32(amp.saturation),
            np.float32(raw.info.exposure_time_s), calibs.bias, calibs.dark, calibs.flat, calibs.defects,
            image, variance, mask,
        )  # fmt: skip
        flips = np.s_[:: -1 if amp.flip_y else 1, :: -1 if amp.flip_x else 1]
        mask[own][flips][np.unravel_index(segment.ghosts, (amp.ny, amp.nx))] |= _CROSSTALK
        n_ghosts += int(np.count_nonzero(mask[own] & _CROSSTALK)) if segment.ghosts.size else 0
    if len(dead) == len(detector.amplifiers):
        raise DataError(
            f"raw {raw_name(raw)}: every amplifier is constant or has no finite pixel; accepted: a real image"
        )
    spread_saturation(image, mask, min(amp.saturation * amp.gain for amp in detector.amplifiers))
    where = masked_pixels(mask, _BAD | _SAT)
    sky = np.float32(typical(image, mask, _BAD | _SAT | _NO_DATA))
    fill(image, mask, _BAD | _SAT | _NO_DATA, where, sky)
    found = mask.reshape(-1)[where]
    summary = {
        "n_saturated_pixels": float(np.count_nonzero(found & _SAT)),
        "n_bad_pixels": float(np.count_nonzero(found & _BAD)),
        "n_crosstalk_pixels": float(n_ghosts),
        "n_dead_amplifiers": float(len(dead)),
    }
    mask.reshape(-1)[where] |= _INTRP
    for own in dead:
        image[own], mask[own] = sky, _BAD | _NO_DATA
    return Exposure(image, variance, mask, "electron", info=raw.info, summary=summary)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _assemble(
    segment: NDArray[np.generic],
    levels: F4,
    table: F4,
    box: tuple[int, int, int, int],
    prescan: int,
    flip_x: bool,
    flip_y: bool,
    gain: np.float32,
    read_noise: np.float32,
    saturation: np.float32,
    exposure_time_s: np.float32,
    bias: F4,
    dark: F4,
    flat: F4,
    defects: NDArray[np.bool_],
    image: F4,
    variance: F4,
    mask: I4,
) -> None:
    """Write one amplifier's part of the planes."""
    x0, y0, nx, ny = box
    line, signals = np.empty(nx, np.float32), np.empty(nx, np.float32)
    zero, one, noise2 = np.float32(0), np.float32(1), read_noise * read_noise
    for j in range(ny):
        y = y0 + (ny - 1 - j if flip_y else j)
        level = levels[j]
        read_row(segment, j, prescan, flip_x, line)
        for i in range(nx):
            signals[i] = line[i] - level
        if table.size:
            linearise(signals, table)
        # Slices, since indices that might be negative keep the compiler from vectorizing.
        own, own_variance, own_mask = image[y, x0 : x0 + nx], variance[y, x0 : x0 + nx], mask[y, x0 : x0 + nx]
        b, d, f, known = bias[y, x0 : x0 + nx], dark[y, x0 : x0 + nx], flat[y, x0 : x0 + nx], defects[y, x0 : x0 + nx]
        for i in range(nx):
            usable = np.float32(_FLAT_MIN) < f[i] < np.float32(1e30)
            inverse = one / (f[i] if usable else one)
            electrons = (signals[i] - b[i]) * gain
            value = (electrons - d[i] * exposure_time_s) * inverse
            finite = abs(value) < np.float32(1e30)
            bits = np.int32(0) if usable and finite and not known[i] else np.int32(_BAD)
            bits |= (
                np.int32(0) if finite else np.int32(_NO_DATA | _UNMASKED_NAN if usable and not known[i] else _NO_DATA)
            )
            bits |= np.int32(_SAT) if line[i] >= saturation else np.int32(0)
            own[i] = value if finite else zero
            signal = electrons if finite and electrons > zero else zero
            own_variance[i] = (signal + noise2) * inverse * inverse
            own_mask[i] = bits
