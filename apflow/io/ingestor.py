"""The thread that registers raw images as they land in a folder."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from apflow.errors import BadRequest, ServiceError
from apflow.io.announce import announce
from apflow.io.butler import Repository
from apflow.model.ids import image_name

if TYPE_CHECKING:
    from apflow.io.butler.raws import Ingested

_EXTENSIONS = (".fits", ".fits.fz", ".fits.gz")
#: An empty folder this old, seconds, is nobody's that is about to write into it.
_STALE_S = 60.0
_TRIES = 10


class Ingestor:
    """Registers raw images as they land, in a thread of its own.

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
    poll_s : `float`
    settle_s : `float`
    """

    def __init__(self, root: str | Path, landing: str | Path, *, poll_s: float = 0.02, settle_s: float = 1.0) -> None:
        self._root, self._landing = Path(root), Path(landing)
        self._poll_s, self._settle_s = poll_s, settle_s
        self._arrived: dict[Path, float] = {}
        self._suspect: dict[Path, tuple[int, float]] = {}
        self._looked_unix = 0.0
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ingestor", daemon=True)

    def start(self) -> Self:
        """Begin; returns when the repository is open."""
        self._landing.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        self._ready.wait()
        self.check()
        return self

    def stop(self) -> None:
        """Take what has landed so far, and end; raises what went wrong in the thread."""
        self._stop.set()
        self._thread.join()
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

    def _run(self) -> None:
        try:
            with Repository(self._root, writeable=True) as repository:
                repository.ingest_raws([], "move")  # imports what the first image should not wait for
                self._ready.set()
                self._watch(repository)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    def _watch(self, repository: Repository) -> None:
        failures = 0
        while True:
            last = self._stop.is_set()
            try:
                self._turn(repository)
                failures = 0
            except ServiceError:
                failures += 1
                if failures == _TRIES:
                    raise
            if last and not failures:
                return
            self._stop.wait(self._poll_s * 2**failures)

    def _turn(self, repository: Repository) -> None:
        """Look once, and take what can be taken."""
        looked = time.time()
        sizes = dict(_landed(self._landing))
        self._arrived = {file: self._arrived.get(file) or self._arrival(file) for file in sizes}
        self._suspect = {file: known for file, known in self._suspect.items() if file in sizes}
        self._looked_unix = looked
        ready = [file for file, size in sizes.items() if self._is_due(file, size, looked)]
        if not ready:
            return
        for one in repository.ingest_raws(ready, "move", self._arrived):
            if one.path is not None:
                self._suspect.pop(one.source, None)
            elif self._suspect.get(one.source, (None, 0.0))[0] == sizes[one.source]:
                del self._suspect[one.source]
                self._reject(repository, one)
            else:
                # It may still be being written by somebody who does not rename.
                self._suspect[one.source] = (sizes[one.source], looked)

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

    def _reject(self, repository: Repository, one: Ingested) -> None:
        camera, name, info = repository.camera, one.name, one.info
        # The name says for whom the file was meant, the header only what it holds.
        exposure = name.exposure if name else info.exposure if info else 0
        which = name.detector if name and name.detector else info.detector if info else None
        same = info is not None and info.exposure == exposure
        try:
            detector = camera.detector(which) if which is not None else None
        except BadRequest:
            detector = None
        if detector is not None and exposure:
            announce(
                self._root,
                camera.instrument,
                group=info.group if info and same else "",
                image=image_name(exposure, camera.image_prefix),
                snap=info.snap if info and same else 1,
                detector=detector.id,
                error=one.error,
            )
        rejected = self._root / "rejected"
        rejected.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            shutil.move(one.source, rejected / one.source.name)


def _landed(folder: Path, below: bool = False) -> Iterator[tuple[Path, int]]:
    """Files of raw images in a folder and below, with their sizes."""
    empty = True
    with os.scandir(folder) as entries:
        for entry in entries:
            empty = False
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from _landed(Path(entry.path), True)
                elif entry.name.endswith(_EXTENSIONS):
                    yield Path(entry.path), entry.stat().st_size
            except FileNotFoundError:
                continue  # gone since it was listed
    if empty and below and time.time() - folder.stat().st_mtime > _STALE_S:
        folder.rmdir()
