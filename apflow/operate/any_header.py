"""What the header of anybody's FITS image says: instrument, times, flux scale and camera."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from astropy.time import Time

from apflow.model.exposure import ImageInfo

_ZERO_POINTS = ("MAGZERO", "MAGZPT", "ZEROPNT", "PHOTZP", "MAGZP", "ZP_AB")
#: Electrons a count. EGAIN first: where both are, GAIN is a setting of the camera.
_GAINS = ("EGAIN", "GAIN", "CCDGAIN", "ATODGAIN", "ESO DET OUT1 CONAD", "EFFGAIN")
_READ_NOISES = ("RDNOISE", "READNOIS", "READNOISE", "RON", "ENOISE", "ESO DET OUT1 RON")
_SATURATIONS = ("SATURATE", "SATLEVEL", "SATURAT", "SATUR", "MAXLIN", "SATCOUNT", "NONLIN", "SATURATA")
#: nJy of AB magnitude 0: 3631 Jy.
_AB_NJY = 10 ** (31.4 / 2.5)
#: Zero points are AB magnitudes of one count; what is beyond stands for "unknown".
_USUAL_ZERO_POINTS = (5.0, 50.0)


def number(header: Mapping[str, Any], *names: str) -> float | None:
    """The first of some cards that is a number above 0."""
    for name in names:
        value = header.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
            return float(value)
    return None


def saturation(header: Mapping[str, Any]) -> float | None:
    """Level from which pixels are saturated, in the image's own unit."""
    return number(header, *_SATURATIONS)


def camera(header: Mapping[str, Any]) -> dict[str, float]:
    """gain_in_header, electrons a unit of the image, and read_noise_in_header, electrons, where they are known."""
    unit = _unit(header).lower().replace("_", "").replace(" ", "")
    gain, out = number(header, *_GAINS), {}
    base, per_second = unit.removesuffix("/s").removesuffix("/sec"), unit.endswith(("/s", "/sec"))
    if base in ("electron", "electrons", "e", "e-"):
        gain = 1.0
    if gain is not None and per_second:
        seconds = number(header, "EXPTIME", "EXPOSURE", "XPOSURE")
        gain = gain * seconds if seconds is not None else None
    if gain is not None:
        out["gain_in_header"] = gain
    noise = number(header, *_READ_NOISES)
    return out | ({"read_noise_in_header": noise} if noise is not None else {})


def njy_per_unit(header: Mapping[str, Any]) -> float | None:
    """nJy of one unit of the image, None where the header does not say."""
    zero_point = number(header, *_ZERO_POINTS)
    low, high = _USUAL_ZERO_POINTS
    unit = _unit(header)
    if unit.lower() == "njy":
        return 1.0
    if unit == "MJy/sr" and isinstance(header.get("PIXAR_SR"), int | float):
        return float(header["PIXAR_SR"]) * 1e15
    if zero_point is not None and low < zero_point < high:
        return float(_AB_NJY * 10 ** (-zero_point / 2.5))
    return None


def _unit(header: Mapping[str, Any]) -> str:
    return str(header.get("BUNIT", "")).strip()


def info(header: Mapping[str, Any]) -> ImageInfo:
    """What can be had of instrument, filter and times; MJD 0 where the header has no time."""
    exposure_time_s = number(header, "EXPTIME", "EXPOSURE", "XPOSURE") or 0.0
    begin = _begin(header)
    physical_filter = str(header.get("FILTER") or header.get("FILTER1") or "").strip()
    # The schema has room for one letter: LSST's bands, as DECam and others begin their filters' names.
    band = physical_filter.split(" ")[0].split("_")[0]
    band = band if band in ("u", "g", "r", "i", "z", "y") else ""
    instrument = str(header.get("INSTRUME") or "")
    end = begin + exposure_time_s / 86400.0
    return ImageInfo(instrument, 0, 0, "", 0, physical_filter, band, 0.0, 0.0, 0.0, exposure_time_s, begin, end)


def _begin(header: Mapping[str, Any]) -> float:
    """MJD (TAI) of the exposure's begin; 0 where the header has no time."""
    mjd = number(header, "MJD-OBS", "MJD-BEG")
    if mjd is not None:
        return float(Time(mjd, format="mjd", scale="utc").tai.mjd)
    text = str(header.get("DATE-OBS", "")).rstrip("Z")
    try:
        return float(Time(text, format="fits", scale="utc").tai.mjd) if "T" in text else 0.0
    except ValueError:
        return 0.0
