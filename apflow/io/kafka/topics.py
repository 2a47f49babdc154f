"""What a broker says of a topic."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from apflow.io.kafka.settings import is_lasting

#: For a broker to be found and to answer.
ANSWER_S = 10.0
_PAUSE_S = 0.1


def partitions(
    client: Producer | Consumer,
    topic: str,
    behind: Callable[[], KafkaError | None],
    answer_s: float = ANSWER_S,
    made_s: float = 0.0,
) -> list[int]:
    """Partitions of a topic.

    Parameters
    ----------
    behind
        What the client reported about its connections: refused credentials
        are not tried until the time is over.
    answer_s
        How long to wait for an answer.
    made_s
        How long to ask again while there is no such topic: a broker that
        makes topics by itself says so at first.

    Raises
    ------
    KafkaException
        The broker does not answer, or there is no such topic, or it may not be seen.
    """
    start = time.monotonic()
    while True:
        try:
            found = client.list_topics(topic, timeout=1.0).topics[topic]
            error, patience_s = found.error, made_s
        except KafkaException as raised:
            error, patience_s = raised.args[0], answer_s
        client.poll(0)
        if error is None:
            return list(found.partitions)
        if is_lasting(error) or is_lasting(behind()) or time.monotonic() - start > patience_s:
            raise KafkaException(error)
        time.sleep(_PAUSE_S)
