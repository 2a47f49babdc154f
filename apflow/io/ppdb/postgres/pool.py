"""Connections of this process to a database, shared by its threads and handed out one at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from apflow.errors import ApflowError
from apflow.io.ppdb.postgres.connect import connect, errors, retrying

Connection = psycopg.Connection[tuple[Any, ...]]

#: Connections that a process has at once; more threads than that take turns.
_MOST = 8
#: Connections that are kept open while nobody uses them: a worker has two threads at work, one that reads a whole
#: visit has four connections.
_IDLE = 4
#: A transaction that writes must see what others committed before it took its locks. A client that stops in the
#: middle, or a lock that is not given, ends it: nobody waits for ever.
WRITE = (
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '30s'; "
    "SET LOCAL idle_in_transaction_session_timeout = '30s'"
)
#: What stands in many tables, of one moment.
READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
#: The same for rows by ids. Thousands of them are few beside what the tables hold, whatever the planner thinks that
#: looking each one up in every month would cost.
LOOK_UP = f"{READ}; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off"


class Pool:
    """Connections to one URL; threads and retries are its matter, SQL is not."""

    def __init__(self, url: str, patience_s: float) -> None:
        self.url = url
        self.patience_s = patience_s
        self._slots = threading.BoundedSemaphore(_MOST)
        self._idle: list[Connection] = []
        self._closings = 0

    def run[T](self, function: Callable[[Connection], T]) -> T:
        """Call an idempotent function with a connection, again with another while the server cannot be reached.

        Raises
        ------
        ServiceError
            It could not be reached for `patience_s`.
        """

        def once() -> T:
            with self.connection() as connection:
                return function(connection)

        return retrying(once, self.patience_s)

    def transaction[T](self, begin: str, function: Callable[[Connection], T]) -> T:
        """Call an idempotent function within a transaction; see `run`."""

        def whole(connection: Connection) -> T:
            connection.execute(begin)
            value = function(connection)
            connection.commit()
            return value

        return self.run(whole)

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in autocommit mode; what was left open when the block fails is rolled back."""
        with self._slots, errors(), self._borrowed() as connection:
            yield connection

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        """A connection, by one who has a slot."""
        closings, connection = self._closings, self._take()
        try:
            yield connection
        except (ApflowError, psycopg.Error):
            with contextlib.suppress(psycopg.Error):
                connection.rollback()
            if connection.closed:
                self.close()  # the others have met the same end
            self._give_back(connection, closings)
            raise
        except BaseException:
            connection.close()  # in the midst of whatever it was
            raise
        self._give_back(connection, closings)

    @contextlib.contextmanager
    def helpers(self, connection: Connection, most: int) -> Iterator[list[Connection]]:
        """More connections that see what the `LOOK_UP` of a connection sees: `most`, or fewer where others are at work.

        They are not waited for: threads that each held one and waited for more would wait for ever.
        """
        with contextlib.ExitStack() as stack:
            found: list[Connection] = []
            while len(found) < most and self._slots.acquire(blocking=False):
                stack.callback(self._slots.release)
                found.append(stack.enter_context(self._borrowed()))
            if found:
                [(snapshot,)] = connection.execute("SELECT pg_export_snapshot()").fetchall()
                for helper in found:
                    helper.execute(f"{LOOK_UP}; SET TRANSACTION SNAPSHOT '{snapshot}'")
            yield found
            for helper in found:
                helper.commit()

    def _take(self) -> Connection:
        while self._idle:
            with contextlib.suppress(IndexError):
                connection = self._idle.pop()
                if not connection.closed:
                    return connection
        return connect(self.url, autocommit=True)

    def _give_back(self, connection: Connection, closings: int) -> None:
        if closings == self._closings and len(self._idle) < _IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close all connections, those in use when they are given back; others are opened on demand."""
        self._closings += 1
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()
