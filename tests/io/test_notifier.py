"""Boards and the hub: what is put up is found by those who wait, on either registry, cheaply and without loss."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import yaml

from apflow.errors import BadRequest, ServiceError
from apflow.io.arrivals.board import GROUPS, Board, Key, Place, open_board
from apflow.io.arrivals.database_board import DatabaseBoard
from apflow.io.arrivals.folder_board import FolderBoard
from apflow.io.arrivals.hub import Hub
from apflow.io.butler import create_repository
from apflow.operate.services import PostgresServer

PLACE = Place("LSSTComCam", GROUPS, "2025-04-21T03:36:00.000")


def key(name: object, place: str = PLACE.name) -> Key:
    return Key(PLACE._replace(name=place), str(name))


@pytest.fixture
def board(either_root: Path) -> Iterator[Board]:
    with open_board(either_root) as opened:
        yield opened


def test_the_first_good_message_stands_and_replaces_a_bad_one(board: Board) -> None:
    board.put({key(1): {"error": "truncated"}, key(2): {"path": "a"}})
    board.put({key(1): {"error": "again"}, key(2): {"error": "late"}})
    assert board.get([key(1), key(2), key(3)]) == {key(1): {"error": "truncated"}, key(2): {"path": "a"}}
    board.put({key(1): {"path": "b"}, key(2): {"path": "c"}})
    assert board.get([key(1), key(2)]) == {key(1): {"path": "b"}, key(2): {"path": "a"}}
    assert board.names(PLACE) == {"1", "2"} and board.names(PLACE._replace(name="other")) == set()


@pytest.mark.parametrize("name", ["../../up", "..", "", "a b:c+d", "x" * 64])
def test_any_group_is_a_place_of_its_own(either_root: Path, name: str) -> None:
    with open_board(either_root) as board:
        board.put({key("4", name): {"path": name}})
        assert board.get([key("4", name), key("4")]) == {key("4", name): {"path": name}}


def test_what_is_put_up_elsewhere_is_heard_of_by_name(board: Board, either_root: Path) -> None:
    """More names than a notification of PostgreSQL holds, and nothing of places that nobody asked for."""
    board.listen([PLACE])
    assert not board.heard()
    many = {key(f"{i}_{'x' * 40}"): {"path": str(i)} for i in range(250)}
    with open_board(either_root) as other:
        other.put({**many, key(1, "elsewhere"): {"path": "no"}})
    heard: set[Key] = set()
    deadline = time.monotonic() + 5.0
    while len(heard) < len(many) and time.monotonic() < deadline:
        heard |= board.heard() or set()
    assert heard == set(many)


def test_the_hub_loses_no_wake_up(either_root: Path) -> None:
    """Messages that come at any moment around the subscription reach who waits for them, and soon."""
    hub = Hub(lambda: open_board(either_root))
    late: list[float] = []

    def one(i: int) -> bool:
        wanted, put_at = key(i, f"group {i % 7}"), [0.0]

        def put() -> None:
            with open_board(either_root) as board:
                time.sleep(i % 5 * 0.004)
                put_at[0] = time.monotonic()
                board.put({wanted: {"path": str(i)}})

        maker = threading.Thread(target=put)
        maker.start()
        with hub.waiting([wanted]) as watch:
            found = watch.wait(5.0)
        late.append(time.monotonic() - put_at[0])
        maker.join()
        return found == {wanted: {"path": str(i)}}

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(one, range(100)))
    # Polling would take 1 s or 2: that is for what no event told of.
    assert sorted(late)[50] < 0.5


def test_without_events_polling_finds_it(tmp_path: Path) -> None:
    """As on NFS, or where inotify gives no more watches."""
    hub = Hub(lambda: FolderBoard(tmp_path, events=False))
    with hub.waiting([key(1)]) as watch:
        assert watch.wait(0.1) == {}
        FolderBoard(tmp_path).put({key(1): {"path": "a"}})
        begin = time.monotonic()
        assert watch.wait(5.0) == {key(1): {"path": "a"}}
        assert time.monotonic() - begin < 4.0


def test_a_lost_connection_is_made_again_and_misses_nothing(postgres: PostgresServer) -> None:
    url = postgres.database()
    with DatabaseBoard(url, "") as board:
        board.create()
    hub = Hub(lambda: DatabaseBoard(url, ""))
    with hub.waiting([key(1)]) as watch, psycopg.connect(url, autocommit=True) as admin:
        assert watch.wait(0.3) == {}
        killed = admin.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
        assert killed == (1,)  # all waiters of a process have one connection
        with DatabaseBoard(url, "") as board:
            board.put({key(1): {"path": "a"}})
        assert watch.wait(5.0) == {key(1): {"path": "a"}}


def test_two_repositories_in_one_database_do_not_meet(postgres: PostgresServer) -> None:
    url = postgres.database()
    boards = [DatabaseBoard(url, name) for name in ("", "other")]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")
    for board in boards:
        board.create()
        board.listen([PLACE])
    boards[1].put({key(1): {"path": "a"}})
    time.sleep(0.2)
    assert boards[0].get([key(1)]) == {} and boards[0].heard() == set()
    assert boards[1].heard() == {key(1)}
    for board in boards:
        board.close()


def test_a_server_that_is_not_there_is_named_and_no_secret_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"registry at localhost:1/db failed"):
        DatabaseBoard("postgresql://me@localhost:1/db", "").get([key(1)])
    for url in ("postgresql://me:sesame@localhost/db", "postgresql://localhost/db?password=sesame"):
        with pytest.raises(BadRequest, match=r"holds a password; accepted: libpq's ways") as raised:
            create_repository(tmp_path / "r", "comcam", 128, url)
        assert "sesame" not in str(raised.value)
    with pytest.raises(BadRequest, match=r"accepted: postgresql://user@host"):
        create_repository(tmp_path / "r", "comcam", 128, "mysql://sesame@host/db")
    assert not (tmp_path / "r").exists()


def test_a_schema_holds_one_butler_and_a_registry_is_of_a_known_kind(
    pristine_postgres_repository: Path, postgres: PostgresServer, tmp_path: Path
) -> None:
    with pytest.raises(BadRequest, match=r"schema 'butler' of registry .*/pristine_butler holds a Butler already"):
        create_repository(tmp_path / "r", "comcam", 128, postgres.url_of("pristine_butler"), "butler")
    (tmp_path / "butler.yaml").write_text(yaml.safe_dump({"registry": {"db": "oracle://x"}}))
    with pytest.raises(BadRequest, match=r"is oracle; accepted: sqlite, postgresql"):
        open_board(tmp_path)
