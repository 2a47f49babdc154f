"""The simulated sky: stars, galaxies, and everything that changes.

The sky about the field is cut into square patches of the tangent plane, and
each patch is made from the seed and its own indices. Whoever needs a piece of
sky makes the patches that it touches and gets the same objects as everybody
else, in any process and in any order.

Magnitudes are in the scenario's band, and their distributions hang on the
nominal depth, so that one recipe serves all filters and cameras.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.region import Region
from apflow.model.sky import deproject, project
from apflow.simulate.scenario import NJY_MAG, Scenario, generator

F8 = NDArray[np.float64]

#: Cut-outs of this many pixels get the full denser field; larger ones less of it.
_DENSE_PX = 512
_OFFSET = 1 << 15
#: Moving objects stay within this distance of their place.
_TETHER_ARCSEC = 40.0
#: Light from sources this far outside still reaches an image.
MARGIN_ARCSEC = 12.0


@dataclass(frozen=True)
class Densities:
    """Objects per square arcminute, and the faint limits in magnitudes below the 5-sigma depth."""

    stars: float
    galaxies: float
    variables: float
    transients: float
    hosted: float
    movers: float
    trails: float


#: A field of middle galactic latitude, as deep as a visit, with about 100 changes in an LSST CCD.
REALISTIC = Densities(10.0, 24.0, 0.25, 0.06, 0.18, 0.10, 0.008)
#: What a cut-out of `_DENSE_PX` pixels holds, whatever its area.
DENSE = Densities(180.0, 45.0, 9.5, 5.0, 7.0, 3.5, 0.5)


@dataclass(frozen=True)
class Sky:
    """The sky of a scenario.

    Attributes
    ----------
    scenario : `Scenario`
    densities : `Densities`
    patch_arcsec : `float`
        Side of a patch.
    """

    scenario: Scenario
    densities: Densities
    patch_arcsec: float

    def stars(self, region: Region, margin_arcsec: float = 0.0) -> pd.DataFrame:
        """Constant stars: truth_id, ra, dec (degrees), flux (nJy)."""
        return self._collect("stars", region, margin_arcsec)

    def galaxies(self, region: Region, margin_arcsec: float = 0.0) -> pd.DataFrame:
        """Galaxies: truth_id, ra, dec, flux, kind, radius (half light, arcsec), e1, e2 (East and North)."""
        return self._collect("galaxies", region, margin_arcsec)

    def changes(self, region: Region, margin_arcsec: float = 0.0) -> pd.DataFrame:
        """Everything that changes, by the place where it started: columns as `change_columns` says."""
        return self._collect("changes", region, margin_arcsec)

    def changes_in_sight(self, region: Region) -> pd.DataFrame:
        """Everything that changes and may come to within `MARGIN_ARCSEC` of a region at any time."""
        return self.changes(region, MARGIN_ARCSEC + _TETHER_ARCSEC)

    def _collect(self, what: str, region: Region, margin_arcsec: float) -> pd.DataFrame:
        grown = region.grown(margin_arcsec) if margin_arcsec else region
        scenario = self.scenario
        x, y = project(grown.vertices[:, 0], grown.vertices[:, 1], scenario.ra_deg, scenario.dec_deg)
        cells = [np.floor(c * 3600.0 / self.patch_arcsec + 0.5).astype(int) for c in (x, y)]
        tables = [
            getattr(_patch(self, ix, iy), what)
            for iy in range(cells[1].min(), cells[1].max() + 1)
            for ix in range(cells[0].min(), cells[0].max() + 1)
        ]
        table = pd.concat(tables, ignore_index=True)
        inside: pd.DataFrame = table[grown.contains(table["ra"].to_numpy(), table["dec"].to_numpy())].reset_index(
            drop=True
        )
        return inside


@dataclass(frozen=True, eq=False)
class _Patch:
    stars: pd.DataFrame
    galaxies: pd.DataFrame
    changes: pd.DataFrame


@functools.lru_cache(maxsize=8)
def make_sky(scenario: Scenario) -> Sky:
    """The sky of a scenario; nothing is made until it is asked for."""
    camera = scenario.load_camera()
    detector = camera.detectors[0]
    side_arcsec = camera.pixel_scale_arcsec * np.sqrt(detector.nx * detector.ny)
    dense_arcmin2 = (max(side_arcsec, _DENSE_PX * camera.pixel_scale_arcsec) / 60.0) ** 2
    densities = Densities(
        *(
            max(real, dense / dense_arcmin2)
            for real, dense in zip(vars(REALISTIC).values(), vars(DENSE).values(), strict=True)
        )
    )
    return Sky(scenario, densities, float(np.clip(side_arcsec / 2, 40.0, 120.0)))


def change_columns() -> list[str]:
    """Columns of the table of changes.

    truth_id; kind; ra, dec at the start of the scenario; template_flux (nJy);
    flux (nJy) at the start; amplitude (nJy), period_s and phase of a sinusoid
    about it; rate_ra, rate_dec (arcsec/s on the sky).
    """
    motion = ["rate_ra", "rate_dec"]
    return ["truth_id", "kind", "ra", "dec", "template_flux", "flux", "amplitude", "period_s", "phase", *motion]


def change_flux(changes: pd.DataFrame, elapsed_s: float) -> F8:
    """Flux of each change a time after the scenario's start, nJy."""
    angle = 2 * np.pi * elapsed_s / changes["period_s"] + changes["phase"]
    return np.asarray(changes["flux"] + changes["amplitude"] * (np.sin(angle) - np.sin(changes["phase"])), float)


def change_position(changes: pd.DataFrame, begin_s: float, after_s: float = 0.0) -> tuple[F8, F8]:
    """Position of each change in a visit, degrees.

    Parameters
    ----------
    changes : `pandas.DataFrame`
    begin_s : `float`
        When the visit begins, seconds after the scenario's start.
    after_s : `float`
        Time since then.

    Notes
    -----
    An object that has moved `_TETHER_ARCSEC` from its place starts anew as far
    on the other side, between two visits: a field then has as many moving
    objects late in the night as at its start, and nobody needs to look for
    them far away.
    """
    rates = changes["rate_ra"].to_numpy(), changes["rate_dec"].to_numpy()
    speed = np.maximum(np.hypot(*rates), 1e-9)
    period_s = 2 * _TETHER_ARCSEC / speed
    elapsed_s = (begin_s + period_s / 2) % period_s - period_s / 2 + after_s
    ra, dec = changes["ra"].to_numpy(), changes["dec"].to_numpy()
    east = rates[0] * elapsed_s / 3600.0 / np.cos(np.radians(dec))
    return (ra + east) % 360.0, dec + rates[1] * elapsed_s / 3600.0


@functools.lru_cache(maxsize=512)
def _patch(sky: Sky, ix: int, iy: int) -> _Patch:
    rng = generator(sky.scenario, "sky", ix, iy)
    area = (sky.patch_arcsec / 60.0) ** 2
    counts = {name: _count(rng, density * area) for name, density in vars(sky.densities).items()}
    first = ((ix + _OFFSET) << 16 | (iy + _OFFSET)) << 16
    dense = sky.densities.stars > REALISTIC.stars

    def place(n: int, near: tuple[F8, F8] | None = None) -> tuple[F8, F8]:
        """Positions in the patch, degrees in the tangent plane."""
        if near is not None:
            return near
        side = sky.patch_arcsec / 3600.0
        x, y = _spread(rng, n) if dense else rng.uniform(-0.5, 0.5, (2, n))
        return (ix + x) * side, (iy + y) * side

    def table(family: int, x: F8, y: F8, **columns: Any) -> pd.DataFrame:
        ra, dec = deproject(x, y, sky.scenario.ra_deg, sky.scenario.dec_deg)
        return pd.DataFrame({"truth_id": first + (family << 10) + np.arange(len(x)), "ra": ra, "dec": dec, **columns})

    depth = sky.scenario.load_filter().depth
    stars = table(0, *place(counts["stars"]), flux=_njy(_star_magnitudes(rng, counts["stars"], depth)))
    gx, gy = place(counts["galaxies"])
    galaxies = table(6, gx, gy, **_galaxy_columns(rng, len(gx), depth))
    changes = [
        table(1, *place(counts["variables"]), **_variable_columns(rng, counts["variables"], sky.scenario)),
        table(2, *place(counts["transients"]), **_transient_columns(rng, counts["transients"], sky.scenario)),
        table(3, *_in_hosts(rng, gx, gy, galaxies, counts["hosted"]), **_hosted_columns(rng, gx, counts, sky.scenario)),
        table(4, *place(counts["movers"]), **_mover_columns(rng, counts["movers"], sky.scenario, trail=False)),
        table(5, *place(counts["trails"]), **_mover_columns(rng, counts["trails"], sky.scenario, trail=True)),
    ]
    return _Patch(stars, galaxies, pd.concat(changes, ignore_index=True)[change_columns()])


def _count(rng: np.random.Generator, mean: float) -> int:
    """A whole number with this mean and as little scatter as can be: patches stand for the average field."""
    return int(np.floor(mean + rng.uniform()))


def _spread(rng: np.random.Generator, n: int) -> F8:
    """n points (2, n) in the unit square about 0, one in each of n boxes: random, but without clumps."""
    side = int(np.ceil(np.sqrt(n)))
    boxes = rng.permutation(side * side)[:n]
    return (np.stack([boxes % side, boxes // side]) + rng.uniform(0, 1, (2, n))) / max(side, 1) - 0.5


def _njy(mag: F8) -> F8:
    return np.asarray(10 ** (0.4 * (NJY_MAG - mag)))


def _star_magnitudes(rng: np.random.Generator, n: int, depth: float) -> F8:
    """log N rises by 0.4 a magnitude down to 5 mag above the depth, then by 0.12."""
    grid = np.linspace(depth - 12.0, depth + 0.3, 400)
    rate = 10 ** np.where(grid < depth - 5, 0.4 * (grid - depth + 5), 0.12 * (grid - depth + 5))
    cumulative = np.cumsum(rate)
    return np.interp(rng.uniform(0, 1, n), cumulative / cumulative[-1], grid)


def _galaxy_columns(rng: np.random.Generator, n: int, depth: float) -> dict[str, Any]:
    """log N rises by 0.35 a magnitude; sizes shrink with magnitude; a third are de Vaucouleurs."""
    low, high = 10 ** (0.35 * -6.0), 10 ** (0.35 * 0.3)
    mag = depth + np.log10(rng.uniform(low, high, n)) / 0.35
    radius = 0.4 * 10 ** (-0.13 * (mag - depth)) * rng.lognormal(0.0, 0.25, n)
    ellipticity, angle = np.minimum(0.7, rng.rayleigh(0.25, n)), rng.uniform(0, 2 * np.pi, n)
    return {
        "flux": _njy(mag),
        "kind": np.where(rng.uniform(size=n) < 0.33, "devaucouleurs", "exponential"),
        "radius": np.clip(radius, 0.15, 4.0),
        "e1": ellipticity * np.cos(angle),
        "e2": ellipticity * np.sin(angle),
    }


def _snr_flux(rng: np.random.Generator, n: int, scenario: Scenario, low: float = 5.0, high: float = 60.0) -> F8:
    """Fluxes (nJy) spread evenly in the logarithm of their nominal S/N."""
    return np.exp(rng.uniform(np.log(low), np.log(high), n)) * scenario.depth_njy / 5.0


def _steady(n: int) -> dict[str, Any]:
    return {"amplitude": np.zeros(n), "period_s": np.ones(n), "phase": np.zeros(n), "rate_ra": 0.0, "rate_dec": 0.0}


def _variable_columns(rng: np.random.Generator, n: int, scenario: Scenario) -> dict[str, Any]:
    """Stars that are now brighter or fainter than in the template, and go on changing over hours."""
    change = _snr_flux(rng, n, scenario)
    template = change * rng.uniform(1.5, 8.0, n)
    return {
        **_steady(n),
        "kind": "variable",
        "template_flux": template,
        "flux": template + change * rng.choice([-1.0, 1.0], n),
        "amplitude": 0.3 * change,
        "period_s": rng.uniform(0.2, 2.0, n) * 86400.0,
        "phase": rng.uniform(0, 2 * np.pi, n),
    }


def _transient_columns(rng: np.random.Generator, n: int, scenario: Scenario) -> dict[str, Any]:
    """New points of light, and one in five that has faded since the template."""
    flux = _snr_flux(rng, n, scenario)
    faded = rng.uniform(size=n) < 0.2
    return {
        **_steady(n),
        "kind": "transient",
        "template_flux": np.where(faded, flux, 0.0),
        "flux": np.where(faded, 0.0, flux),
    }


def _hosted_columns(rng: np.random.Generator, hosts: F8, counts: dict[str, int], scenario: Scenario) -> dict[str, Any]:
    n = counts["hosted"] if len(hosts) else 0
    return {**_steady(n), "kind": "hosted", "template_flux": np.zeros(n), "flux": _snr_flux(rng, n, scenario)}


def _in_hosts(rng: np.random.Generator, gx: F8, gy: F8, galaxies: pd.DataFrame, n: int) -> tuple[F8, F8]:
    """Places in galaxies, about as the light is spread."""
    if not len(gx):
        return np.empty(0), np.empty(0)
    host = rng.choice(len(gx), n, replace=n > len(gx))
    offset = rng.normal(0, 0.85, (2, n)) * galaxies["radius"].to_numpy()[host] / 3600.0
    return gx[host] + offset[0], gy[host] + offset[1]


def _mover_columns(rng: np.random.Generator, n: int, scenario: Scenario, *, trail: bool) -> dict[str, Any]:
    """Main-belt rates, 0.15 to 0.6 degrees a day; trails 2 to 8, bright enough to be seen."""
    low, high = (2.0, 8.0) if trail else (0.15, 0.6)
    rate = rng.uniform(low, high, n) * 3600.0 / 86400.0
    angle = rng.uniform(0, 2 * np.pi, n)
    flux = _snr_flux(rng, n, scenario, 25.0, 120.0) if trail else _snr_flux(rng, n, scenario)
    return {
        **_steady(n),
        "kind": "trail" if trail else "mover",
        "template_flux": np.zeros(n),
        "flux": flux,
        "rate_ra": rate * np.sin(angle),
        "rate_dec": rate * np.cos(angle),
    }
