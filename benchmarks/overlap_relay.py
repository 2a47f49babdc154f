"""Stands between clients and a server on Unix sockets, and stops what passes at a chosen moment."""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK = 1 << 16


class Held(enum.StrEnum):
    """What does not get through: a request, or its answer."""

    REQUEST = "request"
    ANSWER = "answer"


@dataclass
class Trap:
    """Closes on the first connection on which a client sends all of some bytes, one after the other.

    The last of them is the request that is held, or whose answer is.
    """

    marks: Sequence[bytes]
    held: Held
    closed: threading.Event = field(default_factory=threading.Event)


class Relay:
    """Passes on all that clients of one socket and the server behind another say, up to a trap.

    Parameters
    ----------
    here, there : `pathlib.Path`
        Sockets of this relay and of the server.
    """

    def __init__(self, here: Path, there: Path) -> None:
        self.here, self.there = here, there
        #: What is set now.
        self.trap: Trap | None = None
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(here))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, marks: Sequence[bytes], held: Held) -> threading.Event:
        """Set a trap; what it gives is set when something is in it."""
        self._released.clear()
        self.trap = Trap(marks, held)
        return self.trap.closed

    def release(self) -> None:
        """Take the trap away; the connection that is in it is cut, and what was held does not arrive."""
        self.trap = None
        self._released.set()

    def close(self) -> None:
        """Accept no more."""
        self.release()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(str(self.there))
                except OSError:
                    for one in (client, server):  # as a server that is not there
                        one.close()
                    continue
                pair = _Pair(self, client, server)
                threading.Thread(target=pair.requests, daemon=True).start()
                threading.Thread(target=pair.answers, daemon=True).start()

    def falls(self, trap: Trap | None) -> bool:
        """Whether a trap is still open; it closes once, and then this waits for `release`."""
        with self._lock:
            if trap is None or trap is not self.trap or trap.closed.is_set():
                return False
            trap.closed.set()
        self._released.wait()
        return True


class _Pair:
    """A connection of a client and the one to the server behind it."""

    def __init__(self, relay: Relay, client: socket.socket, server: socket.socket) -> None:
        self._relay, self._client, self._server = relay, client, server
        self._trap: Trap | None = None
        self._seen = 0
        self._tail = b""
        self._answer = False  # the answer to come is the one to hold

    def requests(self) -> None:
        """From client to server."""
        with contextlib.suppress(OSError):
            while chunk := self._client.recv(_CHUNK):
                if self._complete(chunk):
                    trap = self._trap
                    if trap is not None and trap.held is Held.REQUEST:
                        if self._relay.falls(trap):
                            break
                    else:
                        self._answer = True
                self._server.sendall(chunk)
        self._cut()

    def answers(self) -> None:
        """From server to client."""
        with contextlib.suppress(OSError):
            while chunk := self._server.recv(_CHUNK):
                if self._answer and self._relay.falls(self._trap):
                    break
                self._client.sendall(chunk)
        self._cut()

    def _complete(self, chunk: bytes) -> bool:
        """Whether the client has now sent the last of the marks."""
        if self._relay.trap is not self._trap:
            self._trap, self._seen, self._tail, self._answer = self._relay.trap, 0, b"", False
        if self._trap is None or self._seen == len(self._trap.marks):
            return False
        text = self._tail + chunk
        while self._seen < len(self._trap.marks):
            mark = self._trap.marks[self._seen]
            at = text.find(mark)
            if at < 0:
                break
            text = text[at + len(mark) :]
            self._seen += 1
        self._tail = text[-64:]
        return self._seen == len(self._trap.marks)

    def _cut(self) -> None:
        for one in (self._client, self._server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
