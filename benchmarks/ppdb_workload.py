"""The workload of `bench_ppdb.py`: a focal plane of DiaObjects with a year of history, and a new visit of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.io.ppdb.interface import Wanted
from apflow.model import schema
from apflow.model.camera import load_camera
from apflow.model.ids import source_id
from apflow.model.products import DetectorResult
from apflow.model.region import Region
from apflow.model.sky import deproject, project
from apflow.model.visit import Visit

DETECTORS = range(189)
OBJECTS = 50  # a detector
HISTORY = 21  # earlier visits of the field
NOW_MJD = 60785.3
FIRST_VISIT = 2025042000100
_MAS_DEG = 1e-3 / 3600.0


def raft(detector: int) -> int:
    """Number of a detector's raft."""
    return detector // 9


def mjd_of(k: int) -> float:
    """Mid-exposure of the k-th visit of a field: 16 days apart, the last of `HISTORY` just before now."""
    return NOW_MJD - 16.0 * (HISTORY - k)


@dataclass(frozen=True)
class Field:
    """One pointing. Fields do not touch, so that reading one reads nothing of the others.

    `per_detector` objects on each detector, all of which every visit detects.
    """

    number: int = 0
    per_detector: int = OBJECTS

    @property
    def boresight(self) -> tuple[float, float]:
        """(ra, dec), degrees."""
        row, column = divmod(self.number, 30)
        return 12.0 * column, -60.0 + 5.0 * row  # 6 degrees apart on the sky: a focal plane is 3.5 across

    @functools.cached_property
    def regions(self) -> Mapping[int, Region]:
        """Sky region of each detector."""
        camera = load_camera("lsstcam", None)
        return {d: camera.region(camera.detector(d), *self.boresight, 0.0) for d in DETECTORS}

    @functools.cached_property
    def positions(self) -> Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """(ra, dec) of the objects of each detector, spread over its inner part."""
        rng = np.random.default_rng(self.number)
        out = {}
        for d, region in self.regions.items():
            centre = region.centre
            x, y = project(region.vertices[:, 0], region.vertices[:, 1], *centre)
            u, v = rng.uniform(0.12, 0.88, (2, self.per_detector))
            out[d] = deproject(x.min() + u * np.ptp(x), y.min() + v * np.ptp(y), *centre)
        return out

    def visit_id(self, k: int) -> int:
        """Id of the k-th visit: unlike any of another field."""
        day, slot = divmod(self.number, 300)
        return FIRST_VISIT + 100_000 * day + 100 * slot + k

    def visit(self, k: int) -> Visit:
        """The k-th visit."""
        ra, dec = self.boresight
        number = self.visit_id(k)
        name = f"MC_O_{number // 100_000}_{number % 100_000:06d}"
        return Visit("LSSTCam", number, f"group{number}", ra, dec, 0.0, "r_57", "r", 30.0, (name,))

    def object_ids(self, detector: int) -> NDArray[np.int64]:
        """DiaObjects have the ids of their first DiaSources."""
        return source_id(self.visit_id(0), detector, 1) + np.arange(self.per_detector)

    def wanted(self, detector: int) -> Wanted:
        """What the association of a new visit asks for."""
        ra, dec = self.positions[detector]
        return Wanted(self.regions[detector], ra, dec, NOW_MJD)

    def sources(self, k: int, detectors: range = DETECTORS) -> pd.DataFrame:
        """DiaSources of the k-th visit with every column filled."""
        return self._rows("DiaSource", k, detectors)

    def forced(self, k: int, detectors: range = DETECTORS) -> pd.DataFrame:
        """DiaForcedSources of the k-th visit."""
        return self._rows("DiaForcedSource", k, detectors)

    def objects(self, k: int, detectors: range = DETECTORS) -> pd.DataFrame:
        """DiaObject versions that the k-th visit makes."""
        fixed = {"validityStartMjdTai": mjd_of(k), "lastDiaSourceMjdTai": mjd_of(k), "nDiaSources": k + 1}
        rows = self._rows("DiaObject", k, detectors)
        return schema.conform(
            rows.assign(**fixed, firstDiaSourceMjdTai=mjd_of(0), validityEndMjdTai=np.nan), "DiaObject"
        )

    def _rows(self, name: str, k: int, detectors: range) -> pd.DataFrame:
        n = self.per_detector * len(detectors)
        rng = np.random.default_rng([self.number, k, len(name)])
        ra, dec = (np.concatenate([self.positions[d][i] for d in detectors]) for i in (0, 1))
        first = [source_id(self.visit_id(k), d, 1) for d in detectors]
        ids = np.repeat(first, self.per_detector) + np.tile(np.arange(self.per_detector), len(detectors))
        data: dict[str, object] = {
            c.name: _filler(c.dtype, n, rng) for c in schema.table(name).columns if c.dtype[0] in "fb"
        }
        data |= {
            "ra": (ra + rng.normal(0, 20 * _MAS_DEG, n)) % 360.0,
            "dec": dec + rng.normal(0, 20 * _MAS_DEG, n),
            "diaObjectId": np.concatenate([self.object_ids(d) for d in detectors]),
        }
        if name != "DiaObject":
            data |= {
                "diaSourceId" if name == "DiaSource" else "diaForcedSourceId": ids,
                "visit": self.visit_id(k),
                "detector": np.repeat(np.array(detectors, np.int16), self.per_detector),
                "midpointMjdTai": mjd_of(k),
                "timeProcessedMjdTai": mjd_of(k) + 0.0005,
                "timeWithdrawnMjdTai": np.nan,
                "band": "r",
            }
        return schema.conform(pd.DataFrame(data), name)

    def results(self, k: int, version_mjd: float) -> list[DetectorResult]:
        """What the detectors of the k-th visit hand to the gathers; `version_mjd` is what they read of the objects."""
        tables = [self.sources(k), self.objects(k), self.forced(k)]
        out = []
        for i, d in enumerate(DETECTORS):
            rows = slice(i * self.per_detector, (i + 1) * self.per_detector)
            sources, objects, forced = (t.iloc[rows].reset_index(drop=True) for t in tables)
            guard = dict.fromkeys(self.object_ids(d).tolist(), version_mjd)
            out.append(
                DetectorResult(self.visit(k), d, sources, objects, forced, guard, (), (), 0.0, mjd_of(k), 20250420)
            )
        return out


def _filler(dtype: str, n: int, rng: np.random.Generator) -> NDArray[np.generic]:
    if dtype.startswith("f"):
        return rng.uniform(0.01, 1.0, n).astype(dtype)
    return rng.random(n) < 0.5


def fields(n_sources: int) -> Iterator[Field]:
    """As many fields as hold `n_sources` DiaSources."""
    for i in range(max(1, round(n_sources / (len(DETECTORS) * OBJECTS * HISTORY)))):
        yield Field(i)
