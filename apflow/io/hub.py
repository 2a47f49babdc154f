"""One thread a process that looks for files to appear, however many wait for them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path


class Hub:
    """Wakes waiters when one of their files appears.

    Its thread runs only while somebody waits, and lists each awaited folder
    once a turn: the cost is that of the folders, not of the waiters.

    Parameters
    ----------
    poll_s : `float`
    """

    def __init__(self, poll_s: float = 0.03) -> None:
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._waiting: dict[Path, dict[str, list[threading.Event]]] = {}
        self._seen: dict[Path, set[str]] = {}
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def waiting(self, files: Iterable[Path]) -> Iterator[threading.Event]:
        """An event that is set each time one of the files appears; check for them after entering, not before."""
        files, event = tuple(files), threading.Event()
        with self._lock:
            for file in files:
                self._waiting.setdefault(file.parent, {}).setdefault(file.name, []).append(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)
                self._thread.start()
        try:
            yield event
        finally:
            with self._lock:
                for file in files:
                    self._forget(file, event)

    def _forget(self, file: Path, event: threading.Event) -> None:
        names = self._waiting[file.parent]
        names[file.name].remove(event)
        if not names[file.name]:
            del names[file.name]
        if not names:
            del self._waiting[file.parent]
            self._seen.pop(file.parent, None)

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                folders = list(self._waiting)
            for folder in folders:
                self._look(folder)
            pause.wait(self._poll_s)

    def _look(self, folder: Path) -> None:
        present = _names(folder)
        with self._lock:
            names = self._waiting.get(folder)
            if names is None:
                return
            for name in present - self._seen.get(folder, set()):
                for event in names.get(name, ()):
                    event.set()
            self._seen[folder] = present


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
