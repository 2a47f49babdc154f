"""A board in the database of a repository's registry, for all who reach it, wherever they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import psycopg
from psycopg import sql

from apflow.errors import BadRequest, ServiceError
from apflow.io.arrivals.board import Board, Key, Message, Place

#: libpq's parameters that hold a secret.
_SECRETS = ("password", "sslpassword")
_TABLE = "apflow_arrivals"
_CONNECT_S = 10
#: PostgreSQL takes notifications of up to 8000 bytes.
_LONGEST = 7500
#: Without a notification, which a connection that broke may have lost.
_POLL_S = 2.0


class DatabaseBoard(Board):
    """A table whose changes are notified; one connection, opened on demand.

    Parameters
    ----------
    url : `str`
        ``postgresql://user@host:port/database``, of SQLAlchemy or libpq.
    namespace : `str`
        Schema of the registry; empty for the user's default.
    """

    poll_s = _POLL_S

    def __init__(self, url: str, namespace: str) -> None:
        self._url = libpq_url(url)
        self._namespace = namespace
        self._table = sql.Identifier(*([namespace] if namespace else []), _TABLE)
        # Repositories in one database have channels of their own, whose names are short.
        self._channel = f"{_TABLE}_{hashlib.sha1(namespace.encode(), usedforsecurity=False).hexdigest()[:12]}"
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._places: frozenset[Place] | None = None

    @classmethod
    def checked(cls, url: str, namespace: str) -> Self:
        """The board of a URL that somebody gave.

        Raises
        ------
        BadRequest
            It is none of PostgreSQL, cannot be read, or holds a password.
        """
        known = None
        if url.startswith("postgresql"):
            with contextlib.suppress(psycopg.ProgrammingError):
                known = psycopg.conninfo.conninfo_to_dict(libpq_url(url))
        if known is None:
            # Without the URL, which may hold a password where nothing can be found in it.
            raise BadRequest("the registry's URL cannot be read; accepted: postgresql://user@host:port/database")
        if any(known.get(name) for name in _SECRETS):
            raise BadRequest(
                f"the URL of registry {shown(libpq_url(url))} holds a password; accepted: libpq's ways "
                "(~/.pgpass, the variable PGPASSFILE, ?passfile=<path>, a client certificate)"
            )
        return cls(url, namespace)

    @property
    def shown(self) -> str:
        """Server and database, for messages."""
        return shown(self._url)

    def prepare(self) -> None:
        """Make the schema and what a Butler needs of the database.

        Raises
        ------
        BadRequest
            A Butler is in the schema already, or the user may not make it.
        """
        with self._connected() as connection:
            try:
                connection.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
                if self._namespace:
                    schema = sql.Identifier(self._namespace)
                    connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFile) as error:
                text = " ".join(str(error).split())
                raise BadRequest(f"registry {self.shown}: {text}; accepted: a database with btree_gist") from None
            row = connection.execute(
                "SELECT coalesce(nullif(%s, ''), current_schema()), EXISTS (SELECT FROM pg_tables "
                "WHERE tablename = 'butler_attributes' AND schemaname = coalesce(nullif(%s, ''), current_schema()))",
                (self._namespace, self._namespace),
            ).fetchone()
        if row is not None and row[1]:
            raise BadRequest(
                f"schema {row[0]!r} of registry {self.shown} holds a Butler already; give another namespace"
            )

    def create(self) -> None:
        """Make the table where there is none; its schema must be there."""
        statement = sql.SQL(
            "CREATE TABLE IF NOT EXISTS {} (instrument text NOT NULL, kind text NOT NULL, place text NOT NULL, "
            "name text NOT NULL, message text NOT NULL, rejected boolean NOT NULL, "
            "told timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (instrument, kind, place, name))"
        )
        with self._connected() as connection:
            connection.execute(statement.format(self._table))

    def put(self, messages: Mapping[Key, Message]) -> None:
        """See `Board.put`."""
        rows = [(*key.place, key.name, json.dumps(m), "error" in m) for key, m in messages.items()]
        if not rows:
            return
        statement = sql.SQL(
            "INSERT INTO {table} AS known (instrument, kind, place, name, message, rejected) "
            "SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[]) "
            "ON CONFLICT (instrument, kind, place, name) DO UPDATE "
            "SET message = excluded.message, rejected = excluded.rejected, told = now() "
            "WHERE known.rejected AND NOT excluded.rejected"
        ).format(table=self._table)
        with self._connected() as connection, connection.transaction():
            connection.execute(statement, [list(column) for column in zip(*rows, strict=True)])
            for payload in _payloads(messages):
                connection.execute("SELECT pg_notify(%s, %s)", (self._channel, payload))

    def get(self, keys: Iterable[Key]) -> dict[Key, Message]:
        """See `Board.get`."""
        rows = [(*key.place, key.name) for key in keys]
        if not rows:
            return {}
        statement = sql.SQL(
            "SELECT instrument, kind, place, name, message FROM {table} "
            "JOIN unnest(%s::text[], %s::text[], %s::text[], %s::text[]) AS k (instrument, kind, place, name) "
            "USING (instrument, kind, place, name)"
        ).format(table=self._table)
        with self._connected() as connection:
            found = connection.execute(statement, [list(column) for column in zip(*rows, strict=True)]).fetchall()
        return {Key(Place(*row[:3]), row[3]): json.loads(row[4]) for row in found}

    def names(self, place: Place) -> set[str]:
        """See `Board.names`."""
        statement = sql.SQL("SELECT name FROM {} WHERE instrument = %s AND kind = %s AND place = %s")
        with self._connected() as connection:
            return {name for (name,) in connection.execute(statement.format(self._table), tuple(place))}

    def listen(self, places: Iterable[Place]) -> None:
        """See `Board.listen`."""
        with self._connected() as connection:
            if self._places is None:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
        self._places = frozenset(places)

    def fileno(self) -> int:
        """See `Board.fileno`."""
        return -1 if self._connection is None or self._connection.closed else self._connection.fileno()

    def heard(self) -> set[Key] | None:
        """See `Board.heard`."""
        keys: set[Key] = set()
        if self._places is None:
            return keys
        with self._connected() as connection:
            for notification in connection.notifies(timeout=0):
                for *place, names in json.loads(notification.payload):
                    if Place(*place) in self._places:
                        keys |= {Key(Place(*place), name) for name in names}
        return keys

    def close(self) -> None:
        """See `Board.close`."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._places = None, None

    @contextlib.contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection, self._places = None, None
                self._connection = psycopg.connect(self._url, autocommit=True, connect_timeout=_CONNECT_S)
            yield self._connection
        except psycopg.Error as error:
            self.close()
            text = " ".join(str(error).split())
            where = f"the Butler's registry at {self.shown}"
            if isinstance(error, psycopg.errors.UndefinedTable):
                raise BadRequest(f"{where}: {text}; accepted: a repository made by `apflow init --registry`") from None
            raise ServiceError(f"{where} failed: {text}") from error


def libpq_url(url: str) -> str:
    """A URL of SQLAlchemy as libpq reads it: without a driver."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme.partition('+')[0]}{separator}{rest}"


def shown(url: str) -> str:
    """Server and database of a URL, for messages."""
    known = psycopg.conninfo.conninfo_to_dict(url)
    port = f":{known['port']}" if known.get("port") else ""
    return f"{known.get('host') or 'localhost'}{port}/{known.get('dbname') or ''}"


def _payloads(keys: Iterable[Key]) -> Iterator[str]:
    """What is notified of some keys, in as few parts as may be."""
    by_place: defaultdict[Place, list[str]] = defaultdict(list)
    for key in keys:
        by_place[key.place].append(key.name)
    for place, names in by_place.items():
        yield from _split(place, names)


def _split(place: Place, names: Sequence[str]) -> Iterator[str]:
    payload = json.dumps([[*place, names]], separators=(",", ":"))
    if len(payload) <= _LONGEST or len(names) == 1:
        yield payload
    else:
        yield from _split(place, names[: len(names) // 2])
        yield from _split(place, names[len(names) // 2 :])
