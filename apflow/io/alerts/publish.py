"""Publication: from the outbox to where alerts go, marked when they are there.

A publisher claims alerts, sends exactly the bytes that were archived, marks
what was acknowledged and gives the rest back. A claim has a lease: nothing of
it is sent any more when that is over, so that whoever finds an abandoned claim
may send its alerts.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import psutil

from apflow.errors import AfterWrite, ApflowError, DataError, ServiceError
from apflow.io.alerts.archive import Archive
from apflow.io.ppdb.interface import Ppdb
from apflow.model.ledger import Outcome
from apflow.model.products import Claim, OutboxRow

#: Alerts read from the archive at once: about 6 MB.
_CHUNK = 64
_PAUSE_S = 0.5


class Outbox(Protocol):
    """What publication needs of the PPDB; see `apflow.io.ppdb.Ppdb`."""

    def claimAlerts(
        self, claim: str, lease_s: float, limit: int, visit: int | None = None, detectors: Sequence[int] | None = None
    ) -> list[OutboxRow]:
        """Take pending alerts that nobody has claimed."""

    def claims(self) -> list[Claim]:
        """What is claimed and still pending."""

    def releaseAlerts(self, claim: str) -> None:
        """Give back what is still pending of a claim."""

    def endLease(self, claim: str) -> None:
        """Leave a claim to whoever settles it."""

    def refuseAlerts(self, causes: Mapping[int, str]) -> None:
        """Note that alerts cannot be sent."""

    def markPublished(self, alert_ids: Sequence[int], when_unix: float) -> None:
        """Note that alerts were published."""


@dataclass
class Batch:
    """Alerts of a claim; each iteration reads them from the archive anew, a few at a time.

    `broken` are those that cannot be read as they were written; an iteration
    passes over them.
    """

    archive: Archive
    rows: Sequence[OutboxRow]
    broken: dict[int, DataError] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[OutboxRow, bytes]]:
        for rows in itertools.batched(self.rows, _CHUNK):
            try:
                yield from zip(rows, self.archive.read_many(rows), strict=True)
            except DataError:
                yield from self._one_by_one(rows)

    def _one_by_one(self, rows: Sequence[OutboxRow]) -> Iterator[tuple[OutboxRow, bytes]]:
        for row in rows:
            try:
                datum = self.archive.read(row)
            except DataError as error:
                self.broken[row.alert_id] = error
            else:
                yield row, datum


@dataclass
class Sent:
    """What became of the alerts of a claim.

    Attributes
    ----------
    acknowledged
        Ids of those that are there.
    refused
        Why others can never be sent, by id.
    failure
        Why yet others were not sent now.
    uncertain
        Whether those may be there all the same, as far as can be told now.
    """

    acknowledged: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    failure: ApflowError | None = None
    uncertain: bool = False


class Sink(Protocol):
    """Where alerts go."""

    @property
    def claim_size(self) -> int:
        """Most alerts of a claim."""

    @property
    def lease_s(self) -> float:
        """Longest time that `send` may take."""

    def new_claim(self) -> str:
        """Name of a new claim."""

    def send(self, claim: str, batch: Batch) -> Sent:
        """Send the alerts of a claim."""

    def arrived(self, claim: Claim) -> list[int]:
        """Which alerts of an abandoned claim are there, as far as can be told.

        Raises
        ------
        ServiceError
            That cannot be told now.
        """


class ArchiveSink:
    """The archive itself as the destination: an alert that can be read back is there."""

    claim_size = 1000
    lease_s = 60.0

    def new_claim(self) -> str:
        """See `Sink`."""
        return f"{holder()}:{secrets.token_hex(8)}"

    def send(self, claim: str, batch: Batch) -> Sent:
        """Acknowledge every alert that can be read back."""
        return Sent([row.alert_id for row, _ in batch])

    def arrived(self, claim: Claim) -> list[int]:
        """See `Sink`; to acknowledge them again costs nothing."""
        return []


def publish(
    outbox: Outbox, archive: Archive, sink: Sink, visit: int | None = None, detectors: Sequence[int] | None = None
) -> int:
    """Send pending alerts exactly as they were archived, and mark those that arrived.

    Parameters
    ----------
    outbox : `Outbox`
        The PPDB.
    archive : `~apflow.io.alerts.archive.Archive`
    sink : `Sink`
        Where they go.
    visit, detectors
        Only alerts of these.

    Returns
    -------
    count : `int`
        Alerts that were acknowledged and marked.

    Raises
    ------
    ServiceError
        Alerts wait in the outbox, since the sink or the PPDB cannot be reached.
    BadRequest
        They wait, since the sink's settings cannot work.
    AfterWrite
        Some alerts can never be sent, or their bytes are not as they were
        written; all others were sent.
    """
    count = 0
    bad: dict[int, str] = {}
    held: list[str] = []
    while True:
        claim = sink.new_claim()
        until = time.monotonic() + sink.lease_s
        rows = outbox.claimAlerts(claim, sink.lease_s, sink.claim_size, visit, detectors)
        if not rows:
            break
        batch = Batch(archive, rows)
        sent = sink.send(claim, batch)
        _mark(outbox, sent, until)
        count += len(sent.acknowledged)
        bad |= sent.refused | {k: str(error) for k, error in batch.broken.items()}
        if sent.uncertain:
            outbox.endLease(claim)
        elif len(sent.acknowledged) + len(sent.refused) < len(rows):
            held.append(claim)  # until the end of this pass, which would meet them again
        if sent.failure is not None:
            _release(outbox, held)
            raise sent.failure
    _release(outbox, held)
    if bad:
        first = next(iter(bad))
        raise AfterWrite(f"{len(bad)} alerts cannot be published; the first is alert {first}: {bad[first]}")
    return count


def _mark(outbox: Outbox, sent: Sent, until: float) -> None:
    """Mark what arrived and what is refused, for as long as nobody else may send it."""
    while True:
        try:
            if sent.refused:
                outbox.refuseAlerts(sent.refused)
            if sent.acknowledged:
                outbox.markPublished(sent.acknowledged, time.time())
            return
        except ServiceError:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE_S)


def _release(outbox: Outbox, claims: Sequence[str]) -> None:
    for claim in claims:
        outbox.releaseAlerts(claim)


def settle_abandoned(outbox: Outbox, sink: Sink) -> None:
    """Find claims whose publishers are gone or late, and mark or give back their alerts.

    Raises
    ------
    ServiceError
        The PPDB cannot be reached, or the sink, where it knows what arrived.
    """
    for claim in outbox.claims():
        if claim.left_s > 0 and not _is_dead(claim.name):
            continue
        arrived = sink.arrived(claim)
        if arrived:
            outbox.markPublished(arrived, time.time())
        outbox.releaseAlerts(claim.name)


def with_publication(ppdb: Ppdb, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes with the times of publication that the ledger has, those of late deliveries among them."""
    rows = ppdb.table("ledger", {"visit": sorted({o.visit for o in outcomes})}).dropna(subset="published_unix")
    names = ("instrument", "visit", "detector", "published_unix")
    times = {(i, v, d): float(t) for i, v, d, t in zip(*(rows[n] for n in names), strict=True)}
    return [
        dataclasses.replace(o, published_unix=times.get((o.instrument, o.visit, o.detector), o.published_unix))
        for o in outcomes
    ]


def holder() -> str:
    """Name of this process, as claims begin with it."""
    return f"{_machine()}:{os.getpid()}"


def _is_dead(claim: str) -> bool:
    """Whether the claim's process ran on this machine and is gone; one whose number was taken again is not known."""
    machine, pid = claim.split(":")[:2]
    return machine == _machine() and not _runs(int(pid))


def _runs(pid: int) -> bool:
    try:
        # Where nobody reaps orphans, as in many containers, they stay as zombies.
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _machine() -> str:
    try:
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")  # containers may share a host name
    except OSError:
        space = ""
    return f"{socket.gethostname()}/{space}"
