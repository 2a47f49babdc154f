"""The servers of `overlap_kills`: PostgreSQL, and the process that owns a DuckDB file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from overlap_relay import Relay
from overlap_worker import Process, own

from apflow.operate.services import PostgresServer


class Postgres:
    """A new database of a PostgreSQL server; see `overlap_kills.Server`.

    Parameters
    ----------
    server : `~apflow.operate.services.PostgresServer`
        Is killed, too: nobody else may use it.
    folder : `pathlib.Path`
        For the relay's socket.
    """

    kind = "postgresql"
    lost = False
    _marks: ClassVar[dict[str, bytes]] = {
        "openVisit": b"region, cells::int8[]",
        "getHistory": b'"DiaObjectLast"',
        "storeBatch": b"pg_advisory_xact_lock",
        "settle": b"greatest(excluded.n_sources",
        "claimAlerts": b"SET claim = ",
        "markPublished": b"SET published_unix",
    }

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self._server = server
        self.url = server.database()
        here, there = quote(str(folder), safe=""), quote(str(server.folder), safe="")
        self._by_relay = self.url.replace(there, here)
        socket = ".s.PGSQL." + self.url.rpartition("port=")[2]
        self.relay = Relay(folder / socket, server.folder / socket)

    def start(self) -> None:
        """It runs."""

    def end(self) -> None:
        """Leave the server running."""
        self.relay.close()

    def kill(self) -> None:
        """Kill the server with all that serve its clients, and start it again."""
        self._server.kill()
        self.relay.release()
        self._server.start()

    @contextlib.contextmanager
    def led_to_relay(self) -> Iterator[str]:
        """See `overlap_kills.Server`."""
        yield self._by_relay

    def marks(self, call: str) -> Sequence[bytes]:
        """All that a transaction writes waits for its COMMIT."""
        return self._marks[call], b"COMMIT"


class DuckDb:
    """A file, and a process that owns it and answers the others; see `overlap_kills.Server`.

    When that is killed, whoever asks next takes over: the next to be killed is
    started when the visits in flight are through.
    """

    kind = "duckdb"
    _requests: ClassVar[dict[str, str]] = {
        "openVisit": "open_visit",
        "getHistory": "histories",
        "storeBatch": "store",
        "settle": "settle",
        "claimAlerts": "claim",
        "markPublished": "mark_published",
    }
    relay: Relay

    def __init__(self, folder: Path) -> None:
        self.url = f"duckdb://{folder}/ppdb.duckdb"
        self._card = folder / "ppdb.duckdb.owner"
        self._relays = 0
        self.lost = False

    def start(self) -> None:
        """Start an owner, and a relay to it."""
        self._owner = Process(own, self.url)
        assert self._owner.until("ready")[-1] == "ready"
        self._relays += 1
        address = Path(json.loads(self._card.read_text())["address"])
        self.relay = Relay(self._card.with_name(f"relay{self._relays}"), address)
        self.lost = False

    def end(self) -> None:
        """End the owner."""
        self.relay.close()
        if not self.lost:
            self._owner.end()

    def kill(self) -> None:
        """Kill the owner."""
        self._owner.kill()
        self.lost = True
        self.relay.release()

    @contextlib.contextmanager
    def led_to_relay(self) -> Iterator[str]:
        """See `overlap_kills.Server`: the owner's card names the relay for a while."""
        text = self._card.read_text()
        self._card.write_text(json.dumps(json.loads(text) | {"address": str(self.relay.here)}))
        yield self.url
        self._card.write_text(text)

    def marks(self, call: str) -> Sequence[bytes]:
        """Requests are pickled, their names first; an answer says that all is committed."""
        name = self._requests[call].encode()
        return (b"\x8c" + bytes([len(name)]) + name,)
