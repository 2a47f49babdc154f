"""librdkafka's mock cluster, by its own functions: errors and delays can be asked for."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka

#: Numbers of requests in Kafka's protocol.
PRODUCE, METADATA, INIT_PRODUCER_ID, END_TXN = 0, 3, 22, 26


def _library() -> ctypes.CDLL:
    """The very library that confluent-kafka has loaded."""
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    (path,) = folder.glob("librdkafka-*.so*")
    library = ctypes.CDLL(str(path))
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    return library


class MockCluster:
    """Brokers in this process."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self._library, self._cluster = library, ctypes.c_void_p(handle)
        self.bootstrap = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, name: str, partitions: int = 4) -> str:
        assert self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1) == 0
        return name

    def fail(self, request: int, *codes: int) -> None:
        """Answer the next requests of a kind with errors, one each."""
        errors = (ctypes.c_int * len(codes))(*codes)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(request), ctypes.c_size_t(len(codes)), errors
        )

    def fail_topic(self, name: str, code: int) -> None:
        """Answer questions about a topic with an error."""
        self._library.rd_kafka_mock_topic_set_error(self._cluster, name.encode(), code)

    def set_delay(self, milliseconds: int) -> None:
        """Let every answer come later."""
        self._library.rd_kafka_mock_broker_set_rtt(self._cluster, -1, milliseconds)

    def down(self) -> None:
        self._library.rd_kafka_mock_broker_set_down(self._cluster, 1)

    def up(self) -> None:
        self._library.rd_kafka_mock_broker_set_up(self._cluster, 1)


@contextmanager
def mock_cluster() -> Iterator[MockCluster]:
    """A cluster of one broker."""
    library = _library()
    said = ctypes.create_string_buffer(200)
    home = library.rd_kafka_new(0, ctypes.c_void_p(library.rd_kafka_conf_new()), said, 200)
    assert home, said.value
    cluster = library.rd_kafka_mock_cluster_new(ctypes.c_void_p(home), 1)
    try:
        yield MockCluster(library, cluster)
    finally:
        library.rd_kafka_mock_cluster_destroy(ctypes.c_void_p(cluster))
        library.rd_kafka_destroy(ctypes.c_void_p(home))
