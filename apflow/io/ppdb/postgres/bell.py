"""One listening connection a process, for all of its threads that wait; it is open only while somebody waits."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from apflow.errors import ApflowError
from apflow.io.ppdb.postgres.pool import Connection, Pool
from apflow.io.ppdb.turns import Key

CHANNEL = "apflow_ppdb_turns"
#: How soon the listener sees that nobody waits any more.
_GLANCE_S = 0.5


class Ear:
    """What one waiting thread hears; all of it under the lock of the bell."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._opened: set[tuple[str, int]] = set()
        self._anew = True
        self._news = True
        #: Detector-visits that were stored or ended since `must_look` said so.
        self.ended: frozenset[Key] = frozenset()

    @property
    def hears(self) -> bool:
        """Whether notifications arrive."""
        return self._bell.listening

    def must_look(self, key: Key, due: bool) -> bool:
        """Whether the database must be asked; what was heard before is forgotten then.

        So it is when listening began, or began again, when an earlier visit
        was announced, and when the caller finds it `due`.
        """
        with self._bell.changed:
            earlier = any(instrument == key[0] and visit < key[1] for instrument, visit in self._opened)
            must = due or self._anew or earlier
            self._opened.clear()
            self._news = False
            if must:
                self._anew = False
                self.ended = frozenset()
            return must

    def hear(self, note: list[Any] | None) -> None:
        """Take in a notification, or, None, that listening began: what was said before is not known."""
        self._news = True
        if note is None:
            self._anew = True
            return
        what, instrument, visit, *detectors = note
        if what == "open":
            self._opened.add((instrument, visit))
        else:
            self.ended |= {(instrument, visit, d) for d in detectors}

    def wait(self, timeout_s: float) -> None:
        """Until something was heard since `must_look`, or a time has passed."""
        with self._bell.changed:
            if not self._news:
                self._bell.changed.wait(timeout_s)


class Bell:
    """Hands notifications to the ears of this process."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ears: list[Ear] = []
        self._thread: threading.Thread | None = None
        self._silent = False
        self.changed = threading.Condition()
        self.listening = False

    @contextlib.contextmanager
    def ear(self) -> Iterator[Ear]:
        """An ear for one waiting thread."""
        ear = Ear(self)
        with self.changed:
            self._ears.append(ear)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="apflow-ppdb-turns", daemon=True)
                self._thread.start()
        try:
            yield ear
        finally:
            with self.changed:
                self._ears.remove(ear)

    def close(self) -> None:
        """At the end of the process: let go of the connection."""
        self._silent = True
        thread = self._thread
        if thread is not None:
            thread.join(2.0 * _GLANCE_S)

    def _run(self) -> None:
        while True:
            # A lost server is no matter of the listener's: the waiting threads ask it themselves, and say so.
            with contextlib.suppress(ApflowError), self._pool.connection() as connection:
                self._listen(connection)
            with self.changed:
                self.listening = False
                if self._silent or not self._ears:
                    self._thread = None
                    return
                self.changed.wait(_GLANCE_S)

    def _listen(self, connection: Connection) -> None:
        connection.execute(f"LISTEN {CHANNEL}")
        for _ in connection.notifies(timeout=0):
            pass  # from the last time that this connection listened
        with self.changed:
            self.listening = True
        self._tell(None)
        while self._ears and not self._silent:
            for notification in connection.notifies(timeout=_GLANCE_S):
                self._tell(json.loads(notification.payload))
                if not self._ears:
                    break
        connection.execute("UNLISTEN *")

    def _tell(self, note: list[Any] | None) -> None:
        with self.changed:
            for ear in self._ears:
                ear.hear(note)
            self.changed.notify_all()
