"""Raw calibration exposures and what is checked of them (DMTN-092 section 2.3)."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from apflow.errors import BadRequest
from apflow.model.products import OutputFile
from apflow.model.verdict import Verdict

F4 = NDArray[np.float32]

#: Exposure times of two flats of the same light differ by no more than this part.
SAME_LIGHT = 0.01
#: Beyond all visits' numbers.
_AFTER_VISITS = 10**13


class Intent(enum.StrEnum):
    """What a calibration exposure is taken for."""

    BIAS = "bias"
    DARK = "dark"
    FLAT = "flat"
    CBP = "cbp"  # collimated beam projector

    @property
    def image_type(self) -> str:
        """As headers and startIntegration say it."""
        return self.value.upper()

    @property
    def masters(self) -> tuple[str, ...]:
        """Master calibs by which such an exposure is corrected, or with which it is compared."""
        corrections = {Intent.BIAS: ("bias",), Intent.DARK: ("bias", "dark")}
        return (*corrections.get(self, ("bias", "dark", "flat")), "defects")

    @classmethod
    def of(cls, image_type: str) -> Intent:
        """The intent of an image type or of a word of the command line, in any case.

        Raises
        ------
        BadRequest
            There is no such intent.
        """
        try:
            return cls(image_type.lower())
        except ValueError:
            raise BadRequest(f"intent {image_type!r} is unknown; accepted: {', '.join(cls)}") from None


def is_calibration(image_type: str) -> bool:
    """Whether images of a type, in any case, are raw calibrations, which look at no sky."""
    return image_type.lower() in set(Intent)


def refuse_calibration(image: str, image_type: str) -> None:
    """Keep what looks at no sky from being taken for a visit.

    Raises
    ------
    BadRequest
        The image is a raw calibration.
    """
    if is_calibration(image_type):
        raise BadRequest(
            f"image {image} is a {image_type.lower()}, which is no visit; accepted: images of the sky "
            f"(apflow calibration --intent {image_type.lower()} checks it)"
        )


@dataclass(frozen=True)
class CalibrationExposure:
    """One calibration exposure, as it is announced.

    Attributes
    ----------
    instrument : `str`
    exposure : `int`
        Exposure id.
    group : `str`
        Empty where nobody told.
    intent : `Intent`
    physical_filter : `str`
        Empty where there is none, or it is left to the header.
    exposure_time_s : `float`
        Expected; 0 for a bias.
    image : `str`
        Name of the image.
    partner : `str`
        Name of an earlier flat of the same light, for photon transfer; empty:
        the registry is asked for one.
    """

    instrument: str
    exposure: int
    group: str
    intent: Intent
    physical_filter: str
    exposure_time_s: float
    image: str
    partner: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exposure_time_s) and 0 <= self.exposure_time_s <= 3600):
            raise BadRequest(f"exposure time {self.exposure_time_s} of {self.image} is out of range: 0 to 3600 s")

    @property
    def visit(self) -> int:
        """The number by which runners know it: higher than any visit's, which so goes first where they compete."""
        return _AFTER_VISITS + self.exposure


@dataclass(frozen=True)
class CalibrationPlan:
    """A calibration exposure with its resolved inputs by detector id.

    Attributes
    ----------
    exposure : `CalibrationExposure`
    run : `str`
        Butler RUN collection of the outputs.
    masters : mapping
        Paths of the bias, dark, flat and defects that are valid, those of them
        that the intent needs. While nobody knows the filter, flats stand under
        ``flat <physical_filter>`` of each.
    partners : mapping
        Paths of the raws of earlier flats, the best first; which of them are
        of the same light, and there at all, shows when they are read.
    copies : mapping
        By path of a master: that of its copy in the fast store, made or not.
    """

    exposure: CalibrationExposure
    run: str
    masters: Mapping[int, Mapping[str, str]]
    partners: Mapping[int, tuple[str, ...]]
    copies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Masters:
    """Master calibs on the assembled CCD grid, in the units of `~apflow.model.products.Calibs`; None where none is."""

    bias: F4 | None = None
    dark: F4 | None = None
    flat: F4 | None = None
    defects: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Checks:
    """What was measured of one detector of a calibration exposure.

    Attributes
    ----------
    amplifiers : mapping
        Metrics by amplifier name, then by metric name; NaN where unknown.
    detector : mapping
        Metrics of the whole detector by name.
    picture : `numpy.ndarray`, (at most 128, at most 128), float32
        What is left after the correction that the intent allows, binned.
    """

    amplifiers: Mapping[str, Mapping[str, float]]
    detector: Mapping[str, float]
    picture: F4


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """What one detector of a calibration exposure hands to the gathers; no full planes."""

    exposure: CalibrationExposure
    detector: int
    checks: Checks
    verdicts: Mapping[str, Verdict]  # by amplifier name, and by "detector" for the whole
    reasons: tuple[str, ...]  # "C03 read_noise_ratio 1.31: Warning"
    outputs: tuple[OutputFile, ...]
    arrived_unix: float
    mjd_mid_tai: float
