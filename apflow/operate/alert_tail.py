"""Alerts of a Kafka topic, as they come or as they lie there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from apflow.config_tables import Kafka
from apflow.io.kafka.consume import AlertConsumer, Decoder, Received
from apflow.operate.alert_facts import utc

#: A topic whose end cannot be told otherwise has been read when it was silent for so long.
_IDLE_S = 5.0


@dataclass(frozen=True)
class Filter:
    """Which alerts to follow; all conditions given must hold."""

    visit: int | None = None
    detector: int | None = None
    object_id: int | None = None
    band: str = ""
    min_snr: float = 0.0

    def __call__(self, alert: Mapping[str, Any]) -> bool:
        source = alert["diaSource"]
        asked = {"visit": self.visit, "detector": self.detector, "diaObjectId": self.object_id}
        if any(value is not None and source[name] != value for name, value in asked.items()):
            return False
        return self.band in ("", source["band"]) and bool(abs(source["snr"] or 0.0) >= self.min_snr)


def tail_alerts(
    kafka: Kafka, wanted: Filter, from_start: bool, idle_s: float, most: int
) -> Iterator[tuple[Received, dict[str, Any]]]:
    """Messages of a topic and their records, until enough have come or none has for a time.

    Raises
    ------
    ServiceError
        The broker cannot be reached or refuses, or the topic does not exist.
    DataError
        A message cannot be decoded.
    """
    decode, count = Decoder(kafka), 0
    with AlertConsumer(kafka, from_start=from_start) as consumer:
        for received in consumer.until_idle(idle_s):
            alert = decode(received)
            if wanted(alert):
                yield received, alert
                count += 1
            if count == most:
                return


def read_topic(kafka: Kafka) -> Iterator[Received]:
    """All messages that a topic holds now."""
    with AlertConsumer(kafka) as consumer:
        yield from consumer.until_end(_IDLE_S)


def line(received: Received, alert: Mapping[str, Any]) -> str:
    """An alert in one line."""
    source = alert["diaSource"]
    marks = [name for name in ("late", "resent") if received.headers.get(name) == "1"]
    snr, flux = (float("nan") if source[name] is None else source[name] for name in ("snr", "psfFlux"))
    object_id = source["diaObjectId"] or source["ssObjectId"]
    return (
        f"{utc(source['midpointMjdTai'])}  {alert['diaSourceId']}  object {object_id}"
        f"  visit {source['visit']} detector {source['detector']}  {source['band']}  S/N {snr:.1f}  {flux:,.0f} nJy"
        + "".join(f"  {mark}" for mark in marks)
    )
