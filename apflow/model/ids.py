"""Identifiers: exposures, days of observation, DiaSources.

The packing is Rubin's (``lsst.meas.base.IdGenerator`` with the LSSTCam visit
packer), so that ids made here sort and decode as theirs do.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

from apflow.errors import BadRequest

_EPOCH = dt.date(2010, 1, 1)
_COUNTER_BITS = 19
_PACKED_BITS = 38
_IMAGE_NAME = re.compile(r"^([A-Z]{2})_([A-Z])_(\d{8})_(\d{6})(?:_(R\d\d_S[GW]?\d+|[A-Z]*\d+))?$")


@dataclass(frozen=True)
class ImageName:
    """Parts of an observation id such as ``MC_O_20250420_000123``."""

    day_obs: int
    seq_num: int
    detector: str | None = None

    @property
    def exposure(self) -> int:
        """Exposure id: YYYYMMDD * 10**5 + seq_num."""
        return exposure_id(self.day_obs, self.seq_num)


def exposure_id(day_obs: int, seq_num: int) -> int:
    """YYYYMMDD * 10**5 + seq_num."""
    if not 0 <= seq_num < 100_000:
        raise BadRequest(f"seq_num {seq_num} is out of range: 0 to 99999")
    return day_obs * 100_000 + seq_num


def parse_image_name(name: str) -> ImageName:
    """Read an image name: ``MC_O_20250420_000123``, with or without ``_R22_S11``."""
    match = _IMAGE_NAME.match(name)
    if match is None:
        raise BadRequest(f"image name {name!r} is not of the form MC_O_YYYYMMDD_NNNNNN[_R22_S11]")
    return ImageName(int(match[3]), int(match[4]), match[5])


def image_name(exposure: int, prefix: str = "MC_O") -> str:
    """Observation id of an exposure id."""
    return f"{prefix}_{exposure // 100_000}_{exposure % 100_000:06d}"


def day_obs(mjd_tai: float) -> int:
    """Day of observation, YYYYMMDD: the TAI date 12 h earlier (SITCOMTN-032)."""
    day = dt.date(1858, 11, 17) + dt.timedelta(days=int(mjd_tai - 0.5))
    return int(day.strftime("%Y%m%d"))


def day_obs_of(exposure: int) -> int:
    """Day of observation of an exposure or visit id."""
    return exposure // 100_000


def mid_night(exposure: int) -> float:
    """The middle (MJD TAI) of the day of observation of an exposure or visit id."""
    date = str(day_obs_of(exposure))
    return float((dt.datetime.strptime(date, "%Y%m%d").date() - dt.date(1858, 11, 17)).days + 1)


def pack_visit_detector(visit: int, detector: int) -> int:
    """detector + 256 * (seq_num + 32768 * days since 2010-01-01)."""
    date, seq_num = divmod(visit, 100_000)
    try:
        days = (dt.date(date // 10_000, date // 100 % 100, date % 100) - _EPOCH).days
    except ValueError:
        days = -1
    if days < 0 or seq_num >= 32_768 or not 0 <= detector < 256:
        raise BadRequest(
            f"visit {visit}, detector {detector} cannot be packed: "
            "accepted are visits YYYYMMDDnnnnn since 2010 with nnnnn < 32768, and detectors below 256"
        )
    return detector + 256 * (seq_num + 32_768 * days)


def source_id(visit: int, detector: int, counter: int, release: int = 1) -> int:
    """Id of the counter-th DiaSource of a detector-visit.

    ``((release << 38) | packed) << 19 | counter``; for example visit
    2025042000123, detector 94, release 1, counter 1 is 168691488537968641.
    """
    if not 0 <= counter < 1 << _COUNTER_BITS:
        raise BadRequest(f"source counter {counter} is out of range: 0 to {(1 << _COUNTER_BITS) - 1}")
    return ((release << _PACKED_BITS) | pack_visit_detector(visit, detector)) << _COUNTER_BITS | counter


def visit_detector_of(source: int) -> tuple[int, int]:
    """Visit and detector of a `source_id`."""
    packed = (source >> _COUNTER_BITS) & ((1 << _PACKED_BITS) - 1)
    night, detector = divmod(packed, 256)
    days, seq_num = divmod(night, 32_768)
    date = _EPOCH + dt.timedelta(days=days)
    return exposure_id(int(date.strftime("%Y%m%d")), seq_num), detector
