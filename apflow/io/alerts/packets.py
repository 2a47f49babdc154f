"""Alert packets: DiaSources with their objects, history and cutouts as Avro data (DMTN-092 section 6)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import fastavro
import numpy as np
import pandas as pd
from astropy.time import Time
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.io.alerts.columns import check_table, to_records
from apflow.io.alerts.schema import Field, load_schema
from apflow.model.products import History, Packet

#: Difference, science and template stamps of one DiaSource, each a FITS file.
Cutouts = tuple[bytes, bytes, bytes]


def build_packets(
    sources: pd.DataFrame,
    objects: pd.DataFrame,
    history: History,
    forced: pd.DataFrame,
    cutouts: Mapping[int, Cutouts],
    schema_version: str = "11.1",
    history_days: float = 365.0,
    processed_mjd_tai: float | None = None,
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
    schema_version : `str`
        Version of lsst-alert-packet.
    history_days : `float`
        Length of the history, days.
    processed_mjd_tai : `float`, optional
        timeProcessedMjdTai of rows that the PPDB has not stamped yet; now when None.

    Raises
    ------
    BadRequest
        The schema version does not exist.
    DataError
        A table does not fit the schema (the message names the field), an id
        comes twice, or a source's object is not among `objects`.
    """
    schema = load_schema(schema_version)
    if not len(sources):
        return ()
    stamp = {"timeProcessedMjdTai": Time.now().tai.mjd if processed_mjd_tai is None else processed_mjd_tai}
    records = _records(sources, schema.sources, "DiaSource", stamp)
    ids = _unique(records, "diaSourceId")
    versions = _records(objects, schema.objects, "DiaObject", stamp)
    by_object = dict(zip(_unique(versions, "diaObjectId"), versions, strict=True))
    wanted = list(by_object)
    earlier = _Series(history.sources, schema.sources, "diaSourceId", wanted, ids, stamp)
    now = _Series(forced, schema.forced, "diaForcedSourceId", wanted, [], stamp)
    light = _Series(history.forced, schema.forced, "diaForcedSourceId", wanted, now.ids, stamp)
    packets = []
    for source_id, source in zip(ids, records, strict=True):
        object_id, stop = source.get("diaObjectId"), source["midpointMjdTai"]
        window = (object_id, stop - history_days, stop)
        if object_id is not None and object_id not in by_object:
            raise DataError(f"DiaObject {object_id} of DiaSource {source_id} is not among the {len(by_object)} given")
        difference, science, template = cutouts.get(source_id, (None, None, None))
        alert = {
            "diaSourceId": source_id,
            "diaSource": source,
            "prvDiaSources": earlier.between(*window) or None,
            "prvDiaForcedSources": light.between(*window) + now.between(*window) or None,
            "diaObject": None if object_id is None else by_object[object_id],
            "cutoutDifference": difference,
            "cutoutScience": science,
            "cutoutTemplate": template,
        }
        packets.append(Packet(source_id, object_id or 0, _encode(schema.definition, alert)))
    return tuple(packets)


def _encode(definition: dict[str, Any], alert: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, definition, alert)
    return buffer.getvalue()


class _Series:
    """Rows of a table by object, in order of time."""

    def __init__(
        self,
        table: pd.DataFrame,
        fields: tuple[Field, ...],
        key: str,
        object_ids: list[int],
        exclude: list[int],
        fill: Mapping[str, float],
    ) -> None:
        self.ids: list[int] = []
        self._objects = np.empty(0, np.int64)
        if not len(table) or not object_ids:
            return
        name = key[0].upper() + key.removesuffix("Id")[1:]
        columns = check_table(table, fields, name, fill)
        if "diaObjectId" not in columns:
            return
        ids, objects, times = (columns[c].values for c in (key, "diaObjectId", "midpointMjdTai"))
        rows = np.flatnonzero(np.isin(objects, object_ids) & ~np.isin(ids, exclude))
        rows = rows[np.lexsort((ids[rows], times[rows], objects[rows]))]
        self.ids, self._objects, self._times = ids[rows].tolist(), objects[rows], times[rows]
        self._records = to_records({name: column.take(rows) for name, column in columns.items()})

    def between(self, object_id: int | None, start: float, stop: float) -> list[dict[str, Any]]:
        """Rows of an object with start <= midpointMjdTai <= stop."""
        if object_id is None:
            return []
        low, high = (int(np.searchsorted(self._objects, object_id, side)) for side in ("left", "right"))
        if low == high:
            return []
        times: NDArray[np.float64] = self._times[low:high]
        first, last = np.searchsorted(times, start, "left"), np.searchsorted(times, stop, "right")
        return self._records[low + first : low + last]


def _records(
    table: pd.DataFrame, fields: tuple[Field, ...], name: str, fill: Mapping[str, float]
) -> list[dict[str, Any]]:
    return to_records(check_table(table, fields, name, fill)) if len(table) else []


def _unique(records: list[dict[str, Any]], key: str) -> list[int]:
    ids = [r[key] for r in records]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise DataError(f"{key} {twice} comes more than once; accepted: one row for each")
    return ids
