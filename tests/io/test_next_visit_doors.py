"""Doors of events that need no service: files, standard input, HTTP."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apflow.errors import BadRequest
from apflow.io.next_visit import HttpDoor, LinesDoor, Notice
from apflow.model.next_visit import NextVisit, NextVisitCanceled, StartIntegration
from tests.model.test_next_visit import NEXT_VISIT, START


def line(**fields: Any) -> str:
    return json.dumps(fields) + "\n"


def test_lines_of_a_file_each_with_its_place(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    lines = [
        line(event="nextVisit", **NEXT_VISIT),
        "\n",
        line(**START),
        line(event="nextVisitCanceled", groupId="g"),
        line(**(NEXT_VISIT | {"nimages": 9})),
        "{not json\n",
        "[1]\n",
        line(event="nextvisit", groupId="g"),
        json.dumps(NEXT_VISIT),
    ]
    path.write_text("".join(lines))
    notices = list(LinesDoor(path).notices())
    assert [type(n.message) for n in notices] == [
        NextVisit,
        StartIntegration,
        NextVisitCanceled,
        *(4 * [type(None)]),
        NextVisit,
    ]
    assert [n.place.rpartition(":")[2] for n in notices] == ["1", "3", "4", "5", "6", "7", "8", "9"]
    refusals = [n.refusal for n in notices if n.message is None]
    assert "nextVisit.nimages 9" in refusals[0] and "is no JSON" in refusals[1]
    assert "a record of named fields" in refusals[2] and "nextVisit, nextVisitCanceled" in refusals[3]
    assert notices[0].record["groupId"] == NEXT_VISIT["groupId"], "what came can be written down"


def test_a_line_without_end_is_thrown_away_not_kept(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_text("x" * 3_000_000 + "\n" + line(**NEXT_VISIT))
    refused, good = LinesDoor(path).notices()
    assert "a line of more than" in refused.refusal and isinstance(good.message, NextVisit)


def test_a_file_is_followed_when_it_grows_and_when_it_is_replaced(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_text(line(event="nextVisitCanceled", groupId="1"))
    door = LinesDoor(path, follow=True)
    seen: list[Notice] = []
    reader = threading.Thread(target=lambda: seen.extend(door.notices()))
    reader.start()
    groups = _Groups(seen)
    groups.wait_for("1")
    with path.open("a") as file:
        file.write('{"event": "nextVisitCanceled", ')
        file.flush()
        time.sleep(0.3)
        file.write('"groupId": "2"}\n')
    groups.wait_for("1", "2")
    (tmp_path / "new").write_text(line(event="nextVisitCanceled", groupId="3"))
    os.replace(tmp_path / "new", path)
    groups.wait_for("1", "2", "3")
    door.close()
    reader.join(5.0)
    assert not reader.is_alive()


class _Groups:
    """Groups of the notices so far."""

    def __init__(self, seen: list[Notice]) -> None:
        self._seen = seen

    def wait_for(self, *groups: str) -> None:
        deadline = time.monotonic() + 20.0
        while (now := [n.message.group for n in self._seen if n.message]) != list(groups):
            assert time.monotonic() < deadline, now
            time.sleep(0.02)


def test_a_file_that_is_not_there():
    with pytest.raises(BadRequest, match="events '/none/of/it' cannot be read: No such file"):
        LinesDoor("/none/of/it")


def test_standard_input_ends_where_it_ends():
    program = (
        "from apflow.io.next_visit import LinesDoor\n"
        "for n in LinesDoor.stdin().notices(): print(n.place, n.message.group, flush=True)\n"
    )
    given = line(event="nextVisitCanceled", groupId="a") + line(event="nextVisitCanceled", groupId="b").rstrip()
    run = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines() == ["stdin:1 a", "stdin:2 b"], run.stderr


class Served:
    """An HTTP door whose notices are recorded, or not."""

    def __init__(self) -> None:
        self.door = HttpDoor(":0")
        self.seen: list[Notice] = []
        self.recording = True
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for notice in self.door.notices():
            self.seen.append(notice)
            if self.recording:
                self.door.done(notice)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.door.url.removeprefix("http://"), timeout=20)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        finally:
            connection.close()

    def close(self) -> None:
        self.door.close()
        self._thread.join(5.0)
        assert not self._thread.is_alive()


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.close()


def test_a_post_is_accepted_once_it_is_recorded(served: Served):
    assert served.door.url.startswith("http://127.0.0.1:")
    status, _ = served.ask("POST", "/nextVisit", json.dumps(NEXT_VISIT).encode())
    assert status == 202 and isinstance(served.seen[0].message, NextVisit)
    served.recording = False
    reply: list[tuple[int, str]] = []
    asking = threading.Thread(
        target=lambda: reply.append(served.ask("POST", "/startIntegration", json.dumps(START).encode()))
    )
    asking.start()
    deadline = time.monotonic() + 20.0
    while len(served.seen) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    asking.join(0.3)
    assert asking.is_alive() and not reply, "not recorded: not answered"
    served.door.done(served.seen[1])
    asking.join(20.0)
    assert reply[0][0] == 202


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/nextVisit", json.dumps(NEXT_VISIT | {"nimages": 5}), 400, "nextVisit.nimages 5 is not accepted: 0 to 2"),
        ("/nextVisit", "{", 400, "the body is no JSON"),
        ("/nextVisit", "[" * 100_000, 400, "the body is no JSON"),
        ("/nextVisit", "3", 400, "a record of named fields"),
        ("/nextVisitCanceled", "{}", 400, "nextVisitCanceled.groupId is missing"),
        ("/elsewhere", "{}", 404, "/nextVisit, /nextVisitCanceled, /startIntegration"),
    ],
)
def test_a_bad_post_is_refused_with_the_reason(served: Served, path: str, body: str, status: int, told: str):
    found, text = served.ask("POST", path, body.encode())
    assert found == status and told in json.loads(text)["error"]


def test_what_is_too_long_or_of_no_length_is_not_read(served: Served):
    assert served.ask("POST", "/nextVisit", b"", **{"Content-Length": "99999999"})[0] == 413
    assert served.ask("POST", "/nextVisit", b"", **{"Content-Length": "-1"})[0] == 413
    assert served.ask("GET", "/")[0] == 200 and served.ask("GET", "/nextVisit")[0] == 404


def test_addresses(served: Served):
    for address in ("", "8080", "host:", ":port", ":99999"):
        with pytest.raises(BadRequest, match="is not accepted: :port or host:port"):
            HttpDoor(address)
    with pytest.raises(BadRequest, match="cannot be listened on: Address already in use"):
        HttpDoor(served.door.url.removeprefix("http://"))
