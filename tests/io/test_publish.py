"""What publication makes of the outbox, in each kind of PPDB."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from apflow.errors import AfterWrite, ServiceError
from apflow.io.alerts.publish import ArchiveSink, Batch, Sent, holder, publish, settle_abandoned
from apflow.io.kafka.producer import headers_of
from apflow.model.products import Packet

from .outbox import Night
from .ppdb_backends import Backend
from .ppdb_night import FIRST


class Sink(ArchiveSink):
    """Acknowledges what it is told to, a few alerts a claim."""

    claim_size = 40

    def __init__(self, refused: int = -1, fails_after: int = 10**9) -> None:
        self.refused, self.fails_after = refused, fails_after
        self.got: dict[int, bytes] = {}

    def send(self, claim: str, batch: Batch) -> Sent:
        sent = Sent()
        for row, datum in batch:
            if row.alert_id == self.refused:
                sent.refused[row.alert_id] = "too large"
            elif len(self.got) < self.fails_after:
                assert row.alert_id not in self.got
                self.got[row.alert_id] = datum
                sent.acknowledged.append(row.alert_id)
            else:
                sent.failure = ServiceError("gone")
        return sent


@pytest.fixture
def outbox(backend: Backend, tmp_path: Path) -> Iterator[Night]:
    made = Night(tmp_path, backend.url)
    yield made
    made.close()


def test_the_archived_bytes_are_sent_and_marked(outbox):
    ids = outbox.add(0, 1, 100) + outbox.add(0, 2, 7)
    sink = Sink()
    assert publish(outbox.ppdb, outbox.archive, sink, FIRST, [1]) == 100
    assert sink.got == {i: outbox.data[i] for i in ids[:100]}
    assert outbox.pending() == ids[100:] and set(outbox.published()) == {(0, 1)}
    assert publish(outbox.ppdb, outbox.archive, ArchiveSink()) == 7
    assert publish(outbox.ppdb, outbox.archive, ArchiveSink()) == 0
    assert outbox.pending() == [] and set(outbox.published()) == {(0, 1), (0, 2)}


def test_what_was_not_sent_is_given_back(outbox):
    ids = outbox.add(0, 1, 100)
    with pytest.raises(ServiceError, match="gone"):
        publish(outbox.ppdb, outbox.archive, Sink(fails_after=60))
    assert outbox.pending() == ids[60:] and outbox.ppdb.claims() == [] and outbox.published() == {}
    assert publish(outbox.ppdb, outbox.archive, Sink()) == 40
    assert set(outbox.published()) == {(0, 1)}


def test_what_is_refused_or_broken_does_not_keep_the_rest_back(outbox):
    ids = outbox.add(0, 1, 100) + outbox.add(0, 2, 50)
    row = outbox.ppdb.pendingAlerts()[3]
    path = outbox.archive.root / row.file
    data = bytearray(path.read_bytes())
    data[row.offset + row.length // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AfterWrite, match=rf"2 alerts cannot be published; the first is alert {ids[120]}|{ids[3]}"):
        publish(outbox.ppdb, outbox.archive, Sink(refused=ids[120]))
    assert outbox.pending() == [ids[3]] and outbox.ppdb.claims() == []
    assert set(outbox.published()) == {(0, 2)}  # the refused one can never leave
    refused = outbox.ppdb.table("outbox").set_index("alert_id")["refused"].dropna()
    assert refused.to_dict() == {ids[120]: "too large"}


def test_publishers_at_once_send_each_alert_once_and_every_detector_is_marked(outbox):
    ids = [i for d in range(5) for i in outbox.add(0, d, 150)]
    sinks = [Sink() for _ in range(4)]
    counts: list[int] = []

    def drain(sink: Sink) -> None:
        counts.append(publish(outbox.ppdb, outbox.archive, sink))

    threads = [threading.Thread(target=drain, args=(s,)) for s in sinks]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(counts) == 750 and sorted(i for s in sinks for i in s.got) == ids
    assert set(outbox.published()) == {(0, d) for d in range(5)}


def test_claims_of_the_dead_and_the_late_are_given_back_and_others_kept(outbox):
    ids = outbox.add(0, 1, 30)
    mine, machine = f"{holder()}:a#1", holder().rpartition(":")[0]
    outbox.ppdb.claimAlerts(mine, 60.0, 10)
    outbox.ppdb.claimAlerts(f"{machine}:4194304:b#1", 60.0, 5)  # no process can have this number
    outbox.ppdb.claimAlerts("elsewhere/0:1:c#1", 60.0, 5)
    outbox.ppdb.claimAlerts("elsewhere/0:1:d#1", -1.0, 5)
    settle_abandoned(outbox.ppdb, ArchiveSink())
    assert sorted(c.name for c in outbox.ppdb.claims()) == sorted([mine, "elsewhere/0:1:c#1"])
    outbox.ppdb.endLease(mine)
    settle_abandoned(outbox.ppdb, ArchiveSink())
    assert publish(outbox.ppdb, outbox.archive, Sink()) == 25
    assert outbox.pending() == ids[15:20]


def test_what_was_trimmed_is_still_known_when_it_is_sent(outbox):
    alert = Packet(5, 6, b"shortened", trimmed=17)
    outbox.add_packets(0, 1, [alert])
    (row,) = outbox.ppdb.claimAlerts("once", 60.0, 10)
    assert row.trimmed == 17 and headers_of(row, 60.0)["trimmed"] == b"17"
    assert outbox.ppdb.pendingAlerts()[0].trimmed == 17
    outbox.add(0, 2, 1)
    (row,) = outbox.ppdb.claimAlerts("next", 60.0, 10)
    assert "trimmed" not in headers_of(row, 60.0)
