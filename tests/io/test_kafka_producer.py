"""Alerts to a real broker: once each, exactly as archived, and nothing lost when something fails."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter

import pytest

from apflow.config_tables import Kafka
from apflow.errors import AfterWrite, ServiceError
from apflow.io.alerts.publish import Batch, publish, settle_abandoned
from apflow.io.kafka.producer import KafkaSink
from apflow.io.kafka.transactions import TransactionalSink
from apflow.operate.services import KafkaBroker

from .outbox import Night, ids_of, read_topic
from .ppdb_night import FIRST

SINKS = pytest.mark.parametrize("sink_of", [KafkaSink, TransactionalSink])


@pytest.fixture
def kafka(kafka_broker: KafkaBroker, request: pytest.FixtureRequest) -> Kafka:
    """Settings with a topic of the test's own."""
    topic = f"alerts-{zlib.crc32(request.node.nodeid.encode())}"
    kafka_broker.create_topic(topic, partitions=5)
    return Kafka(kafka_broker.bootstrap, topic, transactional_id="test", delivery_timeout_s=15.0)


@SINKS
def test_each_alert_arrives_once_as_it_was_archived(night, kafka, sink_of):
    ids = night.add(0, 1, 1500) + night.add(1, 1, 700, size=20_000)
    sink = sink_of(kafka, "11.1")
    assert publish(night.ppdb, night.archive, sink) == 2200
    messages = read_topic(kafka.bootstrap, kafka.topic)
    assert ids_of(messages) == ids
    for m in messages:
        headers = dict(m.headers())
        alert_id = int(headers["diaSourceId"])
        assert m.value() == struct.pack(">bi", 0, 1101) + night.data[alert_id]
        assert m.key() == b"%d" % night.objects[alert_id]
        assert int(headers["visit"]) == FIRST + alert_id // 1_000_000 - 1 and headers["detector"] == b"1"
        assert abs(int(headers["producer_timestamp"]) / 1000 - time.time()) < 120 and headers["late"] == b"0"
    partitions = {m.key(): m.partition() for m in messages}
    assert all(partitions[m.key()] == m.partition() for m in messages) and len(set(partitions.values())) == 5
    assert night.pending() == [] and night.ppdb.claims() == [] and set(night.published()) == {(0, 1), (1, 1)}
    assert publish(night.ppdb, night.archive, sink) == 0
    sink.close()


def test_an_alert_that_comes_late_says_so(night, kafka):
    night.add(0, 1, 1, age_s=59.0 - 10)
    (late,) = night.add(0, 2, 1, age_s=61.0)
    publish(night.ppdb, night.archive, KafkaSink(kafka, "11.1"))
    flags = {
        int(dict(m.headers())["diaSourceId"]): dict(m.headers())["late"]
        for m in read_topic(kafka.bootstrap, kafka.topic)
    }
    assert flags.pop(late) == b"1" and [*flags.values()] == [b"0"]


@SINKS
def test_two_publishers_share_an_outbox_and_send_nothing_twice(night, kafka, sink_of):
    ids = night.add(0, 1, 1500) + night.add(0, 2, 1500)
    counts = []

    def drain() -> None:
        counts.append(publish(night.ppdb, night.archive, sink_of(kafka, "11.1")))

    threads = [threading.Thread(target=drain) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(counts) == 3000 and ids_of(read_topic(kafka.bootstrap, kafka.topic)) == ids


@SINKS
def test_what_is_too_large_is_refused_by_name_and_the_rest_is_sent(night, kafka_broker, kafka, sink_of):
    topic = kafka_broker.create_topic(f"small-{sink_of.__name__}", partitions=2, max_message_bytes=20_000)
    small = Kafka(kafka.bootstrap, topic, transactional_id="test", delivery_timeout_s=15.0)
    sizes = [3000] * 60
    sizes[7], sizes[40] = 30_000, 1_200_000  # one for the broker to find, one that is known beforehand
    ids = night.add(0, 1, 60, size=sizes)
    with pytest.raises(AfterWrite, match=rf"2 alerts cannot be published; the first is alert ({ids[7]}|{ids[40]})"):
        publish(night.ppdb, night.archive, sink_of(small, "11.1"))
    left = sorted({*ids} - {ids[7], ids[40]})
    assert ids_of(read_topic(small.bootstrap, topic)) == left
    outbox = night.ppdb.table("outbox").set_index("alert_id")
    assert outbox["refused"].dropna().index.tolist() == [ids[7], ids[40]]
    assert f"alert {ids[7]} (visit {FIRST}, detector 1) of 30005 bytes" in outbox.loc[ids[7], "refused"]
    assert "limit of these settings" in outbox.loc[ids[40], "refused"]
    assert night.pending() == [] and (0, 1) in night.published()
    assert publish(night.ppdb, night.archive, sink_of(small, "11.1")) == 0


@SINKS
def test_alerts_that_cannot_be_read_wait_and_the_rest_is_sent(night, kafka, sink_of):
    ids = night.add(0, 1, 30)
    row = night.ppdb.pendingAlerts()[4]
    path = night.archive.root / row.file
    data = bytearray(path.read_bytes())
    data[row.offset + row.length // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AfterWrite, match=f"1 alerts cannot be published; the first is alert {ids[4]}"):
        publish(night.ppdb, night.archive, sink_of(kafka, "11.1"))
    assert night.pending() == [ids[4]] and night.ppdb.claims() == []
    assert ids_of(read_topic(kafka.bootstrap, kafka.topic)) == ids[:4] + ids[5:]


def test_a_topic_that_is_missing_is_named_and_nothing_is_lost(night, kafka):
    ids = night.add(0, 1, 3)
    wrong = Kafka(kafka.bootstrap, "no-such-topic", delivery_timeout_s=5.0)
    with pytest.raises(ServiceError, match=rf"{kafka.bootstrap}: has no topic 'no-such-topic' and does not create it"):
        publish(night.ppdb, night.archive, KafkaSink(wrong, "11.1"))
    assert night.pending() == ids and night.ppdb.claims() == []


class Unmarked:
    """An outbox whose publisher dies after the acknowledgement, before the mark."""

    def __init__(self, night: Night) -> None:
        self._night = night

    def abandon(self, sink: KafkaSink) -> list[int]:
        claim = sink.new_claim()
        rows = self._night.ppdb.claimAlerts(claim, 0.0, 100)
        sent = sink.send(claim, Batch(self._night.archive, rows))
        assert sent.failure is None
        return sorted(sent.acknowledged)


def test_without_transactions_a_death_before_the_mark_repeats_identical_alerts(night, kafka):
    ids = night.add(0, 1, 20)
    assert Unmarked(night).abandon(KafkaSink(kafka, "11.1")) == ids
    other = KafkaSink(kafka, "11.1")
    assert publish(night.ppdb, night.archive, other) == 0  # claimed
    settle_abandoned(night.ppdb, other)
    assert publish(night.ppdb, night.archive, other) == 20
    messages = read_topic(kafka.bootstrap, kafka.topic)
    assert ids_of(messages) == sorted(ids * 2)
    assert len({(m.key(), m.value()) for m in messages}) == 20


def test_with_transactions_a_death_before_the_mark_repeats_nothing(night, kafka):
    ids = night.add(0, 1, 20, size=[300] * 19 + [1_100_000])
    assert Unmarked(night).abandon(TransactionalSink(kafka, "11.1")) == ids[:19]
    other = TransactionalSink(kafka, "11.1")
    settle_abandoned(night.ppdb, other)
    assert night.pending() == ids[19:]  # what was left out of the transaction did not arrive
    with pytest.raises(AfterWrite):
        publish(night.ppdb, night.archive, other)
    assert ids_of(read_topic(kafka.bootstrap, kafka.topic)) == ids[:19]


def test_a_publisher_whose_claim_was_given_to_another_can_send_no_more(night, kafka):
    ids = night.add(0, 1, 20)
    zombie, other = TransactionalSink(kafka, "11.1"), TransactionalSink(kafka, "11.1")
    publish(night.ppdb, night.archive, zombie)
    more = night.add(0, 2, 20)
    claim = zombie.new_claim()
    rows = night.ppdb.claimAlerts(claim, 0.0, 100)
    settle_abandoned(night.ppdb, other)
    assert zombie.send(claim, Batch(night.archive, rows)).failure is not None
    assert night.pending() == more and publish(night.ppdb, night.archive, other) == 20
    assert ids_of(read_topic(kafka.bootstrap, kafka.topic)) == ids + more


PUBLISHER = """
import sys
from apflow.config_tables import Kafka
from apflow.io.alerts.archive import Archive
from apflow.io.alerts.publish import publish, settle_abandoned
from apflow.io.kafka.sinks import open_sink
from apflow.io.ppdb import open_ppdb
ppdb, archive = open_ppdb(sys.argv[1]), Archive(sys.argv[2])
sink = open_sink(Kafka(sys.argv[3], sys.argv[4], transactional_id=sys.argv[5]), "11.1")
print("ready", flush=True)
settle_abandoned(ppdb, sink)
publish(ppdb, archive, sink)
"""


@pytest.mark.parametrize("transactional_id", ["", "test"])
def test_publishers_that_are_killed_lose_nothing(night, kafka, transactional_id):
    ids = [i for d in range(8) for i in night.add(0, d, 1000)]
    command = [sys.executable, "-c", PUBLISHER, night.ppdb_url, night.archive_url, kafka.bootstrap, kafka.topic]
    interrupted = 0
    for delay_s in (0.4, 0.7, None):
        with subprocess.Popen([*command, transactional_id], stdout=subprocess.PIPE) as publisher:
            assert publisher.stdout is not None and publisher.stdout.readline()
            if delay_s is not None:
                time.sleep(delay_s)
                publisher.kill()
        assert publisher.returncode in ((0, -9) if delay_s else (0,))
        interrupted += bool(night.pending())
    assert interrupted and night.pending() == []
    messages = read_topic(kafka.bootstrap, kafka.topic)
    sent = Counter(ids_of(messages))
    assert sorted(sent) == ids
    if transactional_id:
        assert set(sent.values()) == {1}
    assert len({(m.key(), m.value()) for m in messages}) == len(ids)


@SINKS
def test_a_broker_that_is_killed_and_comes_back_has_each_alert(night, kafka_broker, kafka, sink_of):
    ids = [i for d in range(20) for i in night.add(0, d, 1000, size=2000)]
    sink = sink_of(kafka, "11.1")
    assert publish(night.ppdb, night.archive, sink, FIRST, [0]) == 1000
    problems = []

    def drain() -> None:
        while night.pending():
            try:
                settle_abandoned(night.ppdb, sink)
                publish(night.ppdb, night.archive, sink)
            except ServiceError as error:
                problems.append(str(error))
                time.sleep(0.5)

    thread = threading.Thread(target=drain)
    thread.start()
    while len(night.pending()) > 15_000:
        time.sleep(0.02)
    kafka_broker.kill()
    waiting = len(night.pending())
    time.sleep(1.0)
    kafka_broker.start()
    thread.join(90)
    assert not thread.is_alive() and waiting > 0, problems
    sent = Counter(ids_of(read_topic(kafka.bootstrap, kafka.topic)))
    assert sorted(sent) == ids
    if sink_of is TransactionalSink or not problems:
        assert set(sent.values()) == {1}
    sink.close()
