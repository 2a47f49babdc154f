"""Connections to PostgreSQL: settings, secrets kept out of sight, and errors in the project's own words."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from apflow.errors import BadRequest, DataError, ServiceError

#: The oldest server that is supported.
SERVER_VERSION = 15
#: libpq's parameters that hold a secret.
_SECRETS = ("password", "sslpassword")
_WAYS = (
    "a password is accepted in libpq's ways, not in the URL: ?passfile=<path>, ~/.pgpass, the variable PGPASSFILE, "
    "a service file (?service=<name>), a client certificate (?sslcert=<path>&sslkey=<path>)"
)
_DEFAULTS: dict[str, str] = {
    "application_name": "apflow",
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    # A server that vanished is noticed in a minute, not in the kernel's two hours.
    "keepalives": "1",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
# Compiling a plan takes longer than any of our statements runs. A generic plan saves planning over all
# partitions at each call; prepared statements name what they touch, so it is as good as a custom one.
_SETTINGS = "-c jit=off -c plan_cache_mode=force_generic_plan"

#: Messages of a refused login or a wrong name; libpq gives no SQLSTATE for them.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|role \".*\" does not exist"
    r"|role \".*\" is not permitted|database \".*\" does not exist|permission denied for database"
    r"|server does not support SSL|certificate verify failed|root certificate file|does not match host name"
    r"|certificate file|private key file|definition of service|service file",
)
_PARTITION = re.compile(r"_(\d{4}_\d{2}|rest)$")


def _parse(url: str) -> dict[str, str]:
    known = None
    if url.startswith(("postgresql://", "postgres://")):
        with contextlib.suppress(psycopg.ProgrammingError):
            known = conninfo_to_dict(url)
    if known is None:
        # Raised here, not where libpq's message is at hand: it may quote a password.
        raise BadRequest(
            f"PPDB {_scrubbed(url)} is not a URL that libpq can read; "
            "accepted: postgresql://user@host:port/database?parameter=value with libpq's parameters"
        )
    return {k: str(v) for k, v in known.items() if v is not None}


def _scrubbed(url: str) -> str:
    """A URL that cannot be parsed, without what may be a secret: user information and parameters."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}" if separator else "given"


def display(url: str) -> str:
    """A URL for messages: without password."""
    try:
        known = _parse(url)
    except BadRequest:
        return _scrubbed(url)
    user, database = quote(known.pop("user", "")), quote(known.pop("dbname", ""))
    hosts = known.pop("host", "").split(",")
    ports = known.pop("port", "").split(",")
    places = [
        (f"[{host}]" if ":" in host else quote(host, safe="")) + (f":{port}" if port else "")
        for host, port in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=False)
    ]
    parameters = urlencode({k: v for k, v in known.items() if k not in _SECRETS}, safe="/")
    return (
        f"postgresql://{user}{'@' if user else ''}{','.join(places)}/{database}{'?' if parameters else ''}{parameters}"
    )


def connect(url: str, *, autocommit: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect to a server.

    Parameters
    ----------
    url : `str`
        A libpq URL, ``postgresql://user@host:port/database?sslmode=...``. All of
        libpq's parameters pass through, TLS's (sslmode, sslrootcert, sslcert,
        sslkey...) too.
    autocommit : `bool`
        Each statement is a transaction of its own.

    Raises
    ------
    BadRequest
        The URL cannot be read or holds a password; the server refuses the
        login, does not know the database, fails the check of its certificate,
        or is older than PostgreSQL 15.
    ServiceError
        The server cannot be reached or takes no more connections.
    """
    known = _parse(url)
    shown = display(url)
    held = [name for name in _SECRETS if name in known]
    if held:
        raise BadRequest(f"PPDB {shown}: the URL holds a {held[0]}; {_WAYS}")
    parameters = {**_DEFAULTS, **known}
    parameters["options"] = f"{_SETTINGS} {known.get('options', '')}".strip()
    try:
        connection = psycopg.connect(autocommit=autocommit, **parameters)  # type: ignore[arg-type]
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        if isinstance(error, psycopg.ProgrammingError) or _REFUSED.search(text):
            raise BadRequest(f"PPDB {shown}: {text}" + (f"; {_WAYS}" if "password" in text else "")) from None
        raise ServiceError(f"PPDB {shown} cannot be reached: {text}") from None
    version = connection.info.server_version
    if version < SERVER_VERSION * 10000:
        connection.close()
        raise BadRequest(f"PPDB {shown} is PostgreSQL {version // 10000}; accepted: {SERVER_VERSION} or newer")
    return connection


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Give psycopg's errors as the project's.

    Raises
    ------
    DataError
        A value or a key is refused: table and column or key are named.
    BadRequest
        The tables are not there, or may not be touched by this user.
    ServiceError
        The server is lost, full, read-only, shutting down, or a transaction
        lost against another: it is rolled back, and doing it again is safe.
    """
    try:
        yield
    except psycopg.Error as error:
        translated = _translated(error)
        if translated is None:
            raise
        raise translated from error


def _translated(error: psycopg.Error) -> Exception | None:
    state = error.sqlstate or ""
    text = " ".join(str(error).split())
    if state.startswith(("22", "23")):
        return DataError(_refused_value(error, text))
    if state in ("42P01", "42703", "3F000"):
        return BadRequest(
            f"PPDB: {error.diag.message_primary}; accepted: a database made by `apflow ppdb create` with this schema"
        )
    if state == "42501":
        return BadRequest(f"PPDB: {error.diag.message_primary}; accepted: a user with the right to do so")
    # 42P05 and 26000 are a pooler's: a prepared statement of another session.
    if isinstance(error, psycopg.OperationalError) or state[:2] in ("08", "25", "40", "53", "55", "57", "58", "XX"):
        kind = f" ({type(error).__name__}, SQLSTATE {state})" if state else ""
        return ServiceError(f"PPDB: {text}{kind}; the transaction is not committed, trying again is safe")
    return None


def _refused_value(error: psycopg.Error, text: str) -> str:
    diag = error.diag
    table = _PARTITION.sub("", diag.table_name or "")
    if isinstance(error, psycopg.errors.UniqueViolation):
        return f"PPDB {table}: a row with this key is stored already: {diag.message_detail}"
    if diag.column_name:
        return f"PPDB {table}.{diag.column_name}: {diag.message_primary}"
    if table:
        return f"PPDB {table}: {diag.message_primary}; {diag.message_detail}"
    return f"PPDB: {text}"


def retrying[T](function: Callable[[], T], deadline_s: float) -> T:
    """Call a function again while it raises `ServiceError`, with growing, random pauses.

    Parameters
    ----------
    function
        Idempotent; called at least once.
    deadline_s : `float`
        No call begins later than this after the first one began, seconds.

    Raises
    ------
    ServiceError
        The last one, when the deadline is over.
    """
    begin = time.monotonic()
    pause_s = 0.05
    attempts = 0
    while True:
        attempts += 1
        try:
            return function()
        except ServiceError as error:
            # Many workers lose the server at once: random pauses keep them from coming back at once.
            wait_s = pause_s * random.uniform(0.5, 1.5)
            spent_s = time.monotonic() - begin
            if spent_s + wait_s > deadline_s:
                raise ServiceError(f"{error} (tried {attempts} times in {spent_s:.1f} s)") from error
            time.sleep(wait_s)
            pause_s = min(2.0 * pause_s, 5.0)
