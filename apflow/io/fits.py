"""Raw images, exposures and calibs as FITS files that astropy and ds9 read.

Every file is written under another name and renamed when complete, so that a
reader finds all of it or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.io.hdu import Hdu, read_hdus, read_primary, write_hdus
from apflow.io.kernels import kernel_hdus
from apflow.model.calibration import is_calibration
from apflow.model.exposure import Exposure, ImageInfo, Mask, Raw
from apflow.model.kernel import Kernel
from apflow.model.psf import Psf
from apflow.model.wcs import Wcs

_UNITS = {"nJy": ("nJy", "nJy**2"), "electron": ("electron", "electron**2"), "adu": ("adu", "adu**2")}
_SUMMARY = "SUMMARY "
_POINTING = {"ra_deg": "RA", "dec_deg": "DEC", "rotation_deg": "ROTPA"}
#: What headers of calibrations say where there is no filter, or none is known.
_NO_FILTER = ("", "NONE", "UNKNOWN")


def write_raw(path: str | Path, raw: Raw) -> None:
    """Write a raw image: a primary header and one HDU a segment.

    Parameters
    ----------
    path : `str` or `pathlib.Path`
    raw : `Raw`
        Keywords in `raw.header` stand before those made from `raw.info`.
    """
    header = header_of(raw.info) | dict(raw.header)
    write_hdus(path, [Hdu("", header), *(Hdu(name, {}, data) for name, data in raw.segments.items())])


def read_raw(path: str | Path) -> Raw:
    """Read a raw image.

    Raises
    ------
    DataError
        The file is missing, not FITS or truncated, or a keyword is missing.
    """
    primary, *rest = read_hdus(path)
    segments = {hdu.name: hdu.data for hdu in rest if hdu.data is not None}
    if not segments:
        raise DataError(f"{path} has no segments; accepted: one image HDU an amplifier")
    return Raw(segments, info_of(primary.header, path), primary.header)


def read_segments(path: str | Path) -> dict[str, NDArray[Any]]:
    """Raw segments by name, whatever the primary header says."""
    return {hdu.name: hdu.data for hdu in read_hdus(path)[1:] if hdu.data is not None}


def read_info(path: str | Path) -> ImageInfo:
    """What the primary header says of the image; pixels are not read.

    Raises
    ------
    DataError
        As `read_raw`.
    """
    return info_of(read_primary(path), path)


def header_of(info: ImageInfo) -> dict[str, Any]:
    """Keywords of the primary header of a raw image or exposure.

    Of a calibration without pointing or filter there are no such keywords.
    """
    absent: set[str] = set()
    if is_calibration(info.image_type):
        absent = {key for name, key in _POINTING.items() if math.isnan(getattr(info, name))}
        absent |= set() if info.physical_filter else {"FILTER", "BAND"}
    keywords = {
        "INSTRUME": info.instrument,
        "DETNUM": info.detector,
        "EXPID": info.exposure,
        "DAYOBS": info.exposure // 100_000,
        "SEQNUM": info.exposure % 100_000,
        "GROUPID": info.group,
        "CURINDEX": info.snap,
        "IMGTYPE": info.image_type,
        "FILTER": info.physical_filter,
        "BAND": info.band,
        "RA": info.ra_deg,
        "DEC": info.dec_deg,
        "ROTPA": info.rotation_deg,
        "EXPTIME": info.exposure_time_s,
        "TIMESYS": "TAI",
        "MJD-BEG": info.mjd_begin_tai,
        "MJD-END": info.mjd_end_tai,
    } | ({} if info.airmass is None else {"AIRMASS": info.airmass})
    return {key: value for key, value in keywords.items() if key not in absent}


def filter_of(header: Mapping[str, Any]) -> str:
    """The physical filter that a header names; empty where it names none, or says of a calibration that there is none.

    Which cameras have it is theirs to say.
    """
    name = str(header.get("FILTER") or "")
    without = is_calibration(str(header.get("IMGTYPE") or "")) and name.upper() in _NO_FILTER
    return "" if without else name


def info_of(header: Mapping[str, Any], where: str | Path) -> ImageInfo:
    """What a primary header says; `where` names the file in errors.

    The shutter's own times stand before the planned ones: SHUTTIME, or else
    the time from SHUTOPEN to SHUTCLOS, before EXPTIME; SHUTOPEN and SHUTCLOS
    before MJD-BEG and MJD-END (`shutter_offset_s` tells how they differ). A
    calibration (BIAS, DARK, FLAT, CBP) needs neither pointing, NaN where there
    is none, nor filter, empty then.

    Raises
    ------
    DataError
        A keyword is missing or of a wrong kind, times are not TAI, or the
        exposure ends before it begins.
    """

    def get(kind: type, *keys: str) -> Any:
        for key in keys:
            if (value := header.get(key)) is not None:
                try:
                    return kind(value)
                except (TypeError, ValueError):
                    raise DataError(f"{where}: keyword {key} is {value!r}; accepted: {kind.__name__}") from None
        raise DataError(f"{where}: keyword {' or '.join(keys)} is missing")

    instrument = get(str, "INSTRUME")
    if (system := header.get("TIMESYS", "TAI")) != "TAI":
        raise DataError(f"{where}: keyword TIMESYS is {system!r}; accepted: TAI")
    numbered = header.get("DAYOBS") is not None and header.get("SEQNUM") is not None
    begin, moved = get(float, "SHUTOPEN", "MJD-BEG"), header.get("SHUTTIME") is None and _has_moved(header)
    time_s = (get(float, "SHUTCLOS") - begin) * 86400.0 if moved else get(float, "SHUTTIME", "EXPTIME")
    if not 0 <= time_s < math.inf:
        raise DataError(f"{where}: the shutter was open for {time_s:g} s; accepted: 0 or more")
    image_type = str(header.get("IMGTYPE") or "OBJECT")
    calibration = is_calibration(image_type)
    pointing = {
        name: math.nan if calibration and header.get(key) is None else get(float, key)
        for name, key in _POINTING.items()
    }
    ended = any(header.get(key) is not None for key in ("SHUTCLOS", "MJD-END"))
    return ImageInfo(
        instrument=instrument,
        detector=get(int, "DETNUM"),
        exposure=get(int, "DAYOBS") * 100_000 + get(int, "SEQNUM")
        if header.get("EXPID") is None and numbered
        else get(int, "EXPID"),
        group=get(str, "GROUPID"),
        snap=int(header.get("CURINDEX") or 1),
        physical_filter=filter_of(header) if calibration else get(str, "FILTER"),
        band=str(header.get("BAND") or ""),
        exposure_time_s=time_s,
        mjd_begin_tai=begin,
        mjd_end_tai=get(float, "SHUTCLOS", "MJD-END") if ended else begin + time_s / 86400.0,
        image_type=image_type,
        airmass=None if header.get("AIRMASS") is None else get(float, "AIRMASS"),
        **pointing,
    )


def shutter_offset_s(header: Mapping[str, Any]) -> float:
    """By how much the open-shutter time that was measured exceeds the planned one, seconds.

    Of several measurements (SHUTTIME, SHUTOPEN to SHUTCLOS) the one that is
    further from EXPTIME counts; NaN where there is none, or no EXPTIME.
    """
    planned = header.get("EXPTIME")
    measured = [] if header.get("SHUTTIME") is None else [float(header["SHUTTIME"])]
    measured += [(float(header["SHUTCLOS"]) - float(header["SHUTOPEN"])) * 86400.0] if _has_moved(header) else []
    return math.nan if planned is None else max((t - float(planned) for t in measured), key=abs, default=math.nan)


def _has_moved(header: Mapping[str, Any]) -> bool:
    return header.get("SHUTOPEN") is not None and header.get("SHUTCLOS") is not None


def write_exposure(
    path: str | Path, exposure: Exposure, extra: Mapping[str, Any] | None = None, kernel: Kernel | None = None
) -> None:
    """Write an exposure: HDUs IMAGE, MASK, VARIANCE, and PSF where there is one.

    Parameters
    ----------
    path : `str` or `pathlib.Path`
    exposure : `Exposure`
        Its summary goes to the primary header as HIERARCH SUMMARY <name>.
    extra : mapping, optional
        More keywords of the primary header.
    kernel : `Kernel`, optional
        What a difference image was made with; `apflow.io.kernels.read_kernel` reads it.
    """
    header = header_of(exposure.info) if exposure.info else {}
    header |= {_SUMMARY + name: value for name, value in exposure.summary.items()} | dict(extra or {})
    wcs = exposure.wcs.to_header() if exposure.wcs else {}
    unit, squared = _UNITS.get(exposure.unit, (exposure.unit, f"({exposure.unit})**2"))
    planes = {f"MP_{plane.name}": plane.bit_length() - 1 for plane in Mask}
    hdus = [
        Hdu("", header),
        Hdu("IMAGE", {"BUNIT": unit} | wcs, exposure.image),
        Hdu("MASK", planes | wcs, exposure.mask),
        Hdu("VARIANCE", {"BUNIT": squared} | wcs, exposure.variance),
    ]
    if exposure.psf:
        ny, nx = exposure.psf.shape
        hdus.append(Hdu("PSF", {"PSFNX": nx, "PSFNY": ny}, np.asarray(exposure.psf.terms, np.float64)))
    write_hdus(path, hdus if kernel is None else [*hdus, *kernel_hdus(kernel)])


def read_exposure(path: str | Path) -> Exposure:
    """Read an exposure that `write_exposure` wrote.

    Raises
    ------
    DataError
        The file is missing, not FITS or truncated, or an HDU is missing.
    """
    hdus = {hdu.name: hdu for hdu in read_hdus(path)}
    for name in ("IMAGE", "MASK", "VARIANCE"):
        if name not in hdus or hdus[name].data is None:
            raise DataError(f"{path} has no HDU {name}; accepted: IMAGE, MASK, VARIANCE, PSF")
    primary, image = hdus[""].header, hdus["IMAGE"]
    psf = hdus.get("PSF")
    return Exposure(
        image=np.asarray(image.data, np.float32),
        variance=np.asarray(hdus["VARIANCE"].data, np.float32),
        mask=np.asarray(hdus["MASK"].data, np.int32),
        unit=str(image.header.get("BUNIT", "")),
        wcs=Wcs.from_header(image.header) if "CTYPE1" in image.header else None,
        psf=None if psf is None else Psf(np.asarray(psf.data), (psf.header["PSFNY"], psf.header["PSFNX"])),
        info=info_of(primary, path) if "EXPID" in primary else None,
        summary={
            k.removeprefix(_SUMMARY): float("nan") if v is None else float(v)
            for k, v in primary.items()
            if k.startswith(_SUMMARY)
        },
    )


def write_image(path: str | Path, array: NDArray[Any], header: Mapping[str, Any] | None = None) -> None:
    """Write one array as the primary HDU (masks of bool as uint8)."""
    write_hdus(path, [Hdu("", header or {}, array)])


def read_image(path: str | Path) -> NDArray[Any]:
    """The first two-dimensional image of a FITS file; see `read_image_with_header`."""
    return read_image_with_header(path)[0]


def read_image_with_header(path: str | Path) -> tuple[NDArray[Any], dict[str, Any]]:
    """The first two-dimensional image of a FITS file, and its header.

    Returns
    -------
    array : `numpy.ndarray`, (ny, nx)
        In native byte order and the type of the file.
    header : `dict`
        The primary header with the keywords of the image's own HDU over it.

    Raises
    ------
    DataError
        The file is missing, not FITS, truncated or without an image.
    """
    hdus = read_hdus(path)
    for hdu in hdus:
        if hdu.data is not None and hdu.data.ndim == 2:
            return hdu.data, {**hdus[0].header, **hdu.header}
    raise DataError(f"{path} holds no two-dimensional image")
