"""Alerts of a repository: which there are, where they are, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from apflow.config import Config
from apflow.errors import BadRequest
from apflow.io.alerts.archive import nights, open_archive
from apflow.io.ppdb import Ppdb
from apflow.model.products import OutboxRow

#: Columns of a listing that come from the DiaSource.
_OF_SOURCE = ("band", "snr", "psfFlux", "psfFluxErr", "midpointMjdTai", "timeWithdrawnMjdTai")
_PLACE = ("file", "offset", "length", "checksum")


@dataclass(frozen=True)
class Which:
    """Which alerts; all conditions given must hold.

    Attributes
    ----------
    night : `int`, optional
        Day of observation, YYYYMMDD.
    visit, detector : `int`, optional
    alert_ids : `tuple` [`int`, ...]
        Ids of alerts, which are those of their DiaSources; any when empty.
    object_id : `int`, optional
        DiaObject.
    """

    night: int | None = None
    visit: int | None = None
    detector: int | None = None
    alert_ids: tuple[int, ...] = ()
    object_id: int | None = None

    @property
    def everything(self) -> bool:
        """Whether no condition is given."""
        return self == Which()

    def __str__(self) -> str:
        given = {"night": self.night, "visit": self.visit, "detector": self.detector, "object": self.object_id}
        parts = [f"{name} {value}" for name, value in given.items() if value is not None]
        parts += [f"id {i}" for i in self.alert_ids]
        return ", ".join(parts) or "any alert"


def list_alerts(ppdb: Ppdb, config: Config, which: Which) -> pd.DataFrame:
    """Announced alerts, by visit, detector and id.

    Returns
    -------
    alerts : `pandas.DataFrame`
        The columns of the outbox; of the DiaSource band, snr, psfFlux and
        psfFluxErr (nJy), midpointMjdTai and timeWithdrawnMjdTai; arrived_unix
        (end of readout); and state: ``sent``, ``late`` (sent, but more than
        `~apflow.config_tables.Kafka.late_after_s` after the end of readout),
        ``pending``, ``refused`` or ``withdrawn``.

    Raises
    ------
    BadRequest
        The archive has no such night, or an id was never announced.
    """
    where: dict[str, Sequence[int]] = {}
    if which.night is not None:
        if which.night not in (known := nights(config.alerts_url)):
            accepted = ", ".join(map(str, known)) or "none, the archive is empty"
            raise BadRequest(f"alert archive {config.alerts_url} has no night {which.night}; accepted: {accepted}")
        where["visit"] = range(which.night * 100_000, (which.night + 1) * 100_000)
    if which.visit is not None:
        if which.night is not None and which.visit not in where["visit"]:
            raise BadRequest(f"visit {which.visit} is not of night {which.night}; give one of the two")
        where["visit"] = [which.visit]
    for column, value in (("detector", which.detector), ("object_id", which.object_id)):
        if value is not None:
            where[column] = [value]
    if which.alert_ids:
        where["alert_id"] = which.alert_ids
    alerts = ppdb.table("outbox", where)
    unknown = sorted(set(which.alert_ids) - set(alerts["alert_id"]))
    if unknown:
        others = ", with the other conditions given" if len(where) > 1 else ""
        raise BadRequest(f"alert {unknown[0]} is not known to the PPDB {config.ppdb_url}{others}")
    alerts = alerts.sort_values(["visit", "detector", "alert_id"], ignore_index=True)
    return _with_state(_with_arrival(_with_source(alerts, ppdb), ppdb), config.kafka.late_after_s)


def outbox_rows(alerts: pd.DataFrame) -> list[OutboxRow]:
    """Places of listed alerts in the archive."""
    names = ("alert_id", "object_id", "visit", "detector", *_PLACE)
    kinds = (int, int, int, int, str, int, int, int)
    return [
        OutboxRow(*(kind(value) for kind, value in zip(kinds, row, strict=True)))
        for row in zip(*(alerts[c] for c in names), strict=True)
    ]


def read_alerts(config: Config, alerts: pd.DataFrame) -> list[tuple[bytes, Any]]:
    """Data of listed alerts, unframed, from the archive, each with the schema that it was written with.

    Raises
    ------
    DataError
        A file is missing or damaged.
    """
    rows = outbox_rows(alerts)
    archive = open_archive(config.alerts_url, config.packets.schema_version)
    return [(datum, archive.definition(row)) for datum, row in zip(archive.read_many(rows), rows, strict=True)]


def _with_source(alerts: pd.DataFrame, ppdb: Ppdb) -> pd.DataFrame:
    ids = alerts["alert_id"].to_list()
    sources = ppdb.table("DiaSource", {"diaSourceId": ids})[["diaSourceId", *_OF_SOURCE]]
    sources.attrs = {}
    return alerts.merge(sources, how="left", left_on="alert_id", right_on="diaSourceId").drop(columns="diaSourceId")


def _with_arrival(alerts: pd.DataFrame, ppdb: Ppdb) -> pd.DataFrame:
    visits: Mapping[str, Sequence[int]] = {"visit": sorted(set(alerts["visit"]))}
    ledger = ppdb.table("ledger", visits)[["visit", "detector", "arrived_unix"]]
    ledger = ledger.groupby(["visit", "detector"], as_index=False).max()
    return alerts.merge(ledger, how="left", on=["visit", "detector"])


def _with_state(alerts: pd.DataFrame, late_after_s: float) -> pd.DataFrame:
    known = alerts.columns
    withdrawn = alerts["timeWithdrawnMjdTai"].notna()
    if "withdrawn_mjd_tai" in known:
        withdrawn |= alerts["withdrawn_mjd_tai"].notna()
    refused = alerts["refused"].notna() if "refused" in known else pd.Series(False, index=alerts.index)
    pending = alerts["published_unix"].isna()
    late = alerts["published_unix"] - alerts["arrived_unix"] > late_after_s
    state = np.select([withdrawn, refused, pending, late], ["withdrawn", "refused", "pending", "late"], "sent")
    return alerts.assign(state=state.astype(object))
