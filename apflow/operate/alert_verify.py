"""``apflow alerts verify``: an archive or a topic, read again and held against the PPDB."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from apflow.config import Config
from apflow.errors import DataError
from apflow.io.alerts.archive import find, nights, open_archive
from apflow.io.kafka.consume import Decoder, Received
from apflow.io.ppdb import Ppdb
from apflow.model import schema as apdb
from apflow.model.products import OutboxRow
from apflow.operate.alert_checks import Report, check_alert, decode
from apflow.operate.alert_list import Which, list_alerts, outbox_rows

#: Alerts held in memory at once: about 25 MB.
_CHUNK = 256
#: Bytes of Confluent's frame.
_FRAME = 5
#: Columns that the PPDB changes after the alert was made.
_LATER = ("timeProcessedMjdTai", "timeWithdrawnMjdTai", "ssObjectReassocTimeMjdTai")
_REASSOCIATED = ("diaObjectId", "ssObjectId")


def verify_archive(ppdb: Ppdb, config: Config, which: Which) -> Report:
    """Check announced alerts, as they lie in the archive.

    Raises
    ------
    BadRequest
        There is no such night, or an id is not known.
    """
    report = Report()
    alerts = list_alerts(ppdb, config, which)
    _compare_index(report, config, which, alerts)
    for visit, of_visit in alerts.groupby("visit"):
        sources = []
        for rows in itertools.batched(outbox_rows(of_visit), _CHUNK):
            sources += _check_rows(report, config, rows)
        _check_values(report, sources, ppdb.table("DiaSource", {"visit": [int(str(visit))]}))
    if not which.alert_ids and which.object_id is None:
        _check_once(report, ppdb, which, alerts["alert_id"].to_list())
    return report


def verify_topic(ppdb: Ppdb, config: Config, which: Which, messages: Iterable[Received]) -> Report:
    """Check the messages of a topic, and that every alert that was sent is there once.

    Messages that are exact copies are counted, not held against the sender:
    delivery is at least once.
    """
    report, seen, copies = Report(), dict[int, int](), 0
    expected = list_alerts(ppdb, config, which)
    wanted, decoder = set(expected["alert_id"]), Decoder(config.kafka)
    for chunk in itertools.batched(messages, _CHUNK):
        sources = []
        for received in chunk:
            alert = _decode_message(report, decoder, received)
            if alert is None or (not which.everything and alert["diaSourceId"] not in wanted):
                continue
            alert_id, checksum = alert["diaSourceId"], zlib.crc32(received.value)
            if alert_id in seen:
                copies += 1
                report.add("once", [f"alert {alert_id} is there with other bytes"] * (seen[alert_id] != checksum), 0)
                continue
            seen[alert_id] = checksum
            key = received.key or b""
            object_id = int(key) if key.isdigit() else -1
            check_alert(report, alert, alert_id, object_id, config.associate.history_days)
            sources.append(alert["diaSource"])
        _check_values(report, sources, ppdb.table("DiaSource", {"diaSourceId": [s["diaSourceId"] for s in sources]}))
    if copies:
        report.notes.append(f"{copies} messages are copies of others")
    sent = set(expected["alert_id"][expected["state"].isin(["sent", "late"])])
    report.add("once", [f"alert {i} was sent and is not in the topic" for i in sorted(sent - set(seen))], len(sent))
    report.add("once", [f"alert {i} is not in the outbox" for i in sorted(set(seen) - wanted)], 0)
    return report


def _decode_message(report: Report, decoder: Decoder, received: Received) -> dict[str, Any] | None:
    framed = len(received.value) > _FRAME and received.value[0] == 0
    report.add("framing", [] if framed else [f"{received.place}: begins with {received.value[:_FRAME].hex()}"])
    try:
        alert = decoder(received) if framed else None
    except DataError as error:
        report.add("schema", [str(error)])
        return None
    report.add("schema", [], int(framed))
    return alert


def _check_rows(report: Report, config: Config, rows: Sequence[OutboxRow]) -> list[dict[str, Any]]:
    """Check alerts of the archive; gives their DiaSources."""
    archive = open_archive(config.alerts_url, config.packets.schema_version)
    sources = []
    for row in rows:
        try:
            datum = archive.read(row)
        except DataError as error:
            report.add("framing", [str(error)])
            continue
        report.add("framing", [])
        try:
            alert = decode(datum, archive.definition(row))
        except DataError as error:
            report.add("schema", [f"alert {row.alert_id}: {error}"])
            continue
        report.add("schema", [])
        check_alert(report, alert, row.alert_id, row.object_id, config.associate.history_days)
        sources.append(alert["diaSource"])
    return sources


def _compare_index(report: Report, config: Config, which: Which, alerts: pd.DataFrame) -> None:
    """What the index says of announced alerts; what else it has was never announced."""
    places = {(row.file, row.offset): row for row in outbox_rows(alerts)}
    chosen = nights(config.alerts_url) if which.night is None else [which.night]
    others = 0
    for night in chosen:
        try:
            rows = find(config.alerts_url, night=night, visit=which.visit, detector=which.detector)
        except DataError as error:
            report.add("framing", [str(error)], 0)
            continue
        for row in rows:
            announced = places.get((row.file, row.offset))
            others += announced is None
            if announced is not None and announced != row:
                report.add("framing", [f"alert {row.alert_id}: {announced} in the outbox, {row} in the file"], 0)
    if others and which in (Which(), Which(night=which.night)):
        report.notes.append(f"{others} further packets of the archive were never announced: made again, or a lost race")


def _check_values(report: Report, sources: Sequence[Mapping[str, Any]], stored: pd.DataFrame) -> None:
    """Compare the DiaSources of alerts with those of the PPDB."""
    if not sources:
        return
    told = apdb.conform(pd.DataFrame.from_records(sources), "DiaSource").set_index("diaSourceId")
    stored = stored.set_index("diaSourceId")
    common = told.index.intersection(stored.index)
    report.add("values", [f"alert {i}: no such DiaSource" for i in told.index.difference(common)], len(told))
    told, stored = told.loc[common], stored.loc[common]
    same_objects = stored["ssObjectReassocTimeMjdTai"].isna()
    for name in told.columns:
        if name in _LATER or name not in sources[0]:
            continue
        ours, theirs = told[name], stored[name]
        unknown = ours.isna() | theirs.isna()
        differ = (ours.isna() != theirs.isna()) | ((ours != theirs).fillna(False) & ~unknown)
        if name in _REASSOCIATED:
            differ &= same_objects
        at = np.flatnonzero(differ.to_numpy(bool))
        report.add(
            "values",
            [f"alert {common[int(i)]}: {name} is {ours.iloc[i]}, in the PPDB {theirs.iloc[i]}" for i in at],
            0,
        )


def _check_once(report: Report, ppdb: Ppdb, which: Which, announced: Sequence[int]) -> None:
    """Every stored DiaSource has an alert, and every alert a DiaSource."""
    conditions: dict[str, Sequence[int]] = {}
    if which.night is not None:
        conditions["visit"] = range(which.night * 100_000, (which.night + 1) * 100_000)
    if which.visit is not None:
        conditions["visit"] = [which.visit]
    if which.detector is not None:
        conditions["detector"] = [which.detector]
    stored, alerts = set(ppdb.table("DiaSource", conditions)["diaSourceId"]), set(announced)
    problems = [f"DiaSource {i} has no alert in the outbox" for i in sorted(stored - alerts)]
    problems += [f"alert {i} is of no stored DiaSource" for i in sorted(alerts - stored)]
    report.add("once", problems, len(stored | alerts))
