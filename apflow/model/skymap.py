"""The tessellation of the sky on which templates live.

Tracts are HEALPix pixels (nested, nside 16: 3.7 degrees); each has a TAN grid
about its centre, North up, cut into square cells. A cell's inner region
belongs to it alone, and a border overlaps its neighbours.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import hpgeom
import numpy as np

from apflow.errors import BadRequest
from apflow.model.region import Region
from apflow.model.sky import project
from apflow.model.wcs import Wcs

_NSIDE = 16
#: Half a tract with its overlap, degrees: more than the furthest corner of a HEALPix pixel.
_HALF_DEG = 3.6


@dataclass(frozen=True)
class Cell:
    """One template cell: its identity, pixel grid and inner region."""

    skymap: str
    tract: int
    patch: int
    shape: tuple[int, int]
    border_px: int
    wcs: Wcs

    @functools.cached_property
    def region(self) -> Region:
        """Sky region of the whole cell, border included."""
        return self._region(0)

    @functools.cached_property
    def inner_region(self) -> Region:
        """Sky region that this cell alone owns within its tract."""
        return self._region(self.border_px)

    def _region(self, inset: int) -> Region:
        ny, nx = self.shape
        low, high = inset - 0.5, np.array([nx, ny]) - inset - 0.5
        x, y = np.array([low, high[0], high[0], low]), np.array([low, low, high[1], high[1]])
        return Region(np.stack(self.wcs.pixel_to_sky(x, y), -1))


@dataclass(frozen=True)
class SkyMap:
    """Cells of `cell_px` pixels plus a border of `border_px` on each side."""

    cell_px: int = 480
    border_px: int = 48
    pixel_scale_arcsec: float = 0.2

    @property
    def name(self) -> str:
        """Name of the Butler's skymap."""
        return f"apflow_healpix16_{self.cell_px}_{self.border_px}_{self.pixel_scale_arcsec:g}"

    @classmethod
    def from_name(cls, name: str) -> SkyMap:
        """The skymap of a name made by `name`."""
        match = re.fullmatch(r"apflow_healpix16_(\d+)_(\d+)_([\d.]+)", name)
        if match is None:
            raise BadRequest(f"skymap {name!r} is not one of apflow's: apflow_healpix16_CELL_BORDER_SCALE")
        return cls(int(match[1]), int(match[2]), float(match[3]))

    @property
    def cells_per_side(self) -> int:
        """Cells along a side of a tract."""
        return int(np.ceil(2 * _HALF_DEG * 3600.0 / self.pixel_scale_arcsec / self.cell_px))

    @property
    def tract_max(self) -> int:
        """Number of tracts."""
        return 12 * _NSIDE * _NSIDE

    def tract_centre(self, tract: int) -> tuple[float, float]:
        """ICRS (ra, dec) of a tract's centre, degrees."""
        ra, dec = hpgeom.pixel_to_angle(_NSIDE, tract)
        return float(ra), float(dec)

    def tract_region(self, tract: int) -> Region:
        """Sky region of a tract: the HEALPix pixel."""
        ra, dec = hpgeom.boundaries(_NSIDE, tract)
        return Region(np.stack([ra, dec], -1))

    def cell(self, tract: int, patch: int) -> Cell:
        """Cell ``patch = iy * cells_per_side + ix`` of a tract."""
        iy, ix = divmod(patch, self.cells_per_side)
        scale = self.pixel_scale_arcsec / 3600.0
        middle = self.cells_per_side * self.cell_px / 2 - 0.5
        side = self.cell_px + 2 * self.border_px
        crpix = (middle - ix * self.cell_px + self.border_px, middle - iy * self.cell_px + self.border_px)
        wcs = Wcs(self.tract_centre(tract), crpix, np.array([[-scale, 0.0], [0.0, scale]]))
        return Cell(self.name, tract, patch, (side, side), self.border_px, wcs)

    def cells(self, region: Region) -> list[Cell]:
        """Cells whose inner region overlaps a region, in the tract that owns its centre.

        One tract serves a whole detector: tracts overlap by more than any detector's size.
        """
        tract = int(hpgeom.angle_to_pixel(_NSIDE, *region.centre))
        x, y = project(region.vertices[:, 0], region.vertices[:, 1], *self.tract_centre(tract))
        scale = self.pixel_scale_arcsec / 3600.0
        px = (np.stack([-x, y]) / scale + self.cells_per_side * self.cell_px / 2) / self.cell_px
        (x0, y0), (x1, y1) = np.floor(px.min(1)).astype(int), np.floor(px.max(1)).astype(int)
        candidates = (
            self.cell(tract, iy * self.cells_per_side + ix) for iy in range(y0, y1 + 1) for ix in range(x0, x1 + 1)
        )
        return [c for c in candidates if c.inner_region.overlaps(region)]
