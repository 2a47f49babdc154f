"""One thread a process that looks at the board, however many wait for what comes to it."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from apflow.errors import ApflowError
from apflow.io.arrivals.board import Board, Key, Message

#: A board that fails is asked again after this.
_PAUSE_S = 0.3


class Watch:
    """What one thread waits for."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = frozenset(keys)
        self._found: dict[Key, Message] = {}
        self._changed = threading.Condition()
        self._news = False

    def tell(self, message: Message, key: Key) -> None:
        """Give the thread a message."""
        with self._changed:
            if self._found.get(key) != message:
                self._found[key] = message
                self._news = True
                self._changed.notify_all()

    def wait(self, timeout_s: float) -> dict[Key, Message]:
        """All that was found, as soon as some of it is new, or when the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._news, timeout_s)
            self._news = False
            return dict(self._found)


class Hub:
    """Hands messages of a board to those who wait for them.

    Its thread runs only while somebody waits, and alone reads the board: the
    cost is that of the messages, not of the waiters.

    Parameters
    ----------
    open_board : callable
        Gives the board to the thread.
    """

    def __init__(self, open_board: Callable[[], Board]) -> None:
        self._open_board = open_board
        self._lock = threading.Lock()
        self._watches: defaultdict[Key, list[Watch]] = defaultdict(list)
        self._fresh: set[Key] = set()
        self._call: int | None = None

    @contextlib.contextmanager
    def waiting(self, keys: Iterable[Key]) -> Iterator[Watch]:
        """A watch for some messages, those that are there already included."""
        watch = Watch(keys)
        with self._lock:
            for key in watch.keys:
                self._watches[key].append(watch)
            self._fresh |= watch.keys
            if self._call is None:
                # Before the thread runs: who comes next must not start another.
                hearing, self._call = os.pipe()
                threading.Thread(target=self._run, args=(hearing,), name="arrivals", daemon=True).start()
            else:
                os.write(self._call, b".")
        try:
            yield watch
        finally:
            with self._lock:
                for key in watch.keys:
                    self._watches[key].remove(watch)
                    if not self._watches[key]:
                        del self._watches[key]
                if self._call is not None and not self._watches:
                    os.write(self._call, b".")  # nobody waits any more

    def _run(self, hearing: int) -> None:
        try:
            with self._open_board() as board:
                while self._go_on():
                    try:
                        self._serve(board, hearing)
                    except ApflowError:
                        # Whoever waits asks the board by itself in the end, and says what is wrong with it.
                        board.close()
                        with self._lock:
                            self._fresh |= self._watches.keys()
                        time.sleep(_PAUSE_S)
        finally:
            os.close(hearing)

    def _go_on(self) -> bool:
        """Whether somebody waits; if not, the next who does starts another thread."""
        with self._lock:
            if not self._watches and self._call is not None:
                os.close(self._call)
                self._call = None
                self._fresh.clear()
            return bool(self._watches)

    def _serve(self, board: Board, hearing: int) -> None:
        """Read what must be read, hand it out, and wait for more."""
        due, settled = 0.0, set[Key]()
        while True:
            with self._lock:
                if not self._watches:
                    return
                fresh, self._fresh = self._fresh & self._watches.keys(), set()
                keys = set(self._watches)
            wanted = set(fresh)
            if fresh:
                # Heard first and read afterwards: nothing is lost in between.
                board.listen({key.place for key in keys})
                settled &= keys
            heard = board.heard()
            if heard is None or time.monotonic() >= due:
                heard, due = keys, time.monotonic() + board.poll_s
            wanted |= (heard & keys) - settled
            if wanted:
                settled |= self._hand_out(board.get(wanted))
                continue  # reading may have taken in what the descriptor told of
            ready = _readable([hearing, board.fileno()], max(0.0, due - time.monotonic()))
            if hearing in ready:
                os.read(hearing, 4096)

    def _hand_out(self, messages: dict[Key, Message]) -> set[Key]:
        """Tell those who wait; returns the keys whose message will not change."""
        with self._lock:
            for key, message in messages.items():
                for watch in self._watches.get(key, ()):
                    watch.tell(message, key)
        return {key for key, message in messages.items() if "error" not in message}


def _readable(files: Iterable[int], timeout_s: float) -> set[int]:
    poll = select.poll()
    for file in files:
        if file >= 0:
            poll.register(file, select.POLLIN)
    return {file for file, _ in poll.poll(1000.0 * timeout_s)}
