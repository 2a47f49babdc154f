"""Images: raw segments, calibrated exposures and their mask planes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.psf import Psf
from apflow.model.wcs import Wcs

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]


class Mask(enum.IntFlag):
    """Mask planes, with Rubin's names; the first nine have the bits of its default mask."""

    BAD = 1 << 0
    SAT = 1 << 1
    INTRP = 1 << 2
    CR = 1 << 3
    EDGE = 1 << 4
    DETECTED = 1 << 5
    DETECTED_NEGATIVE = 1 << 6
    SUSPECT = 1 << 7
    NO_DATA = 1 << 8
    CROSSTALK = 1 << 9
    UNMASKEDNAN = 1 << 10
    NOT_DEBLENDED = 1 << 11
    STREAK = 1 << 12
    INJECTED = 1 << 13
    INJECTED_CORE = 1 << 14
    SAT_TEMPLATE = 1 << 15
    INJECTED_TEMPLATE = 1 << 16
    INJECTED_CORE_TEMPLATE = 1 << 17


@dataclass(frozen=True)
class ImageInfo:
    """What the header of an image says; the only truth about it.

    Times are MJD TAI; `exposure_time_s` is the open-shutter time, refined by
    shutter motion; `rotation_deg` is the position angle of the focal plane's
    +Y, East of North. A calibration may have no pointing (NaN) and no filter
    (empty).
    """

    instrument: str
    detector: int
    exposure: int
    group: str
    snap: int
    physical_filter: str
    band: str
    ra_deg: float
    dec_deg: float
    rotation_deg: float
    exposure_time_s: float
    mjd_begin_tai: float
    mjd_end_tai: float
    image_type: str = "OBJECT"
    airmass: float | None = None

    @property
    def mjd_mid_tai(self) -> float:
        """Midpoint of the exposure, MJD TAI."""
        return (self.mjd_begin_tai + self.mjd_end_tai) / 2


@dataclass(frozen=True, eq=False)
class Raw:
    """A raw image: one array of ADU an amplifier, in the order of readout.

    Attributes
    ----------
    segments : `dict` [`str`, `numpy.ndarray`]
        Raw segments by name (``Segment00``...), uint16 or int32, with prescan
        and overscans, as `apflow.model.camera.Amplifier.raw_shape` says.
    info : `ImageInfo`
    header : `dict`
        The whole primary header.
    """

    segments: Mapping[str, NDArray[Any]]
    info: ImageInfo
    header: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Exposure:
    """Image, variance and mask on one pixel grid, with what is known of it.

    Attributes
    ----------
    image, variance : `numpy.ndarray`, (ny, nx), float32
        In `unit` and its square: ``electron`` after signature removal, ``nJy``
        once calibrated.
    mask : `numpy.ndarray`, (ny, nx), int32
        Planes of `Mask`.
    psf : `Psf`, optional
    wcs : `Wcs`, optional
    info : `ImageInfo`, optional
        None for templates.
    summary : `dict` [`str`, `float`]
        Numbers worth a metric, by name with unit (``psf_fwhm_arcsec``).
    injected : `pandas.DataFrame`, optional
        The truth of the fakes in it, as `apflow.pixels.inject.inject` gives it; None without any.
    """

    image: F4
    variance: F4
    mask: I4
    unit: str
    wcs: Wcs | None = None
    psf: Psf | None = None
    info: ImageInfo | None = None
    summary: Mapping[str, float] = field(default_factory=dict)
    injected: pd.DataFrame | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (ny, nx)."""
        return self.image.shape[0], self.image.shape[1]
