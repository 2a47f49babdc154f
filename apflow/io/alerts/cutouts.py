"""Postage stamps as FITS files in memory.

The layout is the one that `astropy.nddata.CCDData` writes and reads: the image
in the primary HDU, then UNCERT (variance), MASK and PSFIMAGE. Headers are put
together by hand, card for card as astropy writes them, since astropy takes
about 3 ms for what takes 0.03 ms here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apflow.errors import BadRequest
from apflow.model.exposure import Mask
from apflow.model.wcs import Wcs, sip_terms

_BLOCK = 2880
#: Planes that speak against a pixel. A detection, a blend or a fake beside it does not, and CCDData takes any
#: non-zero as masked. Their names differ in a FITS keyword's 8 characters, `MP_` included.
_FLAWS = (
    "BAD",
    "SAT",
    "INTRP",
    "CR",
    "EDGE",
    "SUSPECT",
    "NO_DATA",
    "CROSSTALK",
    "UNMASKEDNAN",
    "STREAK",
    "SAT_TEMPLATE",
)
_FLAW_BITS = sum(int(Mask[plane]) for plane in _FLAWS)
_BITPIX = {"f4": -32, "i4": 32}
#: What astropy says of the keywords that it writes by itself.
_NOTES = {
    "SIMPLE": "conforms to FITS standard",
    "XTENSION": "Image extension",
    "BITPIX": "array data type",
    "NAXIS": "number of array dimensions",
    "PCOUNT": "number of parameters",
    "GCOUNT": "number of groups",
    "EXTNAME": "extension name",
}
#: Image, variance, mask, PSF and WCS of a stamp.
Planes = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], NDArray[np.float32] | None, Wcs | None]
_Vector = tuple[float, float, float]
_WCS_KEYS = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")


def cutout_fits(cutout: Planes, unit: str = "nJy", cards: Mapping[str, float | int | str] | None = None) -> bytes:
    """A stamp as a FITS file.

    Parameters
    ----------
    cutout : `tuple`
        (image, variance, mask, psf, wcs) as `apflow.pixels.cutouts.cut` gives
        them. Of the mask's planes only flaws are kept, so that a non-zero
        pixel is a doubtful one. The PSF is left out where it is None. The WCS
        is written as the plain TAN projection that touches it at the stamp's
        centre (see `tangent`): distortion terms would need a second block,
        which some readers do not expect.
    unit : `str`
        BUNIT.
    cards : `~collections.abc.Mapping`, optional
        Further keywords of the primary header, such as ROTPA.

    Returns
    -------
    file : `bytes`
        The primary header takes exactly one block of 2,880 bytes.

    Raises
    ------
    BadRequest
        `cards` do not fit into the block.
    """
    image, variance, mask, psf, wcs = cutout
    ny, nx = image.shape
    numbers = None
    if wcs is not None:
        local = tangent(wcs, (nx - 1) / 2, (ny - 1) / 2)
        numbers = (*local.crval_deg, local.crpix[0] + 1, local.crpix[1] + 1, *local.cd.ravel().tolist())
    parts = [
        _primary(nx, ny, unit, numbers, tuple((cards or {}).items())),
        _data(image, ">f4"),
        _extension("UNCERT", "f4", nx, ny, "VarianceUncertainty"),
        _data(variance, ">f4"),
        _extension("MASK", "i4", nx, ny),
        _data(mask & _FLAW_BITS, ">i4"),
    ]
    if psf is not None:
        parts += [_extension("PSFIMAGE", "f4", psf.shape[1], psf.shape[0]), _data(psf, ">f4")]
    return b"".join(parts)


@functools.lru_cache(maxsize=8)  # the three stamps of a source share their WCS
def tangent(wcs: Wcs, x: float, y: float) -> Wcs:
    """The undistorted WCS that agrees with `wcs` at (x, y) to first order.

    Its reference pixel is (x, y). Over a stamp of 102 pixels of LSSTCam it
    departs from the full WCS by less than 0.001 arcsec.
    """
    u, v = x - wcs.crpix[0], y - wcs.crpix[1]
    fu, fv, du, dv = u, v, [1.0, 0.0], [0.0, 1.0]
    if wcs.order:
        assert wcs.a is not None and wcs.b is not None
        for (p, q), a, b in zip(sip_terms(wcs.order), wcs.a.tolist(), wcs.b.tolist(), strict=True):
            term = u**p * v**q
            along_u = p * u ** (p - 1) * v**q if p else 0.0
            along_v = q * u**p * v ** (q - 1) if q else 0.0
            fu, fv = fu + a * term, fv + b * term
            du[0], du[1] = du[0] + a * along_u, du[1] + a * along_v
            dv[0], dv[1] = dv[0] + b * along_u, dv[1] + b * along_v
    xi, eta = np.radians(wcs.cd @ (fu, fv)).tolist()
    sky, turn = _turn(xi, eta, *wcs.crval_deg)
    return Wcs(sky, (x, y), np.array(turn) @ wcs.cd @ np.array([du, dv]))


def _turn(
    xi: float, eta: float, ra0_deg: float, dec0_deg: float
) -> tuple[tuple[float, float], tuple[tuple[float, float], tuple[float, float]]]:
    """Sky position of a point of one tangent plane, and the map from that plane to its own, to first order.

    With c, e, n the unit vectors towards the reference point, East and North
    there, the point is p = c + xi e + eta n; a step dp moves it by
    dp.e' / |p| and dp.n' / |p| in the plane that touches the sphere at p.
    """
    sin_ra, cos_ra = math.sin(math.radians(ra0_deg)), math.cos(math.radians(ra0_deg))
    sin_dec, cos_dec = math.sin(math.radians(dec0_deg)), math.cos(math.radians(dec0_deg))
    c = (cos_dec * cos_ra, cos_dec * sin_ra, sin_dec)
    e = (-sin_ra, cos_ra, 0.0)
    n = (-sin_dec * cos_ra, -sin_dec * sin_ra, cos_dec)
    p = (c[0] + xi * e[0] + eta * n[0], c[1] + xi * e[1] + eta * n[1], c[2] + xi * e[2] + eta * n[2])
    across, length = math.hypot(p[0], p[1]), math.sqrt(p[0] ** 2 + p[1] ** 2 + p[2] ** 2)
    ra, dec = math.atan2(p[1], p[0]), math.atan2(p[2], across)
    east = (-math.sin(ra), math.cos(ra), 0.0)
    north = (-math.sin(dec) * math.cos(ra), -math.sin(dec) * math.sin(ra), math.cos(dec))
    turn = ((_dot(east, e) / length, _dot(east, n) / length), (_dot(north, e) / length, _dot(north, n) / length))
    return (math.degrees(ra) % 360.0, math.degrees(dec)), turn


def _dot(a: _Vector, b: _Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@functools.lru_cache(maxsize=8)  # and so their header
def _primary(
    nx: int, ny: int, unit: str, numbers: tuple[float, ...] | None, cards: tuple[tuple[str, Any], ...]
) -> bytes:
    head = _primary_start(nx, ny, unit, numbers is not None)
    if numbers is not None:
        head += b"".join(map(_card, _WCS_KEYS, numbers))
    head += b"".join(_card(key, value) for key, value in cards) + b"END".ljust(80)
    if len(head) > _BLOCK:
        raise BadRequest(f"{len(cards)} further keywords do not fit into a stamp's header of {_BLOCK} bytes")
    return head.ljust(_BLOCK)


@functools.lru_cache(maxsize=256)
def _primary_start(nx: int, ny: int, unit: str, celestial: bool) -> bytes:
    cards: dict[str, Any] = {"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": nx, "NAXIS2": ny, "EXTEND": True}
    cards["BUNIT"] = unit
    if celestial:
        cards |= {"WCSAXES": 2, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg"}
        cards["RADESYS"] = "ICRS"
    return b"".join(_card(key, value) for key, value in cards.items())


@functools.lru_cache(maxsize=256)
def _extension(name: str, kind: str, nx: int, ny: int, utype: str = "") -> bytes:
    cards: dict[str, Any] = {"XTENSION": "IMAGE", "BITPIX": _BITPIX[kind], "NAXIS": 2, "NAXIS1": nx, "NAXIS2": ny}
    cards |= {"PCOUNT": 0, "GCOUNT": 1}
    if utype:
        cards["UTYPE"] = utype
    if name == "MASK":
        cards |= {f"MP_{plane}"[:8]: int(Mask[plane]).bit_length() - 1 for plane in _FLAWS}
    cards["EXTNAME"] = name
    return (b"".join(_card(key, value) for key, value in cards.items()) + b"END".ljust(80)).ljust(_BLOCK)


def _card(key: str, value: float | int | str) -> bytes:
    if isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, str):
        text = "{:<20}".format("'{:<8}'".format(value.replace("'", "''")))
    elif isinstance(value, int):
        text = f"{value:>20d}"
    else:
        text = f"{_float(value):>20}"
    card = f"{key:<8}= {text}"
    if len(card) > 80 or len(key) > 8:
        raise BadRequest(f"FITS keyword {key} with value {value!r} does not fit into 80 characters")
    if key in _NOTES:
        card += f" / {_NOTES[key]}"
    return card.ljust(80).encode("ascii")


def _float(value: float) -> str:
    """A number in 20 characters: the last digits of a longer one are cut off."""
    text = str(float(value)).upper()
    mantissa, e, exponent = text.partition("E")
    return mantissa[: 20 - len(e + exponent)] + e + exponent


def _data(plane: NDArray[Any], dtype: str) -> bytes:
    raw = plane.astype(dtype).tobytes()
    return raw + bytes(-len(raw) % _BLOCK)
