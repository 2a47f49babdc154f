"""A filter between two topics of a real broker."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from confluent_kafka import Producer

from apflow.config_tables import Kafka
from apflow.errors import ServiceError
from apflow.io.alerts.packets import build_packets
from apflow.io.alerts.schema import frame
from apflow.io.kafka.consume import AlertConsumer, Decoder
from apflow.model.products import Packet
from apflow.operate.filtering import Filtered, Galaxies, run_filter
from apflow.operate.services import KafkaBroker
from tests.io.test_alerts_packets import NOW, forced, history, objects, sources

IDS = range(501, 506)


@pytest.fixture
def kafka(kafka_broker: KafkaBroker, request: pytest.FixtureRequest) -> Kafka:
    """Settings with a topic of the test's own, and one beside it for what is passed on."""
    topic = f"all-{zlib.crc32(request.node.nodeid.encode())}"
    kafka_broker.create_topic(topic, partitions=3)
    kafka_broker.create_topic(f"{topic}-passed", partitions=2)
    return Kafka(kafka_broker.bootstrap, topic)


def packets() -> tuple[Packet, ...]:
    """The first has all that the filter below asks for, each of the others lacks one thing."""
    new = sources(
        [*IDS], [*IDS], NOW, snr=np.float32([20, 9, 20, 20, 20]), reliability=np.float32([0.95, 0.95, 0.8, 0.95, 0.95])
    )
    counts = [1, 1, 1, 2, 1]
    return build_packets(new, objects([*IDS]).assign(nDiaSources=counts), history(), forced([31], [501], [NOW]), {})


def drp_objects() -> pd.DataFrame:
    """A galaxy 2 arcsec from each source but the last, which has a star."""
    new = sources([*IDS], [*IDS], NOW)
    return pd.DataFrame(
        {
            "objectId": np.arange(5),
            "ra": new["ra"].to_numpy(),
            "dec": new["dec"].to_numpy() + 2.0 / 3600,
            "extendedness": np.float32([1, 1, 1, 1, 0]),
        }
    )


def send(kafka: Kafka, alerts: tuple[Packet, ...]) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for p in alerts:
        producer.produce(kafka.topic, frame(p.datum), key=b"%d" % p.object_id, headers={"visit": b"5", "late": b"0"})
    producer.produce(kafka.topic, b"no alert")
    assert producer.flush(10) == 0


def test_a_filter_passes_on_what_its_function_accepts_as_it_came(kafka):
    galaxies = Galaxies(drp_objects())

    def wanted(alert: Mapping[str, Any]) -> bool:
        source = alert["diaSource"]
        new = alert["diaObject"]["nDiaSources"] == 1
        good = source["snr"] > 10 and source["reliability"] > 0.9
        return new and good and galaxies.near(source["ra"], source["dec"], radius_arcsec=5.0)

    alerts = packets()
    send(kafka, alerts)
    target = f"{kafka.topic}-passed"
    counts = run_filter(wanted, kafka, kafka.topic, target, group=target, idle_s=3.0)
    assert counts == Filtered(read=6, passed=1, unreadable=1)
    with AlertConsumer(kafka, topic=target) as consumer:
        (passed,) = consumer.until_idle(2.0)
    assert passed.value == frame(alerts[0].datum) and passed.key == b"501"
    assert passed.headers == {"visit": "5", "late": "0"}
    assert Decoder(kafka)(passed)["diaSourceId"] == 501


def test_a_filter_that_is_started_again_goes_on_where_it_was(kafka):
    target = f"{kafka.topic}-passed"
    for _ in range(2):
        send(kafka, packets())
        counts = run_filter(lambda alert: True, kafka, kafka.topic, target, group=target, idle_s=3.0)
        assert counts == Filtered(read=6, passed=5, unreadable=1)
    with AlertConsumer(kafka, topic=target) as consumer:
        assert len([*consumer.until_idle(2.0)]) == 10


def test_nothing_is_done_with_until_the_target_has_it(kafka):
    send(kafka, packets())
    group = f"{kafka.topic}-group"
    with pytest.raises(ServiceError, match="has no topic 'nowhere'"):
        run_filter(lambda alert: True, kafka, kafka.topic, "nowhere", group=group, idle_s=3.0)
    counts = run_filter(lambda alert: True, kafka, kafka.topic, f"{kafka.topic}-passed", group=group, idle_s=3.0)
    assert counts.passed == 5
