"""The peer of `bench_ppdb.py`: lsst.dax.apdb's ApdbSql on the same PostgreSQL, with the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
from astropy.time import Time
from lsst.dax.apdb import Apdb
from lsst.dax.apdb.sql import ApdbSql
from lsst.sphgeom import Angle, Circle, HtmPixelization, LonLat, Region, UnitVector3d
from numpy.typing import NDArray
from ppdb_workload import DETECTORS, HISTORY, NOW_MJD, Field, mjd_of

from apflow.io.ppdb.postgres.copy import copy_in
from apflow.model import schema

_PIXELS = HtmPixelization(20)
_SKY = ("DiaObject", "DiaSource")
_TYPES = {
    pa.float32(): "float4",
    pa.float64(): "float8",
    pa.int16(): "int2",
    pa.int32(): "int4",
    pa.int64(): "int8",
    pa.bool_(): "bool",
}


class Peer:
    """A database of ApdbSql's own, filled by COPY since its own store would take hours."""

    def __init__(self, url: str) -> None:
        self._url = url
        config = ApdbSql.init_database(db_url=url.replace("postgresql://", "postgresql+psycopg2://", 1))
        self._apdb = Apdb.from_config(config)

    def load(self, fields: Sequence[Field]) -> None:
        """A year of history of each field."""
        with psycopg.connect(self._url) as connection, connection.cursor() as cursor:
            for field in fields:
                for k in range(HISTORY):
                    self._copy(cursor, "DiaSource", field.sources(k))
                    self._copy(cursor, "DiaForcedSource", field.forced(k))
                self._copy(cursor, "DiaObject", field.objects(HISTORY - 1))
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")

    def _copy(self, cursor: psycopg.Cursor, name: str, rows: pd.DataFrame) -> None:
        table = pa.table({c: pa.array(v, from_pandas=True) for c, v in schema.bare(rows).items()})
        if name in _SKY:
            table = table.append_column("pixelId", pa.array(_pixels(rows)))
        copy_in(cursor, name, table, [_TYPES.get(c.type, "text") for c in table.columns])

    def read_detector(self, field: Field, detector: int) -> int:
        """Everything association reads of one detector, as Rubin's does it; gives the number of rows."""
        return sum(len(t) for t in self.tables(field, detector))

    def tables(self, field: Field, detector: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The DiaObjects, DiaSources and DiaForcedSources of one detector."""
        return self._read(field.regions[detector].to_sphgeom())

    def read_visit(self, field: Field) -> int:
        """The same for the whole focal plane in one call."""
        ra, dec = field.boresight
        around = Circle(UnitVector3d(LonLat.fromDegrees(ra, dec)), Angle.fromDegrees(2.05))
        return sum(len(t) for t in self._read(around))

    def _read(self, region: Region) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        time = Time(NOW_MJD, format="mjd", scale="tai")
        objects = self._apdb.getDiaObjects(region)
        ids = objects["diaObjectId"].tolist()
        sources = self._apdb.getDiaSources(region, ids, time)
        forced = self._apdb.getDiaForcedSources(region, ids, time)
        assert sources is not None and forced is not None  # it is so only where it keeps no history
        return objects, sources, forced

    def write(self, objects: pd.DataFrame, sources: pd.DataFrame, forced: pd.DataFrame, k: int) -> None:
        """One store: three tables, one transaction."""
        self._apdb.store(Time(mjd_of(k), format="mjd", scale="tai"), objects, sources, forced)

    def write_detectors(self, field: Field, k: int) -> None:
        """A store for each detector."""
        tables = [schema.bare(t) for t in (field.objects(k), field.sources(k), field.forced(k))]
        n = field.per_detector
        for i in range(len(DETECTORS)):
            objects, sources, forced = (t.iloc[i * n : (i + 1) * n].reset_index(drop=True) for t in tables)
            self.write(objects, sources, forced, k)


def _pixels(rows: pd.DataFrame) -> NDArray[np.int64]:
    points = zip(rows["ra"].tolist(), rows["dec"].tolist(), strict=True)
    return np.array([_PIXELS.index(UnitVector3d(LonLat.fromDegrees(*p))) for p in points], np.int64)
