"""A filter between two topics, as Rubin's alert filtering service and downstream brokers run them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.spatial import cKDTree

from apflow.config_tables import Kafka
from apflow.errors import DataError
from apflow.io.kafka.consume import AlertConsumer, Decoder, Received
from apflow.io.kafka.forward import Forwarder
from apflow.io.ppdb.sky_index import chord, unit_vectors

_log = logging.getLogger(__name__)


class Galaxies:
    """The extended DRP Objects of a table, for filters to ask what is near.

    Parameters
    ----------
    objects : `pandas.DataFrame`
        As `Ppdb.getDrpObjects` gives them.
    """

    def __init__(self, objects: pd.DataFrame) -> None:
        found = objects[objects["extendedness"] > 0.5]
        self._tree = cKDTree(unit_vectors(found["ra"].to_numpy(), found["dec"].to_numpy()))

    def near(self, ra: float, dec: float, radius_arcsec: float) -> bool:
        """Whether a galaxy is within a radius of a place (degrees)."""
        distance, _ = self._tree.query(unit_vectors(ra, dec))
        return bool(distance <= chord(radius_arcsec))


@dataclass
class Filtered:
    """Counts of a filter: alerts that were read, passed on, and could not be decoded."""

    read: int = 0
    passed: int = 0
    unreadable: int = 0


def run_filter(
    function: Callable[[Mapping[str, Any]], bool],
    kafka: Kafka,
    source_topic: str,
    target_topic: str,
    *,
    group: str,
    idle_s: float | None = None,
    stop: threading.Event | None = None,
) -> Filtered:
    """Pass on the alerts that a function accepts, key, headers and bytes as they are.

    The group's offsets are committed when the target has acknowledged what was
    passed on: an interrupted filter goes on where it was, and may repeat the
    last few alerts.

    Parameters
    ----------
    function
        Takes a decoded alert and says whether it is wanted.
    kafka : `~apflow.config_tables.Kafka`
        The broker of both topics.
    group : `str`
        Consumer group that keeps how far the filter is.
    idle_s : `float`, optional
        End when nothing has come for this time; default: never.
    stop : `threading.Event`, optional
        Ends it, too.

    Raises
    ------
    ServiceError
        A topic does not exist, or the broker cannot be reached or refuses.
    """
    counts, decode = Filtered(), Decoder(kafka)
    last = time.monotonic()
    with AlertConsumer(kafka, group, source_topic) as consumer, Forwarder(kafka, target_topic) as target:
        while not (stop and stop.is_set()) and (idle_s is None or time.monotonic() - last < idle_s):
            found = consumer.receive()
            if not found:
                continue
            target.send([r for r in found if _wanted(function, decode, r, counts)])
            consumer.commit()
            last = time.monotonic()
    return counts


def _wanted(
    function: Callable[[Mapping[str, Any]], bool], decode: Decoder, received: Received, counts: Filtered
) -> bool:
    counts.read += 1
    try:
        alert = decode(received)
    except DataError as error:
        counts.unreadable += 1
        _log.warning("passed over: %s", error)
        return False
    wanted = bool(function(alert))
    counts.passed += wanted
    return wanted
