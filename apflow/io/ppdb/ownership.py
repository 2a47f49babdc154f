"""Who owns a DuckDB file: one process, which serves the others on its machine.

Beside the database lies ``<file>.owner``. Its owner holds an exclusive lock on
it, which ends with the process however that ends, and writes there how to be
reached: a Unix socket in a private folder, and a key only this user can read.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import socket
import tempfile
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from apflow.errors import ApflowError, ServiceError
from apflow.io.ppdb.engine import Engine

#: Longest path of a Unix socket that every system takes.
_SOCKET_PATH = 100
_FOLDER = "apflow-ppdb-"
#: What clients may ask for.
REQUESTS = frozenset(
    [
        *("open_visit", "await_turn", "objects", "history", "contains", "table"),
        *("histories", "drp_objects", "load_drp_objects", "withdraw"),
        *("select", "change", "sizes"),
        *("store", "settle", "pending", "claim", "claims", "release", "end_lease", "refuse", "mark_published"),
    ]
)


def take(path: Path) -> int | None:
    """Take the ownership of a database; None if another process has it.

    Returns
    -------
    `int`
        Descriptor that holds the lock until it is closed.
    """
    try:
        fd = os.open(_sidecar(path), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ServiceError(f"PPDB {path}: {_sidecar(path)} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    _sweep(fd)
    os.ftruncate(fd, 0)
    return fd


def _sweep(fd: int) -> None:
    """Remove the socket folder that a killed owner left."""
    with contextlib.suppress(ValueError, KeyError, OSError):
        address = json.loads(os.pread(fd, 4096, 0))["address"]
        folder = Path(address).parent if isinstance(address, str) else Path()
        if folder.name.startswith(_FOLDER) and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def reach(path: Path) -> Connection:
    """Connect to the owner.

    Raises
    ------
    OSError
        It cannot be reached now: it may be starting or gone.
    ServiceError
        It runs on another machine.
    """
    try:
        card = json.loads(_sidecar(path).read_text())
    except ValueError as error:
        raise ConnectionRefusedError("the owner is still starting") from error
    if card["host"] != socket.gethostname():
        raise ServiceError(f"PPDB {path} is open on {card['host']}; accepted: processes of that machine, or a server")
    address = card["address"] if isinstance(card["address"], str) else tuple(card["address"])
    connection = Client(address)
    try:
        answer_challenge(connection, bytes.fromhex(card["key"]))
        deliver_challenge(connection, bytes.fromhex(card["key"]))
    except (AuthenticationError, EOFError) as error:
        connection.close()
        raise ConnectionRefusedError("the owner has changed") from error
    return connection


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".owner")


class Server:
    """Answers the requests of other processes, a thread for each connection."""

    def __init__(self, path: Path, fd: int, engine: Engine) -> None:
        self.pid = os.getpid()
        self.engine = engine
        self._fd = fd
        self._key = secrets.token_bytes(32)
        self._folder = tempfile.mkdtemp(prefix=_FOLDER)
        name = os.path.join(self._folder, "ppdb")
        self._socket = socket.socket(socket.AF_UNIX if len(name) < _SOCKET_PATH else socket.AF_INET)
        self._socket.bind(name if self._socket.family == socket.AF_UNIX else ("127.0.0.1", 0))
        self._socket.listen(256)
        self._closing = False
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        card = {"host": socket.gethostname(), "address": self._socket.getsockname(), "key": self._key.hex()}
        os.pwrite(fd, json.dumps(card | {"pid": self.pid}).encode(), 0)
        threading.Thread(target=self._accept, name=f"ppdb {path.name}", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                return  # closed
            connection = Connection(accepted.detach())
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="ppdb client", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        # A client may go at any moment: its requests are idempotent and it will ask again.
        with contextlib.suppress(OSError, EOFError, AuthenticationError):
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            while True:
                name, arguments = connection.recv()
                answer = self._answer(name, arguments)
                if self._closing and not answer[0]:
                    break  # it may have failed since the database is being closed: the next owner answers
                connection.send(answer)
        with self._lock:
            self._connections.discard(connection)
            connection.close()

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        if name not in REQUESTS:
            return False, ServiceError(f"the PPDB does not know the request {name!r}")
        try:
            return True, getattr(self.engine, name)(*arguments)
        except ApflowError as error:
            return False, error
        except Exception as error:  # the client raises it: the server must live on
            return False, RuntimeError(f"PPDB request {name}: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Stop answering, close the database, give up the ownership."""
        self._closing = True
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.engine.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as s:
                    s.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads; closing would not
        shutil.rmtree(self._folder, ignore_errors=True)
        os.ftruncate(self._fd, 0)
        os.close(self._fd)

    def forget(self) -> None:
        """In a forked child: the parent stays the owner, and nothing here may outlive it.

        Neither the lock nor the sockets may stay open, and DuckDB's destructor may not touch the file.
        """
        os.close(self._fd)
        self._socket.close()
        for connection in list(self._connections):
            connection.close()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.engine.connection))
