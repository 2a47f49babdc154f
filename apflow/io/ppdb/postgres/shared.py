"""What the handles of one process share, by URL."""

from __future__ import annotations

import atexit
import logging
import os
import threading

from apflow.errors import ApflowError, ServiceError
from apflow.io.ppdb.postgres import partitions
from apflow.io.ppdb.postgres.bell import Bell
from apflow.io.ppdb.postgres.pool import Pool

_log = logging.getLogger(__name__)
#: Partitions are there before the first row of their month comes, days.
_AHEAD_D = 31.0


class Shared:
    """Connections, the listener, and what is known of the database."""

    def __init__(self, url: str, patience_s: float) -> None:
        self.pool = Pool(url, patience_s)
        self.bell = Bell(self.pool)
        self.checked = False
        self._months: set[int] = set()

    def make_months(self, mjd_from: float, mjd_to: float) -> None:
        """See that rows of some time, and those of the month after, have partitions.

        Where this user may not make them, rows go to the partition of the rest,
        and nothing is lost; so it is where somebody holds what it takes, until
        the next batch.
        """
        days = {int(mjd) // 10 for mjd in (mjd_from, mjd_to + _AHEAD_D)}
        if days <= self._months:
            return
        try:
            with self.pool.connection() as connection:
                partitions.ensure(connection, mjd_from, mjd_to + _AHEAD_D)
        except ServiceError as error:
            _log.warning("no partitions made ahead: %s", error)
        except ApflowError as error:
            _log.warning("no partitions made ahead: %s; apflow ppdb partitions makes them", error)
            self._months |= days
        else:
            self._months |= days


_lock = threading.Lock()
_shared: dict[tuple[str, float], Shared] = {}


def shared(url: str, patience_s: float) -> Shared:
    """What this process has for a URL."""
    with _lock:
        return _shared.setdefault((url, patience_s), Shared(url, patience_s))


def _close() -> None:
    """At the end of the process."""
    for one in _shared.values():
        one.bell.close()
        one.pool.close()


def _forget() -> None:
    """In a forked child, which must not speak on its parent's connections."""
    global _lock
    _lock = threading.Lock()
    _shared.clear()


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
