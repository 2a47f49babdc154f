"""Events as JSON lines, of a file or of standard input."""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from apflow.errors import BadRequest
from apflow.io.next_visit.door import Notice, decode_json, notice
from apflow.model.next_visit import KINDS

_LOOK_S = 0.1
_CHUNK = 1 << 16
#: A longer line is no event, and is thrown away rather than held in memory.
_LONGEST_LINE = 1 << 20


class LinesDoor:
    """JSON lines, one event each.

    A line is the event's record with ``"event": "nextVisit"`` (or
    ``nextVisitCanceled``, ``startIntegration``) among its fields; without it,
    a record with an ``imageName`` is taken for startIntegration and any other
    for nextVisit.

    Parameters
    ----------
    path : `str` or `pathlib.Path`
        File to read; ``-`` for standard input.
    follow : `bool`
        Whether to wait for lines that are added to the file, as ``tail -F`` does.

    Raises
    ------
    BadRequest
        There is no such file.
    """

    def __init__(self, path: str | Path, *, follow: bool = False) -> None:
        self._name, self._follow = str(path), follow
        self._stop = threading.Event()
        self._descriptor = 0 if self._name == "-" else self._open()
        self._buffer, self._line, self._skipping = b"", 0, False

    def _open(self) -> int:
        try:
            return os.open(self._name, os.O_RDONLY)
        except OSError as error:
            raise BadRequest(f"events {self._name!r} cannot be read: {error.strerror}") from error

    @classmethod
    def stdin(cls) -> Self:
        """That of standard input."""
        return cls("-")

    def notices(self) -> Iterator[Notice]:
        """See `Door`; a file that is not followed ends at its last line."""
        while not self._stop.is_set():
            chunk = self._read()
            if chunk is None:
                continue
            if chunk:
                yield from self._lines(chunk)
            elif not self._follow:
                if self._buffer.strip():
                    yield from self._lines(b"\n")
                return
            elif not self._replaced():
                self._stop.wait(_LOOK_S)

    def done(self, notice: Notice) -> None:
        """See `Door`: a file keeps no place; what comes again is known by its group."""

    def close(self) -> None:
        """See `Door`."""
        self._stop.set()

    def _read(self) -> bytes | None:
        """What there is; empty at the end; None while nothing comes."""
        if not self._descriptor and not select.select([0], [], [], _LOOK_S)[0]:
            return None
        return os.read(self._descriptor, _CHUNK)

    def _replaced(self) -> bool:
        """Whether another file has the name now, or the file begins anew; then that is read from its beginning."""
        try:
            now = os.stat(self._name)
        except FileNotFoundError:
            return False
        open_now = os.fstat(self._descriptor)
        same = (now.st_dev, now.st_ino) == (open_now.st_dev, open_now.st_ino)
        if same and now.st_size >= os.lseek(self._descriptor, 0, os.SEEK_CUR):
            return False
        os.close(self._descriptor)
        self._descriptor, self._buffer, self._line = self._open(), b"", 0
        return True

    def _lines(self, chunk: bytes) -> Iterator[Notice]:
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            self._line += 1
            if line.strip() and not self._skipping:
                yield self._notice(line)
            self._skipping = False
        if len(self._buffer) > _LONGEST_LINE:
            if not self._skipping:
                yield Notice(None, f"{self._name}:{self._line + 1}", f"a line of more than {_LONGEST_LINE} bytes")
            self._buffer, self._skipping = b"", True

    def _notice(self, line: bytes) -> Notice:
        place = f"{'stdin' if self._name == '-' else self._name}:{self._line}"
        try:
            record = decode_json(line, "the line")
        except BadRequest as error:
            return Notice(None, place, str(error))
        return notice(kind_of(record), record, place)


def kind_of(record: Any) -> str:
    """Which event a record is."""
    if not isinstance(record, Mapping):
        return "nextVisit"
    named = record.get("event")
    if named is not None:
        return named if named in KINDS else json.dumps(named)[:80]
    return "startIntegration" if "imageName" in record else "nextVisit"
