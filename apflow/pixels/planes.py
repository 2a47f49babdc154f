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
    return np.asarray(((mask & HARD) != 0) & (((mask & INTRP) == 0) | ((mask & LOST) != 0)))
