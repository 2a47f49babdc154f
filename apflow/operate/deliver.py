"""Delivery of what waits in the outbox, beside the run that fills it."""

from __future__ import annotations

import logging
import threading
from typing import Self

from apflow.config import Config
from apflow.errors import ApflowError
from apflow.io.alerts.archive import open_archive
from apflow.io.alerts.publish import publish, settle_abandoned
from apflow.io.kafka.registry import register
from apflow.io.kafka.sinks import open_sink
from apflow.io.ppdb import Ppdb

_log = logging.getLogger(__name__)
#: Between two looks into the outbox.
_PAUSE_S = 5.0


def deliver(ppdb: Ppdb, config: Config) -> int:
    """Send everything that waits in the outbox, abandoned claims first; see `apflow.io.alerts.publish.publish`."""
    version = config.packets.schema_version
    sink = open_sink(config.kafka, version)
    settle_abandoned(ppdb, sink)
    return publish(ppdb, open_archive(config.alerts_url, version), sink)


class Delivery:
    """A thread that sends what could not be sent at first, for as long as the driver runs.

    It also registers the schema, where there is a registry. Whatever keeps it
    from either is logged once and tried again; `problem` tells what it is.

    Parameters
    ----------
    ppdb : `~apflow.io.ppdb.Ppdb`
        Stays open until the thread has ended.
    config : `~apflow.config.Config`
    """

    def __init__(self, ppdb: Ppdb, config: Config, pause_s: float = _PAUSE_S) -> None:
        self._ppdb, self._config, self._pause_s = ppdb, config, pause_s
        self._registered = not config.kafka.registry
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="apflow delivery", daemon=True)
        self.problem = ""
        self.delivered = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look into the outbox once more, and end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(self._pause_s)
            problem = self._try()
            if problem and problem != self.problem:
                _log.warning("%s", problem)
            elif self.problem and not problem:
                _log.info("alerts are delivered again")
            self.problem = problem

    def _try(self) -> str:
        problem = ""
        try:
            self._register()
        except ApflowError as error:
            problem = str(error)
        try:
            self.delivered += deliver(self._ppdb, self._config)
        except ApflowError as error:
            problem = str(error)
        return problem

    def _register(self) -> None:
        if not self._registered:
            register(self._config.kafka, self._config.packets.schema_version)
            self._registered = True
