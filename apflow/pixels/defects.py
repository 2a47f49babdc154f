"""Bad pixels that master darks and flats show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apflow.errors import BadRequest
from apflow.model.camera import Amplifier, Detector
from apflow.pixels.bad_pixels import HOT_E_PER_S, RESPONSE

F4 = NDArray[np.float32]
Bool = NDArray[np.bool_]

#: A bad pixel is this far out of the scatter too: of short darks and weak flats noise alone passes the limits.
_NOISE_SIGMA = 6.0
#: A flat is compared with the median of blocks of so many pixels on a side.
_BLOCK = 64
#: Part by which the median of a column within a block is off when the column is bad.
_COLUMN = 0.05


def find_defects(detector: Detector, dark: F4 | None, flats: Sequence[F4]) -> Bool:
    """Hot pixels of a master dark, and dead, low, bright ones and bad columns of master flats.

    Hot: 5 e-/s or more above the median of the amplifier. In a flat: 20 % or
    more off the median of the 64 x 64 pixels around; all pixels of a column
    within these if their median is 5 % off; and where it has no value (0 or
    not finite). A single pixel is never closer to the level than 6 sigma of the scatter.

    Parameters
    ----------
    detector : `Detector`
    dark : `numpy.ndarray`, (ny, nx), e-/s, optional
    flats : sequence of `numpy.ndarray`, (ny, nx)
        Of any filters.

    Returns
    -------
    defects : `numpy.ndarray`, (ny, nx), bool
        In one of them or more.

    Raises
    ------
    BadRequest
        There is no plane at all, or one has not the shape of the CCD.
    """
    planes = [*([] if dark is None else [dark]), *flats]
    if not planes or any(plane.shape != detector.shape for plane in planes):
        shapes = ", ".join(str(plane.shape) for plane in planes) or "none"
        raise BadRequest(f"planes for defects of {detector.name}: {shapes}; accepted: one or more of {detector.shape}")
    defects = np.zeros(detector.shape, bool)
    for amp in detector.amplifiers:
        part = np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]
        if dark is not None:
            defects[part] |= _hot(dark[part])
        for flat in flats:
            defects[part] |= _unresponsive(flat[part], amp)
    return defects


def _hot(dark: F4) -> Bool:
    level = np.median(dark)
    scatter = 1.4826 * np.median(np.abs(dark - level))
    return np.asarray(~(dark - level < max(HOT_E_PER_S, _NOISE_SIGMA * scatter)))  # NaN is no good value either


def _unresponsive(flat: F4, amp: Amplifier) -> Bool:
    bad = ~(np.abs(flat) < np.inf) | (flat <= 0)
    for y in range(0, amp.ny, _BLOCK):
        for x in range(0, amp.nx, _BLOCK):
            block = np.s_[y : y + _BLOCK, x : x + _BLOCK]
            known = flat[block][~bad[block]]
            if known.size == 0:
                continue
            off = np.where(bad[block], np.float32(0), flat[block] / np.median(known) - 1)
            limit = max(RESPONSE, _NOISE_SIGMA * 1.4826 * np.median(np.abs(off)))
            bad[block] |= (np.abs(off) > limit) | (np.abs(np.median(off, axis=0)) > _COLUMN)
    return bad
