"""FITS files as lists of header and array, at the speed of the disk.

astropy costs about a millisecond an HDU, and a raw image has 16 of them: 189
detectors would pay more for headers than for pixels. Plain image HDUs (FITS
standard 4.0, sections 3 and 4) are read and written here directly; whatever
is compressed, scaled or not an image goes through astropy.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from apflow.errors import DataError, ServiceError
from apflow.io.atomic import atomic
from apflow.io.cards import CARD, card, parse_cards, plain

_BLOCK = 2880
#: Bytes that are read at a time: they fit into the second cache.
_PIECE = 1 << 19
_GZIP = b"\x1f\x8b"
_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_BITPIX = {"u1": 8, "i2": 16, "u2": 16, "i4": 32, "u4": 32, "i8": 64, "f4": -32, "f8": -64}
#: Unsigned integers are stored as signed ones with this BZERO (section 5.2.5).
_UNSIGNED = {"u2": 1 << 15, "u4": 1 << 31}
_STRUCTURE = {"SIMPLE", "XTENSION", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "EXTEND"}
_STRUCTURE |= {"PCOUNT", "GCOUNT", "BSCALE", "BZERO", "EXTNAME", "END"}


@dataclass(frozen=True, eq=False)
class Hdu:
    """One header and its array, None where there is none.

    `header` holds no keyword of the file's structure (BITPIX, NAXIS, EXTNAME...).
    """

    name: str
    header: Mapping[str, Any] = field(default_factory=dict)
    data: NDArray[Any] | None = None


def write_hdus(path: str | Path, hdus: Sequence[Hdu]) -> None:
    """Write a FITS file so that it appears under its name complete or not at all.

    Parameters
    ----------
    path : `str` or `pathlib.Path`
    hdus : sequence of `Hdu`
        The first is the primary HDU. Arrays are bool, (u)int8 to 64 or float.
        Header values are str, bool, int, float or None; those that are not
        finite are written as undefined. Keywords longer than eight characters
        are written by the HIERARCH convention.
    """
    with atomic(path) as file:
        for number, hdu in enumerate(hdus):
            bitpix, zero, data = _encode(hdu.data)
            file.write(_header_bytes(hdu, number == 0, len(hdus) > 1, bitpix, zero))
            if data is not None:
                file.write(data.reshape(-1).data.cast("B"))
                file.write(bytes(-data.nbytes % _BLOCK))


def read_hdus(path: str | Path) -> list[Hdu]:
    """Read every image HDU of a FITS file; tables are left out.

    Raises
    ------
    DataError
        The file is missing, not FITS, or truncated.
    ServiceError
        The file system failed.
    """
    hdus: list[Hdu] = []
    with _opened(path) as (file, size):
        number, start, end = 0, 0, 0
        while number == 0 or end < size:
            header, start, end = _next_header(path, file, number, end, size)
            if _is_odd(header):
                return _read_with_astropy(path)
            if header.get("XTENSION", "IMAGE") == "IMAGE":
                data = _read_array(path, file, header, start)
                hdus.append(Hdu(str(header.get("EXTNAME", "")), _public(header), data))
            number += 1
    return hdus


def read_primary(path: str | Path) -> dict[str, Any]:
    """The primary header alone.

    Raises
    ------
    DataError, ServiceError
        As `read_hdus`.
    """
    return dict(next(_headers(path)).header)


def read_headers(path: str | Path) -> list[Hdu]:
    """All headers without their data, which are made sure to be there; tables included.

    Raises
    ------
    DataError, ServiceError
        As `read_hdus`.
    """
    return list(_headers(path))


def _headers(path: str | Path) -> Iterator[Hdu]:
    with _opened(path) as (file, size):
        number, end = 0, 0
        while number == 0 or end < size:
            header, _, end = _next_header(path, file, number, end, size)
            yield Hdu(str(header.get("EXTNAME", "")), _public(header))
            number += 1


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file, unpacked where gzip has packed it, and its size."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == _GZIP
            if not packed:
                yield file, os.fstat(file.fileno()).st_size
                return
        content = gzip.decompress(Path(path).read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file: {error}") from error
    except OSError as error:
        raise _os_error(path, error) from error
    yield io.BytesIO(content), len(content)


def _next_header(
    path: str | Path, file: BinaryIO, number: int, offset: int, size: int
) -> tuple[dict[str, Any], int, int]:
    """The header of the HDU of a number at an offset, where its data start, and the offset of the next one."""
    file.seek(offset)
    block = file.read(_BLOCK)
    while (end := _end(block)) < 0 and (more := file.read(_BLOCK)):
        block += more
    if end < 0 or (offset == 0 and not block.startswith(b"SIMPLE  =")):
        raise _not_fits(path) if offset == 0 else _truncated(path, number, offset + _BLOCK, size)
    header = parse_cards(block[:end])
    start = offset + -(-(end + CARD) // _BLOCK) * _BLOCK
    length = _data_size(path, header)
    if start + length > size:
        raise _truncated(path, number, start + length, size)
    return header, start, start + -(-length // _BLOCK) * _BLOCK


def _read_array(path: str | Path, file: BinaryIO, header: Mapping[str, Any], start: int) -> NDArray[Any] | None:
    """The data of an image HDU in native byte order, swapped piece by piece while they are in the processor's cache."""
    shape = [int(header[f"NAXIS{i}"]) for i in range(int(header.get("NAXIS", 0)), 0, -1)]
    if not shape:
        return None
    stored = np.dtype(_TYPES[int(header["BITPIX"])])
    values = np.empty(math.prod(shape), stored.newbyteorder("="))
    zero = int(header.get("BZERO", 0))
    if zero:
        values = values.view(f"u{values.itemsize}")
    file.seek(start)
    for begin in range(0, values.size, _PIECE // values.itemsize):
        piece = values[begin : begin + _PIECE // values.itemsize]
        _fill(path, file, memoryview(piece).cast("B"))
        if not stored.isnative:
            piece.byteswap(inplace=True)
        if zero:
            piece ^= piece.dtype.type(zero)  # adding 2^(n-1) to an n-bit integer flips its sign bit
    return values.reshape(shape)


def _fill(path: str | Path, file: BinaryIO, view: memoryview) -> None:
    done = 0
    while done < len(view):
        n = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not n:
            raise DataError(f"{path} is truncated: it became shorter while it was read")
        done += n


def _os_error(path: str | Path, error: OSError) -> DataError | ServiceError:
    kind = DataError if isinstance(error, FileNotFoundError | IsADirectoryError) else ServiceError
    return kind(f"{path} cannot be read: {error.strerror or error}")


def _not_fits(path: str | Path) -> DataError:
    return DataError(f"{path} is not a FITS file: it does not begin with a FITS header")


def _truncated(path: str | Path, hdu: int, needed: int, size: int) -> DataError:
    return DataError(f"{path} is truncated: it has {size} bytes, HDU {hdu} needs {needed}")


def _end(block: bytes) -> int:
    """Offset of the END card in a header, -1 where there is none."""
    end = block.find(b"END" + b" " * 77)
    while end >= 0 and end % CARD:
        end = block.find(b"END" + b" " * 77, end + 1)
    return end


def _public(header: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in header.items() if k not in _STRUCTURE}


def _data_size(path: str | Path, header: Mapping[str, Any]) -> int:
    try:
        axes = [int(header[f"NAXIS{i + 1}"]) for i in range(int(header["NAXIS"]))]
        width = np.dtype(_TYPES[header["BITPIX"]]).itemsize
        return width * ((math.prod(axes) if axes else 0) + int(header.get("PCOUNT", 0)))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not FITS: a header has no good BITPIX, NAXIS or PCOUNT ({error})") from error


def _is_odd(header: Mapping[str, Any]) -> bool:
    """Whether the HDU needs astropy: a compressed image, scaled, or with blank pixels."""
    scaled = header.get("BSCALE", 1) != 1 or header.get("BZERO", 0) not in (0, *_UNSIGNED.values())
    table = header.get("XTENSION", "IMAGE") != "IMAGE"
    return "ZIMAGE" in header if table else scaled or "BLANK" in header


def _encode(data: NDArray[Any] | None) -> tuple[int, int, NDArray[Any] | None]:
    """BITPIX, BZERO and the big-endian array."""
    if data is None:
        return 8, 0, None
    if data.dtype == np.bool_:
        data = data.view(np.uint8)
    kind = data.dtype.str[1:]
    if kind not in _BITPIX:
        raise TypeError(f"arrays of {data.dtype} have no FITS form here; accepted: {', '.join(_BITPIX)}")
    zero = _UNSIGNED.get(kind, 0)
    if zero:
        data = (data ^ data.dtype.type(zero)).view(f"i{data.itemsize}")
    return _BITPIX[kind], zero, np.ascontiguousarray(data, _TYPES[_BITPIX[kind]])


def _header_bytes(hdu: Hdu, primary: bool, extended: bool, bitpix: int, zero: int) -> bytes:
    shape = hdu.data.shape if hdu.data is not None else ()
    cards: dict[str, Any] = {"SIMPLE": True} if primary else {"XTENSION": "IMAGE"}
    cards |= {"BITPIX": bitpix, "NAXIS": len(shape)}
    cards |= {f"NAXIS{i + 1}": n for i, n in enumerate(reversed(shape))}
    cards |= ({"EXTEND": True} if extended else {}) if primary else {"PCOUNT": 0, "GCOUNT": 1}
    cards |= {"BSCALE": 1, "BZERO": zero} if zero else {}
    cards |= {"EXTNAME": hdu.name} if hdu.name else {}
    cards |= {k: v for k, v in hdu.header.items() if k not in cards and k not in _STRUCTURE}
    text = "".join([card(k, v) for k, v in cards.items()]) + "END".ljust(CARD)
    return text.ljust(-(-len(text) // _BLOCK) * _BLOCK).encode("ascii", "replace")


def _read_with_astropy(path: str | Path) -> list[Hdu]:
    from astropy.io import fits

    try:
        with warnings.catch_warnings(action="ignore"), fits.open(path, memmap=False) as hdus:
            return [
                Hdu(
                    hdu.name if number else "",
                    _public({k: plain(v) for k, v in hdu.header.items()}),
                    _native(hdu.data),
                )
                for number, hdu in enumerate(hdus)
                if hdu.is_image
            ]
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read as FITS: {error}") from error


def _native(data: NDArray[Any] | None) -> NDArray[Any] | None:
    return None if data is None else data.astype(data.dtype.newbyteorder("="), copy=False)
