"""An lsst.dax.apdb: its calls in our units, frames that conform, and its errors in the project's words."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic
import sqlalchemy.exc
import yaml
from astropy.time import Time
from numpy.typing import NDArray

from apflow.errors import ApflowError, BadRequest, DataError, ServiceError
from apflow.io.ppdb.parts import ROW_ID
from apflow.io.ppdb.postgres.connect import retrying
from apflow.io.ppdb.sky_index import members, unit_vectors
from apflow.model import schema
from apflow.model.region import Region
from apflow.model.sky import deproject, separation_arcsec

try:
    from lsst.dax.apdb import Apdb, ApdbConfig
    from lsst.dax.apdb.recordIds import DiaSourceId
    from lsst.dax.apdb.sql import ApdbSqlConfig
    from lsst.dax.apdb.versionTuple import IncompatibleVersionError
except ImportError as error:
    raise BadRequest(f"dax:// needs lsst.dax.apdb: {error}; accepted: pip install 'apflow[apdb]'") from error
try:
    from cassandra import DriverException
    from cassandra.cluster import NoHostAvailable

    _CASSANDRA: tuple[type[Exception], ...] = (DriverException, NoHostAvailable)
except ImportError:
    _CASSANDRA = ()

#: How long an Apdb that cannot be reached is tried.
PATIENCE_S = 30.0
#: An Apdb's bounds of time are some open, some closed: ask for a second more, and cut here.
_SECOND_D = 1.0 / 86400.0
#: A source may lie this far from its object, and so beyond the region that holds the object.
_REACH_ARCSEC = 10.0


_lock = threading.Lock()
#: An Apdb reads its schema for half a second, so a process keeps it; a forked child makes its own.
_open: dict[tuple[int, Path], Apdb] = {}


def _fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_fork)


def _opened(path: Path) -> Apdb:
    with _lock:
        if (os.getpid(), path) not in _open:
            _open[os.getpid(), path] = _made(path)
        return _open[os.getpid(), path]


def _made(path: Path) -> Apdb:
    try:
        config: Any = ApdbConfig.from_uri(str(path))
        if isinstance(config, ApdbSqlConfig):
            # Connections that are kept would outlive every handle.
            config.connection_config.connection_pool = False
        with errors():
            apdb = Apdb.from_config(config)
            apdb.getConfig()  # Cassandra connects only now
    except pydantic.ValidationError as error:  # whose own words quote the configuration, which may hold a password
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadRequest(f"{path} is no configuration of an Apdb: {told}; accepted: what apdb-cli writes") from None
    except (LookupError, TypeError, ValueError, yaml.YAMLError, sqlalchemy.exc.ArgumentError) as error:
        raise BadRequest(f"{path} is no configuration of an Apdb: {error}; accepted: what apdb-cli writes") from error
    except sqlalchemy.exc.NoSuchTableError as error:
        raise BadRequest(f"Apdb {path} has no table {error}; accepted: one made by apdb-cli create-sql") from error
    except (ModuleNotFoundError, IncompatibleVersionError) as error:
        raise BadRequest(f"Apdb {path}: {error}; accepted: {schema.version()}") from error
    return apdb


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Give an Apdb's errors as the project's; statements and their values stay out of messages.

    Raises
    ------
    DataError
        A value or a key is refused.
    BadRequest
        Tables or columns are missing.
    ServiceError
        The database cannot be reached, is locked, read-only or full.
    """
    try:
        yield
    except sqlalchemy.exc.DBAPIError as error:
        raise _translated(error) from error.orig
    except pd.errors.DatabaseError as error:  # to_sql wraps them
        if not isinstance(error.__cause__, sqlalchemy.exc.DBAPIError):
            raise
        raise _translated(error.__cause__) from error.__cause__.orig
    except _CASSANDRA as error:
        raise ServiceError(f"Apdb on Cassandra: {' '.join(str(error).split())}; trying again is safe") from error


def _translated(error: sqlalchemy.exc.DBAPIError) -> ApflowError:
    text = " ".join(str(error.orig).split())
    if isinstance(error, (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.DataError)):
        return DataError(f"Apdb: {text}")
    if isinstance(error, sqlalchemy.exc.ProgrammingError):
        return BadRequest(f"Apdb: {text}; accepted: a database with the tables of apdb.yaml {schema.version()}")
    return ServiceError(f"Apdb: {text}; trying again is safe")


def _time(mjd_tai: float) -> Time:
    return Time(mjd_tai, format="mjd", scale="tai")


class Door:
    """An Apdb by the path of its configuration; may be used from many threads and after a fork.

    Raises
    ------
    BadRequest
        There is no such file, it is no configuration, or the database is of another schema version.
    ServiceError
        The database cannot be reached.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise BadRequest(
                f"Apdb configuration {path} does not exist; accepted: one that a DBA made with the database, "
                f"by apdb-cli create-sql <db_url> {path} or apdb-cli create-cassandra <host> <keyspace> {path}"
            )
        self._apdb  # noqa: B018, opened now, so that a bad one is refused now

    @property
    def _apdb(self) -> Apdb:
        return _opened(self.path)

    def close(self) -> None:
        """Let go of it; other handles open it anew."""
        with _lock:
            _open.pop((os.getpid(), self.path), None)

    @property
    def config(self) -> Any:
        """Its configuration, with what the database holds of it."""
        return self._apdb.getConfig()

    @property
    def transactional(self) -> bool:
        """Whether a store is there as a whole or not at all."""
        return isinstance(self.config, ApdbSqlConfig)

    @property
    def one_writer(self) -> bool:
        """Whether writers have to take turns, wherever on the sky."""
        config = self.config
        return isinstance(config, ApdbSqlConfig) and config.db_url.startswith("sqlite")

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            with errors():
                yield
        except ServiceError:
            self.close()  # Cassandra's driver takes minutes to see that a cluster is back
            raise

    def _read(self, call: str, *arguments: Any) -> Any:
        def once() -> Any:
            with self._asked(), warnings.catch_warnings():
                # A year of history may begin before the first partition in time of a Cassandra.
                warnings.filterwarnings("ignore", message="Query time range")
                return getattr(self._apdb, call)(*arguments)

        return retrying(once, PATIENCE_S)

    def objects(self, region: Region) -> pd.DataFrame:
        """Current versions of the DiaObjects inside a region, by id; what the Apdb does not give is null.

        Raises
        ------
        DataError
            An object has more than one current version.
        """
        rows = _conformed(self._read("getDiaObjects", region.to_sphgeom()), "DiaObject", ["diaObjectId"])
        rows = rows.iloc[members(rows["ra"].to_numpy(), rows["dec"].to_numpy(), [region])[0]].reset_index(drop=True)
        twice = rows["diaObjectId"].duplicated()
        if twice.any():
            raise DataError(f"Apdb DiaObject {rows['diaObjectId'][twice].iloc[0]} has more than one current version")
        return rows

    def history(
        self, name: str, region: Region, ids: Sequence[int] | None, since_mjd: float, until_mjd: float
    ) -> pd.DataFrame:
        """Rows of DiaSource or DiaForcedSource in a span of time, by time and id, withdrawn ones included.

        Of objects, whose positions `region` must hold, or of the region where ids are None.
        """
        wide = region.grown(_REACH_ARCSEC)
        if name == "DiaForcedSource" and ids is None:  # ApdbSql has no index for it
            ids = self.objects(wide)["diaObjectId"].tolist()
            inside: Region | None = region
        else:
            inside = region if ids is None else None
        span = (_time(until_mjd + _SECOND_D), _time(since_mjd - _SECOND_D))
        given = None if ids is None else [int(i) for i in ids]
        found = self._read(f"get{name}s", wide.to_sphgeom(), given, *span)
        rows = _conformed(found, name, ["midpointMjdTai", ROW_ID[name]])
        keep = rows["midpointMjdTai"].between(since_mjd, until_mjd).to_numpy(bool)
        if inside is not None:
            keep = keep & inside.contains(rows["ra"].to_numpy(), rows["dec"].to_numpy())
        return rows if keep.all() else rows[keep].reset_index(drop=True)

    def contains(self, visit: int, detector: int) -> bool:
        """Whether there is a row of a detector-visit, or on Cassandra the beginning of a store."""
        return bool(self._read("containsVisitDetector", visit, detector))

    def store(self, start_mjd: float, objects: pd.DataFrame, sources: pd.DataFrame, forced: pd.DataFrame) -> None:
        """Store rows; the versions of the objects are valid from `start_mjd`. Not to be repeated blindly."""
        rows = [schema.bare(f) for f in (objects, sources, forced)]
        with self._asked():
            try:
                self._apdb.store(_time(start_mjd), *rows)
            except ValueError as error:
                if self.transactional:
                    raise
                # Found out in the middle: it is finished when there are partitions for it.
                raise ServiceError(f"Apdb on Cassandra: {error} A DBA adds them by apdb-cli partition.") from error

    def withdraw(self, sources: pd.DataFrame, mjd_tai: float) -> None:
        """Set timeWithdrawnMjdTai of DiaSources."""
        ids = [DiaSourceId.from_named_tuple(row) for row in schema.bare(sources).itertuples(index=False)]
        with self._asked():
            self._apdb.withdrawDiaSources(ids, timeWithdrawn=_time(mjd_tai))


def _conformed(rows: pd.DataFrame, name: str, order: list[str]) -> pd.DataFrame:
    known = [c for c in rows.columns if c in schema.table(name).names]
    frame = schema.conform(rows[known], name)
    keys = [frame[c].to_numpy() for c in reversed(order)]
    in_order = frame.iloc[np.lexsort(keys)].reset_index(drop=True)
    in_order.attrs = frame.attrs
    return in_order


def about(ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64], margin_arcsec: float = _REACH_ARCSEC) -> Region:
    """A square region that holds positions with a margin; they lie within some degrees of one another."""
    x, y, z = unit_vectors(ra_deg, dec_deg).mean(0)
    ra, dec = math.degrees(math.atan2(y, x)) % 360.0, math.degrees(math.atan2(z, math.hypot(x, y)))
    reach_deg = (float(separation_arcsec(ra, dec, ra_deg, dec_deg).max()) + margin_arcsec) / 3600.0
    half = math.degrees(math.tan(math.radians(reach_deg)))
    corners = half * np.array([[1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    return Region(np.stack(deproject(corners[:, 0], corners[:, 1], ra, dec), -1))
