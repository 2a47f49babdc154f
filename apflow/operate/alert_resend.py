"""Alerts sent again, and alerts taken back."""

from __future__ import annotations

import dataclasses

import pandas as pd
from astropy.time import Time

from apflow.config import Config
from apflow.errors import AfterWrite, BadRequest
from apflow.io.alerts.archive import open_archive
from apflow.io.alerts.publish import Batch, Sink
from apflow.io.ppdb import Ppdb
from apflow.operate.alert_list import outbox_rows

_CHUNK = 1000


def resendable(alerts: pd.DataFrame) -> pd.DataFrame:
    """Those of some alerts that were sent: the others are still to be sent, or must not be."""
    return alerts[alerts["state"].isin(["sent", "late"])]


def resend(alerts: pd.DataFrame, sink: Sink, config: Config) -> int:
    """Send alerts again, exactly the bytes that were sent before, with the header ``resent`` set to 1.

    The outbox is left as it is: it tells when an alert was first delivered.

    Parameters
    ----------
    alerts : `pandas.DataFrame`
        See `resendable`.
    sink : `~apflow.io.alerts.publish.Sink`
        Where they go.

    Returns
    -------
    count : `int`
        Alerts that were acknowledged: all of them.

    Raises
    ------
    BadRequest
        There is none.
    ServiceError
        The broker cannot be reached; some may have been sent.
    AfterWrite
        Some alerts cannot be read back or are refused; all others were sent.
    """
    if alerts.empty:
        raise BadRequest("none of these alerts was sent before: pending ones will be, withdrawn ones are not sent")
    archive = open_archive(config.alerts_url, config.packets.schema_version)
    count, bad = 0, dict[int, str]()
    for start in range(0, len(alerts), _CHUNK):
        part = alerts.iloc[start : start + _CHUNK]
        rows = [
            dataclasses.replace(row, arrived_unix=None if pd.isna(arrived) else float(arrived), resent=True)
            for row, arrived in zip(outbox_rows(part), part["arrived_unix"], strict=True)
        ]
        batch = Batch(archive, rows)
        sent = sink.send(sink.new_claim(), batch)
        count += len(sent.acknowledged)
        bad |= sent.refused | {alert_id: str(error) for alert_id, error in batch.broken.items()}
        if sent.failure is not None:
            raise sent.failure
    if bad:
        first = next(iter(bad))
        raise AfterWrite(f"{count} alerts were sent, {len(bad)} were not; the first is alert {first}: {bad[first]}")
    return count


def withdraw(alerts: pd.DataFrame, ppdb: Ppdb) -> int:
    """Mark the DiaSources of alerts as withdrawn now; those that wait in the outbox are not sent any more."""
    return ppdb.withdraw(alerts["alert_id"].to_list(), float(Time.now().tai.mjd))
