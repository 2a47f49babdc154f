"""What waits in a spool is sent, in order and at least once."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from apflow.io.sasquatch.records import Record
from apflow.io.sasquatch.rest import Proxy
from apflow.io.sasquatch.spool import REJECTED, Spool

_log = logging.getLogger(__name__)
_MIB = 1 << 20
#: Files that are sent together, but for a single one that is larger; after a failure all of them are sent again.
_TOGETHER_BYTES = 8 * _MIB


@dataclass
class Counts:
    """What became of the records.

    Attributes
    ----------
    sent, refused : `int`
        Records that Sasquatch has, and those it will never take.
    metrics : `int`
        Values in the records that were sent, without nulls.
    dropped : `int`
        Files that gave way to newer ones.
    """

    sent: int = 0
    refused: int = 0
    metrics: int = 0
    dropped: int = 0


def send_waiting(spool: Spool, proxy: Proxy, spool_mib: float, counts: Counts) -> None:
    """Send all files of a spool, the oldest first; the caller is its only sender.

    A file goes when Sasquatch has its records. If this process dies before, or
    the service fails half-way, they are sent once more: the same times and
    identifiers make the same points, which overwrite the first.

    Parameters
    ----------
    counts : `Counts`
        Added to.

    Raises
    ------
    ServiceError
        The service, or the spool, cannot be used now; what was not sent stays.
    """
    while True:
        if gone := spool.trim(spool_mib * _MIB):
            counts.dropped += gone
            _log.error("%d files of metrics were removed unsent: spool_mib is %g", gone, spool_mib)
        files = _first(spool.waiting())
        if not files:
            return
        for group in _groups(record for file in files for record in spool.read(file)):
            _send(group, spool, proxy, counts)
        spool.remove(files)


def _first(waiting: Mapping[Path, int]) -> list[Path]:
    sizes = itertools.accumulate(waiting.values())
    return [
        file for n, (file, size) in enumerate(zip(waiting, sizes, strict=True)) if n == 0 or size <= _TOGETHER_BYTES
    ]


def _groups(records: Iterable[Record]) -> list[list[Record]]:
    """Records by visit or exposure, and by topic, in order of their first."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        image = (record.head["instrument"], record.head["visit"], record.head["exposure"])
        groups.setdefault((*image, record.action, tuple(record.values)), []).append(record)
    return list(groups.values())


def _send(group: list[Record], spool: Spool, proxy: Proxy, counts: Counts) -> None:
    refused = proxy.send(group)
    for records, reason in refused:
        spool.reject(records, reason)
        _log.error("Sasquatch refused %d records, kept in %s/%s: %s", len(records), spool.folder, REJECTED, reason)
        counts.refused += len(records)
    lost = {id(record) for records, _ in refused for record in records}
    taken = [record for record in group if id(record) not in lost]
    counts.sent += len(taken)
    counts.metrics += sum(value is not None for record in taken for value in record.values.values())
