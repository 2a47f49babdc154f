"""A patch of sky that overlapping visits look at, and what each of their detectors makes of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.catalogs.forced import forced_rows
from apflow.config import Config
from apflow.model import schema
from apflow.model.camera import Camera, load_camera
from apflow.model.ids import source_id
from apflow.model.products import Associated, DetectorResult, History
from apflow.model.region import Region
from apflow.model.sky import deproject
from apflow.model.visit import Visit
from apflow.steps.associate import associate
from apflow.steps.package import packets_of, with_forced

F8 = NDArray[np.float64]

#: Four neighbours of the central raft, each 13.6 arcmin wide.
DETECTORS = (94, 95, 97, 98)
CENTRE = (9.865, -29.883)
FIRST = 2025042000100
DAY_OBS = 20250420
_CADENCE_D = 37.0 / 86400.0
_DITHER_ARCMIN = 3.0
_SPACING_ARCMIN = 4.0
_NOISE_DEG = 0.05 / 3600.0


@functools.cache
def _camera() -> Camera:
    return load_camera("lsstcam", None)


@dataclass(frozen=True)
class Sky:
    """Variables some 4 arcmin apart, all of which every visit detects with 0.05 arcsec of noise.

    Visits are of full LSSTCam detectors, dithered by up to 3 arcmin, so that a
    detector overlaps up to four of another visit.
    """

    seed: int = 1
    detectors: tuple[int, ...] = DETECTORS

    @functools.cached_property
    def places(self) -> tuple[F8, F8]:
        """True (ra, dec) of the variables, degrees."""
        steps = np.arange(-5, 6) * _SPACING_ARCMIN / 60.0
        x, y = (g.ravel() for g in np.meshgrid(steps, steps))
        jitter = np.random.default_rng(self.seed).uniform(-1.3, 1.3, (2, len(x))) / 60.0
        ra, dec = deproject(x + jitter[0], y + jitter[1], *CENTRE)
        return np.asarray(ra), np.asarray(dec)

    def visit(self, k: int) -> Visit:
        """The k-th visit."""
        dx, dy = np.random.default_rng([self.seed, k]).uniform(-_DITHER_ARCMIN, _DITHER_ARCMIN, 2) / 60.0
        ra, dec = deproject(np.array([dx]), np.array([dy]), 10.0, -30.0)
        name = f"MC_O_{DAY_OBS}_{FIRST % 100_000 + k:06d}"
        return Visit("LSSTCam", FIRST + k, f"group{k}", float(ra[0]), float(dec[0]), 0.0, "r_57", "r", 30.0, (name,))

    def mjd(self, k: int) -> float:
        """Mid-exposure of the k-th visit, MJD TAI."""
        return 60785.3 + k * _CADENCE_D

    def regions(self, k: int) -> dict[int, Region]:
        """Sky region of each detector of a visit."""
        visit, camera = self.visit(k), _camera()
        return {d: camera.region(camera.detector(d), visit.ra_deg, visit.dec_deg, 0.0) for d in self.detectors}

    def seen(self, k: int, detector: int) -> NDArray[np.int64]:
        """Numbers of the variables that a detector of a visit sees, in the order of its sources."""
        return np.flatnonzero(self.regions(k)[detector].contains(*self.places))

    def sources(self, k: int, detector: int) -> pd.DataFrame:
        """DiaSources of a detector-visit: the same at each call."""
        which = self.seen(k, detector)
        rng = np.random.default_rng([self.seed, k, detector])
        n, (ra, dec) = len(which), (p[which] for p in self.places)
        given = {
            "diaSourceId": [source_id(FIRST + k, detector, i + 1) for i in range(n)],
            "visit": FIRST + k,
            "detector": detector,
            "midpointMjdTai": self.mjd(k),
            "ra": ra + rng.normal(0, _NOISE_DEG, n) / np.cos(np.radians(dec)),
            "dec": dec + rng.normal(0, _NOISE_DEG, n),
            "raErr": _NOISE_DEG,
            "decErr": _NOISE_DEG,
            "x": 1.0,
            "y": 2.0,
            "psfFlux": rng.normal(1000, 50, n),
            "psfFluxErr": 50.0,
            "band": "r",
        }
        return schema.conform(pd.DataFrame(given), "DiaSource")

    def truth(self, visits: Sequence[int]) -> dict[int, int]:
        """Number of the variable of each DiaSource of some visits."""
        return {
            source_id(FIRST + k, d, i + 1): int(place)
            for k in visits
            for d in self.detectors
            for i, place in enumerate(self.seen(k, d))
        }

    def result(self, k: int, detector: int, associated: Associated, history: History, config: Config) -> DetectorResult:
        """What the graph hands to the gathers, with forced fluxes of what was detected and without stamps."""
        flux = np.ones(len(associated.objects))
        forced = forced_rows(
            associated.objects,
            psf_flux=flux,
            psf_flux_err=flux,
            science_flux=flux,
            science_flux_err=flux,
            visit=FIRST + k,
            detector=detector,
            band="r",
            midpoint_mjd_tai=self.mjd(k),
        )
        associated = with_forced(associated, history, forced)
        packets = packets_of(associated, history, forced, {}, config)
        tables = (associated.sources, associated.objects, forced)
        more = (1.0, self.mjd(k), DAY_OBS)
        return DetectorResult(
            self.visit(k), detector, *tables, associated.guard, packets, (), *more, matches=associated.matches
        )

    def process(self, k: int, detector: int, history: History, config: Config) -> DetectorResult:
        """Associate a detector-visit by the graph's step, and pack its alerts."""
        return self.result(k, detector, associate(self.sources(k, detector), history, config), history, config)
