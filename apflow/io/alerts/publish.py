"""Publication: from the outbox to where alerts go, marked when they are there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from apflow.errors import AfterWrite, DataError
from apflow.io.alerts.archive import Archive
from apflow.model.products import OutboxRow

_CHUNK = 256  # alerts held in memory at once: about 30 MB


class Outbox(Protocol):
    """What publication needs of the PPDB."""

    def markPublished(self, alert_ids: Sequence[int], when_unix: float) -> Any:
        """Note that alerts were published."""


class Sink(Protocol):
    """Where alerts go."""

    def send(self, rows: Sequence[OutboxRow], datums: Sequence[bytes]) -> Sequence[int]:
        """Send alerts, and return the ids of those that were acknowledged."""


class ArchiveSink:
    """The archive itself as the destination: an alert that can be read back is there."""

    def send(self, rows: Sequence[OutboxRow], datums: Sequence[bytes]) -> Sequence[int]:
        """Acknowledge every alert, since its bytes were just read from the archive and checked."""
        return [row.alert_id for row in rows]


def publish(outbox: Outbox, archive: Archive, rows: Iterable[OutboxRow], sink: Sink | None = None) -> int:
    """Send alerts exactly as they were archived, and mark those that arrived.

    Parameters
    ----------
    outbox : `Outbox`
        The PPDB.
    archive : `~apflow.io.alerts.archive.Archive`
    rows : `~collections.abc.Iterable` [`~apflow.model.products.OutboxRow`]
        Alerts just stored, or those still pending.
    sink : `Sink`, optional
        The archive itself when None.

    Returns
    -------
    count : `int`
        Alerts that were acknowledged and marked.

    Raises
    ------
    AfterWrite
        Some alerts' bytes are not as they were written; all others were sent.
    """
    sink = sink or ArchiveSink()
    pending, bad, count = list(rows), [], 0
    for start in range(0, len(pending), _CHUNK):
        whole, datums, broken = _read(archive, pending[start : start + _CHUNK])
        bad += broken
        sent = sink.send(whole, datums) if whole else ()
        if sent:
            outbox.markPublished(list(sent), time.time())
            count += len(sent)
    if bad:
        raise AfterWrite(f"{len(bad)} of {len(pending)} alerts cannot be published; the first: {bad[0]}") from bad[0]
    return count


def _read(archive: Archive, rows: Sequence[OutboxRow]) -> tuple[Sequence[OutboxRow], list[bytes], list[DataError]]:
    """Rows that can be read, their data, and what is wrong with the others."""
    try:
        return rows, archive.read_many(rows), []
    except DataError:
        whole, datums, bad = [], [], []
        for row in rows:
            try:
                datums.append(archive.read(row))
                whole.append(row)
            except DataError as error:
                bad.append(error)
        return whole, datums, bad
