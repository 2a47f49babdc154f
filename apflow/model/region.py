"""A convex region of the sky."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apflow.model.sky import deproject, project, separation_arcsec


@dataclass(frozen=True, eq=False)
class Region:
    """A convex polygon on the sky.

    Attributes
    ----------
    vertices : `numpy.ndarray`, (n, 2)
        ICRS (ra, dec) of the corners in order, degrees.
    """

    vertices: NDArray[np.float64]

    @property
    def centre(self) -> tuple[float, float]:
        """Mean direction of the corners (ra, dec), degrees."""
        ra, dec = np.radians(self.vertices.T)
        x, y, z = (np.cos(dec) * np.cos(ra)).sum(), (np.cos(dec) * np.sin(ra)).sum(), np.sin(dec).sum()
        return float(np.degrees(np.arctan2(y, x)) % 360.0), float(np.degrees(np.arctan2(z, np.hypot(x, y))))

    @property
    def radius_deg(self) -> float:
        """Radius of the circle about `centre` that holds every corner, degrees."""
        return float(separation_arcsec(*self.centre, self.vertices[:, 0], self.vertices[:, 1]).max()) / 3600.0

    def contains(self, ra_deg: ArrayLike, dec_deg: ArrayLike) -> NDArray[np.bool_]:
        """Which positions lie inside or on the border."""
        centre = self.centre
        x, y = project(ra_deg, dec_deg, *centre)
        vx, vy = project(self.vertices[:, 0], self.vertices[:, 1], *centre)
        side = [(vx[i] - vx[i - 1]) * (y - vy[i - 1]) - (vy[i] - vy[i - 1]) * (x - vx[i - 1]) for i in range(len(vx))]
        cross = np.stack(side)
        with np.errstate(invalid="ignore"):
            return np.asarray((cross >= 0).all(0) | (cross <= 0).all(0))

    def overlaps(self, other: Region) -> bool:
        """Whether two regions share a point (separating-axis test in a tangent plane)."""
        centre = self.centre
        mine = np.stack(project(self.vertices[:, 0], self.vertices[:, 1], *centre), -1)
        theirs = np.stack(project(other.vertices[:, 0], other.vertices[:, 1], *centre), -1)
        if not np.isfinite(theirs).all():
            return False
        for polygon in (mine, theirs):
            edges = np.roll(polygon, -1, 0) - polygon
            for normal in np.stack([-edges[:, 1], edges[:, 0]], -1):
                a, b = mine @ normal, theirs @ normal
                if a.max() < b.min() or b.max() < a.min():
                    return False
        return True

    def grown(self, margin_arcsec: float) -> Region:
        """The region with each corner moved away from the centre by a margin."""
        centre = self.centre
        x, y = project(self.vertices[:, 0], self.vertices[:, 1], *centre)
        r = np.hypot(x, y)
        factor = (r + margin_arcsec * np.sqrt(2.0) / 3600.0) / np.where(r > 0, r, 1.0)
        return Region(np.stack(deproject(x * factor, y * factor, *centre), -1))

    def to_sphgeom(self) -> Any:
        """The region as `lsst.sphgeom.ConvexPolygon`."""
        from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

        return ConvexPolygon([UnitVector3d(LonLat.fromDegrees(float(r), float(d))) for r, d in self.vertices])
