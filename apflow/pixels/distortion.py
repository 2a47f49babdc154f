"""Low-order distortion that stars show beyond what the camera's model has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apflow.model.sky import deproject, project
from apflow.model.wcs import Wcs, sip_terms

F8 = NDArray[np.float64]

#: Stars at least: each of the twelve coefficients has some ten.
_FOR_DISTORTION = 120
#: By how much chi squared must fall for the six quadratic coefficients: by chance 6 on the average, 30 once in 30,000.
_SIGNIFICANT = 30.0
#: The curve's error at a corner of the image is at most this part of a star's: no extrapolation.
_CORNER_ERROR = 0.7
_QUADRATIC = ((2, 0), (1, 1), (0, 2))


def bend(x: F8, y: F8, ra: F8, dec: F8, wcs: Wcs, shape: tuple[int, int]) -> Wcs:
    """Add terms of second order to a WCS, where stars ask for them and bear them.

    Parameters
    ----------
    x, y, ra, dec : `numpy.ndarray`, (n,)
        Matched stars (px) and their reference positions (degrees).
    wcs : `Wcs`
        Linear terms fitted already.
    shape : `tuple` [`int`, `int`]
        Of the image.

    Returns
    -------
    wcs : `Wcs`
        The same one with few stars, with stars that leave a corner of the image
        open, and where the distortion does not stand out of the noise.
    """
    ny, nx = shape
    if len(x) < _FOR_DISTORTION:
        return wcs
    centre, scale = ((nx - 1) / 2.0, (ny - 1) / 2.0), max(nx, ny) / 2.0
    design = _terms((x - centre[0]) / scale, (y - centre[1]) / scale)
    off = np.stack(project(ra, dec, *wcs.crval_deg), -1) - np.stack(wcs.pixel_to_plane(x, y), -1)
    keep, solution, sigma = np.ones(len(x), np.bool_), np.zeros((6, 2)), 0.0
    for _ in range(4):
        solution = np.linalg.lstsq(design[keep], off[keep], rcond=None)[0]
        residual = off - design @ solution
        sigma = 1.4826 * float(np.median(np.abs(residual[keep])))
        keep = np.hypot(*residual.T) < max(3.5 * sigma, 1e-9)
    linear = np.linalg.lstsq(design[keep, :3], off[keep], rcond=None)[0]
    gain = ((off - design[:, :3] @ linear)[keep] ** 2).sum() - ((off - design @ solution)[keep] ** 2).sum()
    corners = _terms(*(np.array(c) * n / (2.0 * scale) for c, n in (([-1, 1, -1, 1], nx), ([-1, -1, 1, 1], ny))))
    spread = np.linalg.inv(design[keep].T @ design[keep])
    worst = float(np.sqrt(np.einsum("ij,jk,ik->i", corners, spread, corners).max()))
    if gain < _SIGNIFICANT * sigma**2 or worst > _CORNER_ERROR:
        return wcs
    return _added(wcs, solution, centre, scale)


def _terms(u: F8, v: F8) -> F8:
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], -1)


def _added(wcs: Wcs, solution: F8, centre: tuple[float, float], scale: float) -> Wcs:
    """The WCS with a polynomial (6, 2) of scaled pixels added in the tangent plane but for its constant.

    The constant, far below a star's error once the shift is fitted, stays in
    the plane: it moves the reference position.
    """
    a, b = (wcs.crpix[0] - centre[0]) / scale, (wcs.crpix[1] - centre[1]) / scale
    c0, cu, cv, cuu, cuv, cvv = solution
    # About the reference pixel in place of the centre.
    constant = c0 + a * cu + b * cv + a * a * cuu + a * b * cuv + b * b * cvv
    slope = np.stack([cu + 2 * a * cuu + b * cuv, cv + 2 * b * cvv + a * cuv], -1) / scale
    cd = wcs.cd + slope
    order = max(wcs.order, 2)
    terms = sip_terms(order)
    sip = np.zeros((len(terms), 2))
    if wcs.order:
        assert wcs.a is not None and wcs.b is not None
        for term, old in zip(sip_terms(wcs.order), np.stack([wcs.a, wcs.b], -1), strict=True):
            sip[terms.index(term)] = wcs.cd @ old
    for term, value in zip(_QUADRATIC, (cuu, cuv, cvv), strict=True):
        sip[terms.index(term)] += value / scale**2
    sip = sip @ np.linalg.inv(cd).T
    ra, dec = deproject(float(constant[0]), float(constant[1]), *wcs.crval_deg)
    return Wcs((float(ra), float(dec)), wcs.crpix, cd, order, sip[:, 0], sip[:, 1])


def bent_by_arcsec(wcs: Wcs, other: Wcs, shape: tuple[int, int]) -> float:
    """By how far two mappings differ at most over an image, after the best linear map between them."""
    if wcs.a is other.a and wcs.b is other.b:
        return 0.0
    ny, nx = shape
    x, y = (c.ravel() for c in np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9)))
    planes = [np.stack(project(*w.pixel_to_sky(x, y), *other.crval_deg), -1) * 3600.0 for w in (wcs, other)]
    design = np.stack([np.ones_like(x), x, y], -1)
    off = planes[0] - planes[1]
    return float(np.hypot(*(off - design @ np.linalg.lstsq(design, off, rcond=None)[0]).T).max())
