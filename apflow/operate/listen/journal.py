"""What a service was told and what it started, written down before anything else is done about it."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from apflow.errors import BadRequest, ServiceError
from apflow.model.calibration import CalibrationExposure, Intent
from apflow.model.visit import Visit

#: Folder in the repository; one file of JSON lines a day (UTC).
FOLDER = "invocations"
#: What an earlier service left is taken up for so long, seconds.
KEPT_S = 86_400.0


class Journal:
    """An append-only file, synced with each entry; one service of a repository has it at a time.

    Entries are ``{"unix", "what", ...}``: ``told`` (`kind`, `record`),
    ``started`` (`visit` or `calibration`, `graph`, `detectors`, `again`),
    ``ended`` (`visit`, the number by which the runner knows it, `states`),
    ``closed`` (`group`, `reason`, `detectors`). What is seen of images is on
    the repository's board, and stays there.

    Parameters
    ----------
    root : `str` or `pathlib.Path`
        Root of the repository.

    Raises
    ------
    BadRequest
        Another service listens for this repository.
    ServiceError
        The folder cannot be written to.
    """

    def __init__(self, root: str | Path) -> None:
        self._folder = Path(root) / FOLDER
        self._file: int | None = None
        self._day = ""
        try:
            self._folder.mkdir(exist_ok=True)
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ServiceError(f"{self._folder} cannot be written to: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BadRequest(f"another service listens for {root}; accepted: one a repository") from None

    def close(self) -> None:
        """Let another have it."""
        self._close_file()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def told(self, unix: float, kind: str, record: Any) -> None:
        """An event."""
        self._append(unix, "told", {"kind": kind, "record": record})

    def started(
        self, unix: float, visit: Visit | CalibrationExposure, graph: str, detectors: Sequence[int], again: bool
    ) -> None:
        """A visit or a calibration is started; `again`: in place of a run with other values."""
        kind = "visit" if isinstance(visit, Visit) else "calibration"
        what = {kind: asdict(visit), "graph": graph, "detectors": list(detectors), "again": again}
        self._append(unix, "started", what)

    def ended(self, unix: float, visit: int, states: Mapping[str, int]) -> None:
        """What was started came to its end, with how many detectors in each state."""
        self._append(unix, "ended", {"visit": visit, "states": dict(states)})

    def closed(self, unix: float, group: str, reason: str, detectors: Sequence[int]) -> None:
        """The waiting for a group that was never identified ended so for these detectors."""
        self._append(unix, "closed", {"group": group, "reason": reason, "detectors": list(detectors)})

    def entries(self, since_unix: float) -> Iterator[dict[str, Any]]:
        """Entries since a time, oldest first; a last line that a crash cut off is left out."""
        return entries(self._folder, since_unix)

    def unfinished(self, now_unix: float) -> dict[int, Visit]:
        """Visits that were started and did not end, by their ids."""
        begun: dict[int, Visit] = {}
        for entry in self.entries(now_unix - KEPT_S):
            if entry["what"] == "started" and isinstance(target := target_from(entry), Visit):
                begun[target.visit] = target
            elif entry["what"] == "ended":
                begun.pop(entry["visit"], None)
        return begun

    def _append(self, unix: float, what: str, more: Mapping[str, Any]) -> None:
        line = json.dumps({"unix": unix, "what": what, **more}).encode() + b"\n"
        try:
            if _day(unix) != self._day or self._file is None:
                self._open(_day(unix))
            assert self._file is not None
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(0, "the file system is full")
            os.fdatasync(self._file)
        except OSError as error:
            self._close_file()
            raise ServiceError(f"{self._folder} cannot be written to: {error.strerror}") from error

    def _open(self, day: str) -> None:
        self._close_file()
        path = self._folder / f"{day}.jsonl"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._day = day
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # what a crash cut off stays a line of its own
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def entries(folder: Path, since_unix: float) -> Iterator[dict[str, Any]]:
    """Entries of the journal in a folder since a time, oldest first; its service may be writing."""
    for file in sorted(folder.glob("*.jsonl")):
        if file.stem < _day(since_unix):
            continue
        for line in file.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line) if line else None
            except ValueError:
                continue
            if entry is not None and entry["unix"] >= since_unix:
                yield entry


def target_from(entry: Mapping[str, Any]) -> Visit | CalibrationExposure:
    """What was started, of an entry that tells it."""
    if "calibration" in entry:
        tree = entry["calibration"]
        return CalibrationExposure(**{**tree, "intent": Intent.of(tree["intent"])})
    tree = entry["visit"]
    return Visit(**{**tree, "images": tuple(tree["images"])})


def _day(unix: float) -> str:
    return dt.datetime.fromtimestamp(unix, dt.UTC).strftime("%Y%m%d")
