"""Which masked pixels may be used."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.exposure import Mask

NO_DATA = int(Mask.NO_DATA)
SAT = int(Mask.SAT)
EDGE = int(Mask.EDGE)
INTRP = int(Mask.INTRP)
#: Pixels whose values are wrong, unless they were interpolated.
HARD = int(Mask.BAD | Mask.SAT | Mask.CR | Mask.NO_DATA)
#: Interpolation does not bring these back: too many pixels are missing at once.
LOST = int(Mask.SAT | Mask.NO_DATA)


@njit(cache=True, nogil=True)
def bad_bits(bits):  # type: ignore[no-untyped-def]
    """True when a pixel with these mask bits must not be used."""
    return (bits & HARD) != 0 and ((bits & INTRP) == 0 or (bits & LOST) != 0)


def unusable(mask: NDArray[np.int32]) -> NDArray[np.bool_]:
    """True where a pixel must not be used: BAD, SAT, CR or NO_DATA; interpolated BAD and CR may."""
    return np.asarray(_unusable(mask))


@njit(cache=True, nogil=True)
def _unusable(mask):  # type: ignore[no-untyped-def]
    out = np.empty(mask.shape, np.bool_)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            out[y, x] = bad_bits(mask[y, x])
    return out
