"""Metrics leave in the background: who measures does not wait, and is never failed by the service."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from apflow.config import Config
from apflow.config_tables import Sasquatch
from apflow.errors import ServiceError
from apflow.io.sasquatch.records import check
from apflow.io.sasquatch.rest import Proxy
from apflow.io.sasquatch.sending import Counts, send_waiting
from apflow.io.sasquatch.spool import Spool
from apflow.model.metrics import Measurement

_log = logging.getLogger(__name__)
#: Pauses after failures, seconds: each twice as long as the one before.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
#: Pause while another process sends.
_TURN_S = 0.2
#: A process that ends waits this long for what it measured to be sent.
_EXIT_S = 5.0


def send_later(measurements: Sequence[Measurement], config: Config) -> None:
    """Leave measurements in the spool, from where a thread of this process sends them.

    Nothing happens where `config.sasquatch.url` is empty. What cannot be
    spooled is lost for Sasquatch, and logged: it never fails the caller.

    Raises
    ------
    BadRequest
        A measurement cannot be a record; see `apflow.io.sasquatch.records.check`.
    """
    if not config.sasquatch.url or not measurements:
        return
    for measurement in measurements:
        check(measurement)
    dispatcher = _dispatcher(config)
    try:
        dispatcher.spool.add(measurements)
    except ServiceError as error:
        _log.error("%d measurements are not sent to Sasquatch: %s", len(measurements), error)
        return
    dispatcher.wake()


def flush(config: Config, timeout_s: float) -> int:
    """Wait until all that waits is sent, `timeout_s` seconds at most; returns the number of files that still wait."""
    if not config.sasquatch.url:
        return 0
    return _dispatcher(config).flush(timeout_s)


def drain(config: Config) -> Counts:
    """Send all that waits, now and from this thread; where another process sends, after it.

    Raises
    ------
    ServiceError
        The service cannot be used; what was not sent stays in the spool.
    """
    counts = Counts()
    if config.sasquatch.url:
        spool = _spool(config)
        with contextlib.closing(Proxy(config.sasquatch)) as proxy, spool.sender(wait=True):
            send_waiting(spool, proxy, config.sasquatch.spool_mib, counts)
    return counts


class Dispatcher:
    """A thread that sends what is in a spool, and tries again with growing pauses while that fails.

    It ends with the process. Several may have the same spool; they take turns.

    Attributes
    ----------
    counts : `Counts`
        What became of the records that this thread sent.
    problem : `str`
        Why the last attempt failed; empty after one that did not.
    """

    def __init__(self, spool: Spool, settings: Sasquatch) -> None:
        self.spool, self._settings = spool, settings
        self.counts, self.problem = Counts(), ""
        self._proxy = Proxy(settings)
        self._changed = threading.Condition()
        #: Of how many wishes there are, how many are fulfilled.
        self._wishes = self._fulfilled = 0
        self._hurry = False
        threading.Thread(target=self._run, name="apflow metrics", daemon=True).start()

    def wake(self) -> None:
        """There is something to send."""
        with self._changed:
            self._wishes += 1
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> int:
        """See `apflow.io.sasquatch.flush`."""
        with self._changed:
            self._wishes += 1
            wish, self._hurry = self._wishes, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._fulfilled >= wish, timeout_s)
        return len(self.spool.waiting())

    def finish(self, timeout_s: float) -> None:
        """Wait until nothing is left of what this process has to send, or an attempt has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._fulfilled >= self._wishes or bool(self.problem), timeout_s)

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fulfilled < self._wishes)
                wish = self._wishes
            sent = self._attempt()
            failures = failures + 1 if self.problem else 0
            with self._changed:
                if sent:
                    self._fulfilled = wish
                self._changed.notify_all()
                if not sent:
                    self._changed.wait_for(lambda: self._hurry, _pause_s(failures) if failures else _TURN_S)
                self._hurry = False

    def _attempt(self) -> bool:
        """Whether all that waited was sent."""
        problem = ""
        try:
            with self.spool.sender(wait=False) as ours:
                if ours:
                    send_waiting(self.spool, self._proxy, self._settings.spool_mib, self.counts)
        except ServiceError as error:
            problem, ours = str(error), False
        if problem and problem != self.problem:
            _log.warning("%s; metrics wait in %s", problem, self.spool.folder)
        elif self.problem and not problem:
            _log.info("metrics are sent to Sasquatch again")
        self.problem = problem
        return ours


def _pause_s(failures: int) -> float:
    """Exponential backoff with jitter, so that many processes do not come back at once."""
    return random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16))


_dispatchers: dict[tuple[Path, Sasquatch], Dispatcher] = {}
_making = threading.Lock()


def _spool(config: Config) -> Spool:
    return Spool(Path(config.butler).resolve() / "sasquatch-spool")


def _dispatcher(config: Config) -> Dispatcher:
    """That of this process; one for each spool and service."""
    spool = _spool(config)
    with _making:
        key = (spool.folder, config.sasquatch)
        if key not in _dispatchers:
            _dispatchers[key] = Dispatcher(spool, config.sasquatch)
        return _dispatchers[key]


def _forget() -> None:
    """A forked process has no threads, and its parent may hold the lock."""
    global _making
    _making = threading.Lock()
    _dispatchers.clear()


@atexit.register
def _send_the_rest() -> None:
    """What is not sent within a few seconds waits for the next process; a service that fails is not waited for."""
    deadline = time.monotonic() + _EXIT_S
    for dispatcher in _dispatchers.values():
        dispatcher.finish(deadline - time.monotonic())


os.register_at_fork(after_in_child=_forget)
