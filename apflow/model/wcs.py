"""World coordinates of a detector: TAN with SIP distortion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apflow.errors import DataError
from apflow.model.sky import deproject, project

F8 = NDArray[np.float64]


def sip_terms(order: int) -> list[tuple[int, int]]:
    """Exponents (p, q) of the SIP polynomial, 2 <= p + q <= order."""
    return [(p, q) for p in range(order + 1) for q in range(order + 1 - p) if p + q >= 2]


def _polynomial(u: F8, v: F8, order: int, coefficients: F8) -> F8:
    out = np.zeros(np.broadcast(u, v).shape)
    for (p, q), c in zip(sip_terms(order), coefficients, strict=True):
        out += c * u**p * v**q
    return out


@dataclass(frozen=True, eq=False)
class Wcs:
    """Pixel to sky by a gnomonic projection with SIP distortion.

    Attributes
    ----------
    crval_deg : `tuple` [`float`, `float`]
        ICRS position of the reference pixel, degrees.
    crpix : `tuple` [`float`, `float`]
        Reference pixel (x, y), 0-based (FITS counts from 1).
    cd : `numpy.ndarray`, (2, 2)
        Degrees per pixel.
    order : `int`
        Order of the SIP polynomials; 0 for none.
    a, b : `numpy.ndarray`
        SIP coefficients in the order of `sip_terms` (Shupe et al. 2005).
    """

    crval_deg: tuple[float, float]
    crpix: tuple[float, float]
    cd: F8
    order: int = 0
    a: F8 | None = None
    b: F8 | None = None

    def pixel_to_plane(self, x: ArrayLike, y: ArrayLike) -> tuple[F8, F8]:
        """Tangent-plane coordinates about `crval_deg`, degrees."""
        u, v = np.asarray(x, float) - self.crpix[0], np.asarray(y, float) - self.crpix[1]
        if self.order:
            assert self.a is not None and self.b is not None
            u, v = u + _polynomial(u, v, self.order, self.a), v + _polynomial(u, v, self.order, self.b)
        return self.cd[0, 0] * u + self.cd[0, 1] * v, self.cd[1, 0] * u + self.cd[1, 1] * v

    def pixel_to_sky(self, x: ArrayLike, y: ArrayLike) -> tuple[F8, F8]:
        """ICRS (ra, dec) in degrees of pixels (x, y)."""
        return deproject(*self.pixel_to_plane(x, y), *self.crval_deg)

    def sky_to_pixel(self, ra_deg: ArrayLike, dec_deg: ArrayLike) -> tuple[F8, F8]:
        """Pixels (x, y) of ICRS positions; NaN beyond 90 degrees."""
        xi, eta = project(ra_deg, dec_deg, *self.crval_deg)
        inverse = np.linalg.inv(self.cd)
        du = inverse[0, 0] * xi + inverse[0, 1] * eta
        dv = inverse[1, 0] * xi + inverse[1, 1] * eta
        u, v = du, dv
        if self.order:
            assert self.a is not None and self.b is not None
            # Fixed point: the distortion's slope is of order 1e-3, so each turn wins three digits.
            for _ in range(5):
                u, v = du - _polynomial(u, v, self.order, self.a), dv - _polynomial(u, v, self.order, self.b)
        return u + self.crpix[0], v + self.crpix[1]

    @property
    def pixel_scale_arcsec(self) -> float:
        """Geometric mean scale at the reference pixel, arcsec a pixel."""
        return float(np.sqrt(abs(np.linalg.det(self.cd))) * 3600.0)

    def rotation_deg(self) -> float:
        """Position angle of the +y axis, East of North, degrees in [0, 360)."""
        return float(np.degrees(np.arctan2(self.cd[0, 1], self.cd[1, 1])) % 360.0)

    def shifted(self, x0: float, y0: float) -> Wcs:
        """The same mapping for an image whose pixel (0, 0) is pixel (x0, y0) here."""
        return Wcs(self.crval_deg, (self.crpix[0] - x0, self.crpix[1] - y0), self.cd, self.order, self.a, self.b)

    def to_header(self) -> dict[str, Any]:
        """FITS keywords with values, readable by astropy and ds9."""
        sip = "-SIP" if self.order else ""
        header: dict[str, Any] = {
            "CTYPE1": "RA---TAN" + sip,
            "CTYPE2": "DEC--TAN" + sip,
            "CUNIT1": "deg",
            "CUNIT2": "deg",
            "CRVAL1": self.crval_deg[0],
            "CRVAL2": self.crval_deg[1],
            "CRPIX1": self.crpix[0] + 1.0,
            "CRPIX2": self.crpix[1] + 1.0,
            "CD1_1": float(self.cd[0, 0]),
            "CD1_2": float(self.cd[0, 1]),
            "CD2_1": float(self.cd[1, 0]),
            "CD2_2": float(self.cd[1, 1]),
            "RADESYS": "ICRS",
        }
        if self.order:
            assert self.a is not None and self.b is not None
            for name, coefficients in (("A", self.a), ("B", self.b)):
                header[f"{name}_ORDER"] = self.order
                for (p, q), c in zip(sip_terms(self.order), coefficients, strict=True):
                    header[f"{name}_{p}_{q}"] = float(c)
        return header

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Wcs:
        """Read TAN or TAN-SIP keywords (CD or PC with CDELT).

        Raises
        ------
        DataError
            No celestial WCS in the header, or not a TAN one.
        """
        ctype = str(header.get("CTYPE1", ""))
        if not ctype.startswith("RA---TAN"):
            raise DataError(f"no WCS that can be read here: CTYPE1={ctype!r}; accepted: RA---TAN, RA---TAN-SIP")
        if "CD1_1" in header or "CD2_2" in header:
            cd = np.array([[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)], float)
        else:
            pc = np.array([[header.get(f"PC{i}_{j}", float(i == j)) for j in (1, 2)] for i in (1, 2)], float)
            cd = pc * np.array([[header.get("CDELT1", 1.0)], [header.get("CDELT2", 1.0)]], float)
        order = max(int(header.get("A_ORDER", 0)), int(header.get("B_ORDER", 0))) if ctype.endswith("SIP") else 0
        a, b = (
            (np.array([header.get(f"{n}_{p}_{q}", 0.0) for p, q in sip_terms(order)], float) for n in ("A", "B"))
            if order
            else (None, None)
        )
        return cls(
            (float(header["CRVAL1"]), float(header["CRVAL2"])),
            (float(header["CRPIX1"]) - 1.0, float(header["CRPIX2"]) - 1.0),
            cd,
            order,
            a,
            b,
        )


def fit_wcs(
    sky_of_pixel: Callable[[F8, F8], tuple[F8, F8]], shape: tuple[int, int], order: int = 4, grid: int = 12
) -> Wcs:
    """A `Wcs` that follows ``sky_of_pixel(x, y)`` over an image of ``shape`` (ny, nx)."""
    ny, nx = shape
    crpix = ((nx - 1) / 2.0, (ny - 1) / 2.0)
    ra0, dec0 = (float(c[0]) for c in sky_of_pixel(np.array([crpix[0]]), np.array([crpix[1]])))
    x, y = (c.ravel() for c in np.meshgrid(np.linspace(-0.5, nx - 0.5, grid), np.linspace(-0.5, ny - 0.5, grid)))
    xi, eta = project(*sky_of_pixel(x, y), ra0, dec0)
    u, v = x - crpix[0], y - crpix[1]
    scale = max(nx, ny) / 2.0
    terms = [(1, 0), (0, 1), *(sip_terms(order) if order else [])]
    design = np.stack([(u / scale) ** p * (v / scale) ** q for p, q in terms], -1)
    norm = np.array([scale ** (p + q) for p, q in terms])
    fx, fy = (np.linalg.lstsq(design, c, rcond=None)[0] / norm for c in (xi, eta))
    cd = np.array([[fx[0], fx[1]], [fy[0], fy[1]]])
    if not order:
        return Wcs((ra0, dec0), crpix, cd)
    a, b = np.linalg.inv(cd) @ np.stack([fx[2:], fy[2:]])
    return Wcs((ra0, dec0), crpix, cd, order, a, b)
