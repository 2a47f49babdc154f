"""A thread that takes images in as they come."""

from __future__ import annotations

import os
import select
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Self

from apflow.errors import ServiceError

if TYPE_CHECKING:
    from apflow.io.butler import Repository

_TRIES = 10
_PAUSE_S = 0.02


class Background(ABC):
    """Takes what has come, again and again, in a thread with a repository of its own.

    Parameters
    ----------
    root : `str` or `pathlib.Path`
        Root of the repository.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)
        self._stopped = False
        self._ready = threading.Event()
        self._call: tuple[int, int] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ingestor", daemon=True)

    def start(self) -> Self:
        """Begin; returns when the repository is open."""
        self._open()
        self._call = os.pipe()
        self._thread.start()
        self._ready.wait()
        self.check()
        return self

    def stop(self) -> None:
        """Take what has come so far, and end; raises what went wrong in the thread."""
        self._stopped = True
        if self._call is not None:
            os.write(self._call[1], b".")
            self._thread.join()
            for end in self._call:
                os.close(end)
            self._call = None
        self.check()

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.stop()
        except BaseException:
            if kind is None:
                raise

    @abstractmethod
    def _open(self) -> None:
        """Open what images come by; closed by `_close` in the thread."""

    @abstractmethod
    def _turn(self, repository: Repository) -> float:
        """Take what has come; returns for how long nothing need be done, seconds, if nothing is heard."""

    @abstractmethod
    def _fileno(self) -> int:
        """Readable when something has come; -1 where that is not told."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of what was opened."""

    def _run(self) -> None:
        from apflow.io.butler import Repository

        try:
            with Repository(self._root, writeable=True) as repository:
                repository.ingest_raws([], "move")  # imports what the first image should not wait for
                self._ready.set()
                self._serve(repository)
        except BaseException as error:
            self._error = error
        finally:
            self._close()
            self._ready.set()

    def _serve(self, repository: Repository) -> None:
        assert self._call is not None
        failures, called = 0, self._call[0]
        while True:
            last = self._stopped
            try:
                rest_s = self._turn(repository)
                failures = 0
            except ServiceError:
                failures += 1
                if failures == _TRIES:
                    raise
                time.sleep(_PAUSE_S * 2**failures)
                continue
            if last:
                return
            poll = select.poll()
            for file in (called, self._fileno()):
                if file >= 0:
                    poll.register(file, select.POLLIN)
            poll.poll(1000.0 * rest_s)
