"""The thread that registers raw images as they land in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from apflow.io.arrivals.background import Background
from apflow.io.arrivals.events import LANDED, FolderEvents, is_heard
from apflow.io.arrivals.intake import Intake, is_wanted

if TYPE_CHECKING:
    from apflow.io.butler import Repository

#: An empty folder this old, seconds, is nobody's that is about to write into it.
_STALE_S = 60.0
#: How often to look, with events and without.
_SLOW_S, _FAST_S = 0.5, 0.02


class Ingestor(Background):
    """Registers raw images, and what comes with them, as they land, in a thread of its own.

    A file is taken when it is whole, removed from the landing folder once it
    is registered and announced, and moved to ``rejected/`` in the repository
    when it stays unacceptable for `settle_s`. A file that was taken before a
    crash but not removed is taken again, which is harmless.

    Parameters
    ----------
    root : `str` or `pathlib.Path`
        Root of the repository.
    landing : `str` or `pathlib.Path`
        Folder in which files land, in itself or in folders below; names that
        begin with a dot are not looked at.
    poll_s : `float`, optional
        How often to look; by default seldom where inotify tells what lands,
        and often where it does not (NFS and the like).
    settle_s : `float`
    """

    def __init__(
        self, root: str | Path, landing: str | Path, *, poll_s: float | None = None, settle_s: float = 1.0
    ) -> None:
        super().__init__(root)
        self._landing = Path(landing)
        self._poll_s, self._settle_s = poll_s, settle_s
        self._intake = Intake("move")
        self._events: FolderEvents | None = None
        self._watched: set[Path] = set()
        self._arrived: dict[Path, float] = {}
        self._suspect: dict[Path, tuple[int, float]] = {}
        self._looked_unix = 0.0

    def _open(self) -> None:
        self._landing.mkdir(parents=True, exist_ok=True)
        try:
            if is_heard(self._landing):
                self._events = FolderEvents(LANDED)
        except OSError:
            pass  # the kernel gives no more of them: polling does
        if self._poll_s is None:
            self._poll_s = _FAST_S if self._events is None else _SLOW_S

    def _close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def _fileno(self) -> int:
        return -1 if self._events is None else self._events.fileno()

    def _turn(self, repository: Repository) -> float:
        """Look once, and take what can be taken."""
        if self._events is not None:
            self._events.read()  # what is heard of now is seen below
        looked = time.time()
        sizes = dict(self._landed(self._landing))
        self._arrived = {file: self._arrived.get(file) or self._arrival(file) for file in sizes}
        self._suspect = {file: known for file, known in self._suspect.items() if file in sizes}
        self._looked_unix = looked
        ready = [file for file, size in sizes.items() if self._is_due(file, size, looked)]
        errors = self._intake.take(repository, ready, self._arrived) if ready else {}
        for file in ready:
            if file not in errors:
                self._suspect.pop(file, None)
            elif self._suspect.get(file, (None, 0.0))[0] == sizes[file]:
                del self._suspect[file]
                self._intake.reject(repository, errors[file])
            else:
                # It may still be being written by somebody who does not rename.
                self._suspect[file] = (sizes[file], looked)
        assert self._poll_s is not None
        return min(self._poll_s, self._settle_s / 4) if self._suspect else self._poll_s

    def _arrival(self, file: Path) -> float:
        """When a file landed: a rename keeps the time of writing, but it was not there when last looked."""
        try:
            status = file.stat()
        except FileNotFoundError:
            return self._looked_unix
        return min(max(status.st_mtime, status.st_ctime, self._looked_unix), time.time())

    def _is_due(self, file: Path, size: int, now: float) -> bool:
        known = self._suspect.get(file)
        return known is None or known[0] != size or now - known[1] >= self._settle_s

    def _watch(self, folder: Path) -> None:
        if self._events is None or folder in self._watched:
            return
        try:
            self._events.watch(folder)
            self._watched.add(folder)
        except FileNotFoundError:
            pass  # gone since it was listed
        except OSError:  # the kernel gives no more watches
            self._close()
            self._poll_s = _FAST_S

    def _landed(self, folder: Path, below: bool = False) -> Iterator[tuple[Path, int]]:
        """Files in a folder and below, with their sizes; the folders are watched first, so that none is missed."""
        self._watch(folder)
        empty = True
        with os.scandir(folder) as entries:
            for entry in entries:
                empty = False
                if entry.name.startswith("."):
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._landed(Path(entry.path), True)
                    elif is_wanted(entry.name):
                        yield Path(entry.path), entry.stat().st_size
                except FileNotFoundError:
                    continue  # gone since it was listed
        if empty and below and time.time() - folder.stat().st_mtime > _STALE_S:
            folder.rmdir()
            self._watched.discard(folder)
