"""Stamps of alerts, read as any FITS reader would, and their greys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.wcs import Wcs

_BLOCK, _CARD = 2880, 80
_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
#: Stamps in the order in which they are shown, by the field of the alert.
STAMPS = {"science": "cutoutScience", "template": "cutoutTemplate", "difference": "cutoutDifference"}
#: Grey of pixels that are not on the detector.
NOWHERE = 200


@dataclass(frozen=True, eq=False)
class Stamp:
    """One stamp.

    Attributes
    ----------
    header : mapping
        The primary header.
    header_blocks : `int`
        Blocks of 2,880 bytes that the primary header takes.
    image : `numpy.ndarray`, (ny, nx)
    planes : mapping
        The other HDUs' data by EXTNAME: UNCERT (variance), MASK, PSFIMAGE.
    """

    header: Mapping[str, Any]
    header_blocks: int
    image: NDArray[Any]
    planes: Mapping[str, NDArray[Any]]

    @property
    def wcs(self) -> Wcs | None:
        """The WCS; None where the header has none that is understood (RA---TAN, DEC--TAN)."""
        keys = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD2_2")
        kind = str(self.header.get("CTYPE1"))[:8], str(self.header.get("CTYPE2"))[:8]
        if kind != ("RA---TAN", "DEC--TAN") or any(key not in self.header for key in keys):
            return None
        ra, dec, x, y, cd11, cd22 = (float(self.header[key]) for key in keys)
        cd12, cd21 = (float(self.header.get(key, 0.0)) for key in ("CD1_2", "CD2_1"))
        return Wcs((ra, dec), (x - 1, y - 1), np.array([[cd11, cd12], [cd21, cd22]]))


def read_stamp(data: bytes) -> Stamp:
    """Read a stamp.

    Raises
    ------
    DataError
        This is no FITS file, or it is cut off.
    """
    header, start = _header(data, 0)
    if len(data) % _BLOCK:
        raise DataError(f"a stamp of {len(data)} bytes is cut off: FITS files are made of blocks of 2,880")
    blocks = start // _BLOCK
    image, start = _plane(data, header, start)
    planes: dict[str, NDArray[Any]] = {}
    while start < len(data):
        extension, start = _header(data, start)
        plane, start = _plane(data, extension, start)
        planes[str(extension.get("EXTNAME", f"HDU{len(planes) + 1}"))] = plane
    return Stamp(header, blocks, image, planes)


def _header(data: bytes, start: int) -> tuple[dict[str, Any], int]:
    first = data[start : start + 9]
    if first not in (b"SIMPLE  =", b"XTENSION="):
        raise DataError(f"a stamp of {len(data)} bytes has no FITS header at byte {start}, but {first!r}")
    cards: dict[str, Any] = {}
    for at in range(start, len(data), _CARD):
        card = data[at : at + _CARD].decode("ascii", "replace")
        if card.rstrip() == "END":
            return cards, start + -(-(at + _CARD - start) // _BLOCK) * _BLOCK
        if card[8:10] == "= ":
            cards[card[:8].rstrip()] = _value(card[10:])
    raise DataError(f"a stamp of {len(data)} bytes is cut off within the header at byte {start}")


def _value(text: str) -> Any:
    text = text.strip()
    if text.startswith("'"):
        return text[1:].replace("''", "\0").split("'")[0].replace("\0", "'").rstrip()
    text = text.split("/")[0].strip()
    if text in ("T", "F"):
        return text == "T"
    try:
        return float(text.replace("D", "E")) if any(c in text for c in ".ED") else int(text)
    except ValueError:
        return text


def _plane(data: bytes, header: Mapping[str, Any], start: int) -> tuple[NDArray[Any], int]:
    axes = [int(header.get(f"NAXIS{i}", 0)) for i in range(int(header.get("NAXIS", 0)), 0, -1)]
    dtype = np.dtype(_DTYPES.get(header.get("BITPIX", 0), ">u1"))
    count = int(np.prod(axes)) if axes else 0
    if start + count * dtype.itemsize > len(data):
        raise DataError(f"a stamp of {len(data)} bytes is cut off within the {axes} pixels at byte {start}")
    values = np.frombuffer(data, dtype, count, start).reshape(axes)
    return values, start + -(-count * dtype.itemsize // _BLOCK) * _BLOCK


def greys(alert: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """The stamps of an alert as greys, bottom row first; those that it has.

    Science and template share one scale, asinh; the difference runs from -8
    sigma (black) to +8 sigma (white).
    """
    stamps = {name: read_stamp(alert[field]) for name, field in STAMPS.items() if alert[field] is not None}
    images = {name: stamp.image.astype(float) for name, stamp in stamps.items()}
    sigmas = {name: _noise(stamp) for name, stamp in stamps.items()}
    direct = [name for name in ("science", "template") if name in images]
    out: dict[str, NDArray[np.uint8]] = {}
    if direct:
        noise = sigmas[direct[0]]
        top = max([10 * noise, *(float(np.percentile(_known(images[name]), 99.5)) for name in direct)])
        scale = np.arcsinh(top / (2 * noise))
        out = {name: _grey(0.1 + 0.9 * np.arcsinh(images[name] / (2 * noise)) / scale) for name in direct}
    if "difference" in images:
        out["difference"] = _grey(0.5 + images["difference"] / sigmas["difference"] / 16)
    return out


def _noise(stamp: Stamp) -> float:
    """Median noise of a pixel, from the variance plane or else from the scatter of the image."""
    variance = stamp.planes.get("UNCERT")
    if variance is not None and np.isfinite(variance).any():
        return float(np.sqrt(np.nanmedian(variance))) or 1.0
    good = _known(stamp.image.astype(float))
    return float(1.4826 * np.median(np.abs(good - np.median(good)))) or 1.0


def _known(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels that have a value; one of 0 where none has."""
    good = image[np.isfinite(image)]
    return good if len(good) else np.zeros(1)


def _grey(plane: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.where(np.isnan(plane), NOWHERE, 255 * np.clip(np.nan_to_num(plane), 0, 1)).astype(np.uint8)
