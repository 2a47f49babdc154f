"""Connections to PostgreSQL: secrets, refusals, and errors in the project's words."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from apflow.errors import ApflowError, BadRequest, DataError, ServiceError
from apflow.io.ppdb.postgres import connect as connecting
from apflow.io.ppdb.postgres import ddl, partitions
from apflow.io.ppdb.postgres.connect import connect, display, errors, retrying
from apflow.io.ppdb.postgres.pool import LOOK_UP, Connection, Pool
from apflow.operate.services import PostgresServer


@pytest.fixture(scope="module")
def url(postgres: PostgresServer) -> str:
    return postgres.database()


@pytest.fixture
def connection(url: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(url) as made:
        yield made


@pytest.fixture(scope="module")
def tls_server() -> Iterator[PostgresServer]:
    with PostgresServer(tls=True) as server:
        yield server


def refusal(url: str) -> ApflowError:
    with pytest.raises(ApflowError) as caught:
        connect(url)
    seen: BaseException | None = caught.value
    while seen:
        assert "s3cret" not in f"{seen} {seen!r} {seen.args}"
        seen = seen.__context__
    return caught.value


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@db.org:5433/ppdb?sslmode=verify-full", "me@db.org:5433/ppdb?sslmode=verify-full"),
        ("postgres://me@db.org/ppdb?password=s3cret", "me@db.org/ppdb"),
        ("postgresql://db.org/ppdb?sslpassword=s3cret&sslkey=/etc/key", "db.org/ppdb?sslkey=/etc/key"),
        ("postgresql://me:s3cret@a:1,b:2/ppdb", "me@a:1,b:2/ppdb"),
        ("postgresql://me:s3cret@[::1]:5432/ppdb", "me@[::1]:5432/ppdb"),
    ],
)
def test_a_password_in_the_url_is_refused_and_never_shown(url: str, shown: str) -> None:
    assert display(url) == f"postgresql://{shown}"
    error = refusal(url)
    assert isinstance(error, BadRequest)
    for way in ("passfile", "PGPASSFILE", "service", f"PPDB postgresql://{shown}: "):
        assert way in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret%zz@db.org/ppdb",
        "postgresql://me@db.org/ppdb?unknown=s3cret",
        "postgresql://me:s3cret@db.org/ppdb?sslmode",
        "mysql://me:s3cret@db.org/ppdb",
        "host=db.org password=s3cret",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_showing_its_secrets(url: str) -> None:
    assert "s3cret" not in display(url)
    error = refusal(url)
    assert isinstance(error, BadRequest)
    assert "accepted: postgresql://user@host:port/database" in str(error)


def test_a_url_is_shown_so_that_it_works(url: str) -> None:
    with connect(display(url)) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (url.split("/")[3].split("?")[0],)


def test_session_settings(url: str) -> None:
    with connect(f"{url}&options=-c%20work_mem%3D5MB") as connection:
        settings = connection.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)",
            [["application_name", "jit", "work_mem", "plan_cache_mode", "client_encoding", "synchronous_commit"]],
        ).fetchall()
    assert dict(settings) == {
        "application_name": "apflow",
        "client_encoding": "UTF8",
        "jit": "off",
        "plan_cache_mode": "force_generic_plan",
        "synchronous_commit": "on",
        "work_mem": "5120",
    }


def test_a_server_that_is_not_there_is_a_service_error() -> None:
    for url in (
        "postgresql://me@127.0.0.1:1/ppdb",
        "postgresql://me@/ppdb?host=/nowhere",
        "postgresql://me@a.invalid/x",
    ):
        error = refusal(url)
        assert isinstance(error, ServiceError)
        assert display(url) in str(error)


def test_wrong_names_are_the_callers_to_mend(postgres: PostgresServer) -> None:
    assert 'database "nothing" does not exist' in str(refusal(postgres.url_of("nothing")))
    assert isinstance(refusal(postgres.url_of("nothing")), BadRequest)
    unknown = postgres.url.replace("postgresql://apflow@", "postgresql://nobody_here@")
    assert 'role "nobody_here" does not exist' in str(refusal(unknown))
    assert isinstance(refusal(unknown), BadRequest)


def test_tls_is_verified_and_the_password_comes_from_a_file(tls_server: PostgresServer) -> None:
    with connect(tls_server.tls_url()) as connection:
        query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert connection.execute(query).fetchone() == (True,)
    error = refusal(tls_server.tls_url(passfile=False))
    assert isinstance(error, BadRequest)
    assert "no password supplied" in str(error)
    assert "?passfile=" in str(error)
    by_address = tls_server.tls_url().replace("localhost", "127.0.0.1")
    assert isinstance(refusal(by_address), BadRequest)  # the certificate is another host's
    plain = f"postgresql://apflow@localhost:{tls_server.tls_url().split(':')[2].split('/')[0]}/postgres?sslmode=disable"
    assert "no encryption" in str(refusal(plain + f"&passfile={quote(str(tls_server.password_file), safe='')}"))


def test_a_wrong_password_is_refused(tls_server: PostgresServer, tmp_path: Any) -> None:
    wrong = tmp_path / "passfile"
    wrong.touch(mode=0o600)
    wrong.write_text("*:*:*:*:s3cret\n")
    error = refusal(f"{tls_server.tls_url(passfile=False)}&passfile={quote(str(wrong), safe='')}")
    assert isinstance(error, BadRequest)
    assert "password authentication failed" in str(error)


def test_a_key_that_is_taken_names_the_table_not_its_partition(connection: psycopg.Connection[Any]) -> None:
    ddl.create(connection)
    partitions.ensure(connection, 60700.0, 60700.0)
    columns = '("diaObjectId", "validityStartMjdTai", ra, dec, "nDiaSources", "pixelId"'
    counts = [c for c, t in ddl.types("DiaObject").items() if c.endswith("Ndata") and t == "int4"]
    row = f"{columns}{''.join(f', "{c}"' for c in counts)}) VALUES (7, 60700.5, 10, -10, 1, 0{', 0' * len(counts)})"
    insert = f'INSERT INTO "DiaObject" {row}'
    connection.execute(insert)  # type: ignore[call-overload]
    with (
        pytest.raises(DataError, match=r"^PPDB DiaObject: a row with this key .*\(7, 60700\.5\) already exists"),
        errors(),
    ):
        connection.execute(insert)  # type: ignore[call-overload]
    connection.rollback()
    with pytest.raises(DataError, match=r"^PPDB DiaObject\.ra: null value"), errors():
        connection.execute(insert.replace("10, -10", "NULL, -10"))
    connection.rollback()


@pytest.mark.parametrize(
    ("statements", "kind", "message"),
    [
        (["SELECT 1 FROM nothing"], BadRequest, 'relation "nothing" does not exist'),
        (["SELECT 40000::int2"], DataError, "smallint out of range"),
        (["SET TRANSACTION READ ONLY", "CREATE TABLE t ()"], ServiceError, "read-only transaction"),
        (["SELECT pg_terminate_backend(pg_backend_pid())"], ServiceError, "terminating connection"),
        (["SET LOCAL statement_timeout = 50", "SELECT pg_sleep(9)"], ServiceError, "statement timeout"),
        (
            [
                "SET LOCAL temp_file_limit = '64kB'",
                "SELECT i FROM generate_series(1, 2000000) i ORDER BY -i OFFSET 1999999",
            ],
            ServiceError,
            "temporary file size exceeds",
        ),
        (["CREATE ROLE guest", "SET ROLE guest", "SELECT * FROM pg_authid"], BadRequest, "permission denied"),
    ],
)
def test_errors_of_the_server(
    connection: psycopg.Connection[Any], statements: list[str], kind: type[ApflowError], message: str
) -> None:
    for statement in statements[:-1]:
        connection.execute(statement)  # type: ignore[call-overload]
    with pytest.raises(kind, match=message), errors():
        connection.execute(statements[-1])  # type: ignore[call-overload]


def test_a_lost_connection_is_a_service_error_at_the_next_statement_too(url: str) -> None:
    with connect(url, autocommit=True) as one, connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [one.info.backend_pid])
        for _ in range(2):
            with pytest.raises(ServiceError, match="trying again is safe"), errors():
                one.execute("SELECT 1")


def test_of_two_that_wait_for_each_other_one_may_try_again(url: str) -> None:
    with connect(url) as one, connect(url) as other:
        one.execute("SELECT pg_advisory_xact_lock(1)")
        other.execute("SELECT pg_advisory_xact_lock(2)")
        waiting = threading.Thread(target=lambda: (one.execute("SELECT pg_advisory_xact_lock(2)"), one.commit()))
        waiting.start()
        other.execute("SET LOCAL deadlock_timeout = '20ms'")
        while not other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall():
            time.sleep(0.005)
        with pytest.raises(ServiceError, match="DeadlockDetected"), errors():
            other.execute("SELECT pg_advisory_xact_lock(1)")
        other.rollback()
        waiting.join()


def test_a_mistake_in_the_program_is_not_hidden(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.SyntaxError), errors():
        connection.execute("SELEC 1")


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)

    def monotonic(self) -> float:
        return sum(self.pauses)


def test_retrying_ends_with_the_first_success(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def third_time() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ServiceError("the server is starting")
        return "done"

    clock = Clock()
    monkeypatch.setattr(connecting, "time", clock)
    assert retrying(third_time, 5.0) == "done"
    first, second = clock.pauses
    assert 0.025 <= first <= 0.075 and 0.05 <= second <= 0.15


def test_retrying_gives_up_at_the_deadline_and_on_other_errors_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def never() -> None:
        nonlocal calls
        calls += 1
        raise ServiceError("the server is away")

    clock = Clock()
    monkeypatch.setattr(connecting, "time", clock)
    with pytest.raises(ServiceError, match=r"the server is away \(tried \d+ times in 0\.\d s\)"):
        retrying(never, 0.5)
    assert 0.0 < clock.monotonic() <= 0.5
    assert calls >= 3

    def wrong() -> None:
        nonlocal calls
        calls += 1
        raise DataError("a value is wrong")

    calls = 0
    with pytest.raises(DataError):
        retrying(wrong, 5.0)
    assert calls == 1


def test_helpers_see_what_the_connection_sees_and_are_not_waited_for(postgres: PostgresServer) -> None:
    url = postgres.database()
    pool = Pool(url, 1.0)

    def count(connection: Connection) -> Any:
        return connection.execute("SELECT count(*) FROM seen").fetchall()

    with connect(url, autocommit=True) as other:
        other.execute("CREATE TABLE seen AS SELECT 1 AS n")
        with pool.connection() as connection:
            connection.execute(LOOK_UP)
            assert count(connection) == [(1,)]
            other.execute("INSERT INTO seen VALUES (2)")
            with pool.helpers(connection, 3) as helpers:
                assert [count(h) for h in helpers] == [[(1,)]] * 3
                with pool.helpers(connection, 99) as rest:
                    # Eight in all, of which four are in use.
                    assert len(rest) == 4
                    with pool.helpers(connection, 1) as none:
                        assert none == []
            connection.commit()
        with pytest.raises(DataError):
            _fail_with_a_helper(pool)
        with pool.connection() as connection, pool.helpers(connection, 0) as none:
            assert none == []
            assert count(connection) == [(2,)]
    pool.close()


def _fail_with_a_helper(pool: Pool) -> None:
    with pool.connection() as connection:
        connection.execute(LOOK_UP)
        with pool.helpers(connection, 1) as [helper]:
            helper.execute("SELECT 1 / 0")
