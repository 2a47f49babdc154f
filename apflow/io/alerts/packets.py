"""Alert packets: DiaSources with their objects, history and cutouts as Avro data (DMTN-092 section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from astropy.time import Time
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.io.alerts.avro import Record
from apflow.io.alerts.columnar import Batch
from apflow.io.alerts.columns import check_table
from apflow.io.alerts.encode import Rows, Runs, Value, encode, join
from apflow.io.alerts.schema import AlertSchema, load_schema
from apflow.model.products import History, Packet

#: Difference, science and template stamps of one DiaSource, each a FITS file.
Cutouts = tuple[bytes, bytes, bytes]
I8 = NDArray[np.int64]
_STAMPS = ("cutoutDifference", "cutoutScience", "cutoutTemplate")
#: What a message holds besides the datum: framing, key, headers, and what Kafka adds to a batch.
_ENVELOPE_BYTES = 1024


def build_packets(
    sources: pd.DataFrame,
    objects: pd.DataFrame,
    history: History,
    forced: pd.DataFrame,
    cutouts: Mapping[int, Cutouts],
    schema_version: str | AlertSchema = "11.1",
    history_days: float = 365.0,
    processed_mjd_tai: float | None = None,
    *,
    nan_for_null: bool = False,
    max_message_bytes: int | None = None,
    ss_sources: pd.DataFrame | None = None,
    orbits: pd.DataFrame | None = None,
) -> tuple[Packet, ...]:
    """One Avro datum for each DiaSource, in the order of `sources`.

    Parameters
    ----------
    sources : `pandas.DataFrame`
        New DiaSources with diaObjectId set (or null, for a source of a Solar
        System object).
    objects : `pandas.DataFrame`
        New DiaObject versions, one for each diaObjectId of `sources`.
    history : `~apflow.model.products.History`
        Earlier DiaSources and DiaForcedSources; rows of `history_days` up to
        the source's own time are sent, in order of time.
    forced : `pandas.DataFrame`
        DiaForcedSources of this visit, which end the forced history.
    cutouts : `~collections.abc.Mapping`
        Stamps by diaSourceId; a source without any gets nulls.
    schema_version : `str` or `~apflow.io.alerts.schema.AlertSchema`
        Version of lsst-alert-packet, or a schema of one's own.
    history_days : `float`
        Length of the history, days.
    processed_mjd_tai : `float`, optional
        timeProcessedMjdTai of rows that the PPDB has not stamped yet; now when None.
    nan_for_null : `bool`
        Nullable floats that are unknown become NaN, as Rubin's production has
        them, instead of null.
    max_message_bytes : `int`, optional
        Longest message that the broker takes. A longer alert loses its oldest
        prvDiaForcedSources, then its oldest prvDiaSources, but neither the
        newest row of either nor a stamp, so it may still be longer. The
        packet tells how many rows it lost.
    ss_sources : `pandas.DataFrame`, optional
        Rows of SSSource, by diaSourceId, for the sources that are attributed
        to a Solar System object.
    orbits : `pandas.DataFrame`, optional
        Rows of mpc_orbits, by the designation that `ss_sources` names.

    Raises
    ------
    BadRequest
        The schema version does not exist.
    DataError
        A table does not fit the schema (the message names the field and the
        row), an id comes twice, a source's object is not among `objects`, or
        an SSSource names another ssObjectId than its DiaSource does.
    """
    if not len(sources):
        return ()
    now = Time.now().tai.mjd if processed_mjd_tai is None else processed_mjd_tai
    schema = load_schema(schema_version) if isinstance(schema_version, str) else schema_version
    tables = _Tables(schema, {"timeProcessedMjdTai": now}, nan_for_null)
    new = tables.check(sources, "diaSource", "DiaSource")
    ids = _unique(new, "diaSourceId")
    object_ids = np.where(new.known[new.position["diaObjectId"]], new.column("diaObjectId"), 0)
    stop = new.column("midpointMjdTai")
    window = object_ids, stop - history_days, stop
    light = _Past(tables, forced, "prvDiaForcedSources", object_ids)
    past = _Past(tables, history.forced, "prvDiaForcedSources", object_ids, light.ids)
    values: dict[str, Value] = {
        "diaSourceId": ids,
        "diaSource": _each(encode(new), np.arange(len(ids))),
        "diaObject": _objects(tables, objects, ids, object_ids),
        "prvDiaSources": (_Past(tables, history.sources, "prvDiaSources", object_ids, ids).between(*window),),
        "prvDiaForcedSources": (past.between(*window), light.between(*window)),
        **_solar_system(tables, new, ss_sources, orbits),
    }
    stamps = [cutouts.get(i, (None, None, None)) for i in ids.tolist()]
    values |= {name: [s[k] for s in stamps] for k, name in enumerate(_STAMPS)}
    moving = np.where(new.known[new.position["ssObjectId"]], new.column("ssObjectId"), 0)
    return _packets(schema, values, ids, np.where(object_ids != 0, object_ids, moving), max_message_bytes)


@dataclass(frozen=True)
class _Tables:
    """How tables become columns of one version of the schema."""

    schema: AlertSchema
    fill: Mapping[str, float]
    nan_for_null: bool

    def part(self, field: str) -> Record:
        """The record that a field of the alert holds; `load_schema` has seen that it is there."""
        record = self.schema.part(field)
        assert record is not None
        return record

    def check(self, table: pd.DataFrame, field: str, name: str) -> Batch:
        """Columns of a table for a field of the alert."""
        if not len(table):
            return Batch(self.part(field), 0, name)
        return check_table(table, self.part(field), name, self.fill, self.nan_for_null)


class _Past:
    """Rows of a table by object, in order of time, each encoded once."""

    def __init__(self, tables: _Tables, table: pd.DataFrame, field: str, object_ids: I8, exclude: I8 | None = None):
        name = field.removeprefix("prv").removesuffix("s")
        batch = tables.check(table, field, name)
        ids, objects, times = (batch.column(c) for c in (f"d{name[1:]}Id", "diaObjectId", "midpointMjdTai"))
        wanted = batch.known[batch.position["diaObjectId"]] & np.isin(objects, object_ids) & (objects != 0)
        if exclude is not None:
            wanted &= ~np.isin(ids, exclude)
        rows = np.flatnonzero(wanted)
        rows = rows[np.lexsort((ids[rows], times[rows], objects[rows]))]
        self.ids, self._objects, self._times = ids[rows], objects[rows], times[rows]
        self._rows = encode(batch, rows)

    def between(self, object_ids: I8, start: NDArray[np.float64], stop: NDArray[np.float64]) -> Runs:
        """Rows of each object with start <= midpointMjdTai <= stop."""
        low, high = (np.searchsorted(self._objects, object_ids, side) for side in ("left", "right"))
        for i in np.flatnonzero(high > low).tolist():
            times, first = self._times[low[i] : high[i]], low[i]
            low[i] = first + np.searchsorted(times, start[i], "left")
            high[i] = first + np.searchsorted(times, stop[i], "right")
        return Runs(self._rows, low, high)


def _objects(tables: _Tables, objects: pd.DataFrame, ids: I8, object_ids: I8) -> Runs:
    """The DiaObject of each source; none where it has none."""
    batch = tables.check(objects, "diaObject", "DiaObject")
    index = _find(_unique(batch, "diaObjectId"), object_ids)
    missing = (index < 0) & (object_ids != 0)
    if missing.any():
        i = int(np.argmax(missing))
        raise DataError(f"DiaObject {object_ids[i]} of DiaSource {ids[i]} is not among the {batch.n} given")
    return _each(encode(batch), index)


def _solar_system(
    tables: _Tables, new: Batch, ss_sources: pd.DataFrame | None, orbits: pd.DataFrame | None
) -> dict[str, Value]:
    """SSSource and orbit of each source that is attributed to a Solar System object."""
    if ss_sources is None or not len(ss_sources) or tables.schema.part("ssSource") is None:
        return {}
    batch = tables.check(ss_sources, "ssSource", "SSSource")
    index = _find(_unique(batch, "diaSourceId"), new.column("diaSourceId"))
    theirs, ours = batch.column("ssObjectId")[index], new.column("ssObjectId")
    wrong = (index >= 0) & ((theirs != ours) | ~new.known[new.position["ssObjectId"]])
    if wrong.any():
        i = int(np.argmax(wrong))
        source = new.column("diaSourceId")[i]
        raise DataError(f"SSSource of DiaSource {source} names ssObjectId {theirs[i]}; the DiaSource has {ours[i]}")
    values: dict[str, Value] = {"ssSource": _each(encode(batch), index)}
    if orbits is not None and len(orbits) and tables.schema.part("mpc_orbits") is not None:
        names = pd.Index(orbits["designation"])
        if not names.is_unique:
            raise DataError(
                f"mpc_orbits {names[names.duplicated()][0]} comes more than once; accepted: one row for each"
            )
        of_source = names.get_indexer(pd.Index(ss_sources["designation"]))
        known = encode(tables.check(orbits, "mpc_orbits", "mpc_orbits"))
        values["mpc_orbits"] = _each(known, np.where(index >= 0, of_source[index], -1))
    return values


def _packets(
    schema: AlertSchema, values: Mapping[str, Value], ids: I8, object_ids: I8, max_message_bytes: int | None
) -> tuple[Packet, ...]:
    values = {f.name: values[f.name] for f in schema.record.fields if f.name in values}
    datums, trimmed = join(schema.record, values, len(ids)), np.zeros(len(ids), np.int64)
    if max_message_bytes is not None:
        over = np.array([len(d) for d in datums]) + _ENVELOPE_BYTES - max_message_bytes
        if (over > 0).any():
            for name in ("prvDiaForcedSources", "prvDiaSources"):
                runs = values[name]
                assert isinstance(runs, tuple)
                values[name] = _trim(runs, over, trimmed)
            datums = join(schema.record, values, len(ids))
    rows = zip(ids.tolist(), object_ids.tolist(), datums, trimmed.tolist(), strict=True)
    return tuple(Packet(*row) for row in rows)


def _trim(runs: tuple[Runs, ...], over: I8, trimmed: I8) -> tuple[Runs, ...]:
    """Lists without their oldest rows, as many as make up for `over` bytes, but with their newest one.

    What is won is taken off `over`, and the rows are counted in `trimmed`.
    """
    out = []
    for k, run in enumerate(runs):
        starts, offsets = run.starts.copy(), run.rows.offsets
        for i in np.flatnonzero((over > 0) & (run.counts > 0)).tolist():
            newest = not any(later.counts[i] for later in runs[k + 1 :])
            gains = offsets[starts[i] : run.stops[i] + (not newest)] - offsets[starts[i]]
            dropped = min(int(np.searchsorted(gains, over[i])), len(gains) - 1)
            starts[i] += dropped
            over[i] -= gains[dropped]
            trimmed[i] += dropped
        out.append(Runs(run.rows, starts, run.stops))
    return tuple(out)


def _each(rows: Rows, index: I8) -> Runs:
    """One row each; none where the index is negative."""
    return Runs(rows, np.maximum(index, 0), index + 1)


def _find(keys: I8, wanted: I8) -> I8:
    """Positions of ids among unique keys; -1 where they are not there."""
    return pd.Index(keys).get_indexer(pd.Index(wanted)).astype(np.int64)


def _unique(batch: Batch, key: str) -> I8:
    ids: I8 = batch.column(key)
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise DataError(f"{key} {values[np.argmax(counts > 1)]} comes more than once; accepted: one row for each")
    return ids
