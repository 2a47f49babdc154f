"""Logs of a night: a file a process, readable lines or JSON, each with the visit and detector that it is about."""

from __future__ import annotations

import contextlib
import contextvars
import datetime as dt
import json
import logging
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: By these a night's supervisor tells its processes, and they their workers, where and how to log.
FOLDER, FORMAT = "APFLOW_LOG_FOLDER", "APFLOW_LOG_FORMAT"
FORMATS = ("text", "json")
_FIELDS = ("visit", "detector", "step")
_NOTHING: Mapping[str, Any] = {}
#: What `start_logging` began.
_KEPT = contextlib.ExitStack()
_about: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("apflow_about", default=_NOTHING)
#: Loggers of Dask tell of every connection at INFO.
_QUIET = ("distributed", "bokeh", "tornado")
_LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT[\d:.]+)Z (?P<level>[A-Z]+) (?P<process>\S+)"
    r"(?: visit=(?P<visit>\d+))?(?: detector=(?P<detector>\d+))?(?: step=(?P<step>\S+))?"
    r" (?P<logger>[^\s:]+): (?P<message>.*)"
)


@contextlib.contextmanager
def about(**fields: Any) -> Iterator[None]:
    """What is logged inside is about this ``visit``, ``detector``, ``step``."""
    token = _about.set({**_about.get(), **{name: value for name, value in fields.items() if value is not None}})
    try:
        yield
    finally:
        _about.reset(token)


class _Handler(logging.Handler):
    """Appends each record by one call of the operating system: lines of several processes never mix."""

    def __init__(self, path: Path, process: str, as_json: bool) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._process, self._as_json = process, as_json

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {name: _about.get()[name] for name in _FIELDS if name in _about.get()}
            message = record.getMessage()
            trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
            line = (self._json if self._as_json else self._text)(record, fields, message, trace)
            os.write(self._file, line.encode())
        except Exception:  # a logger must never end what it tells of
            self.handleError(record)

    def close(self) -> None:
        super().close()
        os.close(self._file)

    def _json(self, record: logging.LogRecord, fields: Mapping[str, Any], message: str, trace: str) -> str:
        told = {"unix": round(record.created, 6), "level": record.levelname, "process": self._process}
        told |= {**fields, "logger": record.name, "message": message}
        return json.dumps(told | ({"traceback": trace} if trace else {})) + "\n"

    def _text(self, record: logging.LogRecord, fields: Mapping[str, Any], message: str, trace: str) -> str:
        when = dt.datetime.fromtimestamp(record.created, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        names = "".join(f" {name}={value}" for name, value in fields.items())
        # Further lines are indented: they belong to the one before.
        text = f"{message}\n{trace}".rstrip().replace("\n", "\n    ")
        return f"{when}Z {record.levelname} {self._process}{names} {record.name}: {text}\n"


@contextlib.contextmanager
def logging_of(process: str) -> Iterator[None]:
    """Log to the folder that the environment names, if it does, and warnings to standard error as well."""
    handlers = _handlers(process)
    root = logging.getLogger()
    before = root.level, [(name, logging.getLogger(name).level) for name in _QUIET]
    for handler in handlers:
        root.addHandler(handler)
    if handlers:
        root.setLevel(logging.INFO)
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before[0])
        for name, level in before[1]:
            logging.getLogger(name).setLevel(level)


def start_logging(process: str) -> None:
    """The same until the end of the process: for workers."""
    _KEPT.enter_context(logging_of(process))


def worker_process(worker: str) -> str:
    """Name of a worker's log: one file a host, since appending is whole on one host only."""
    return f"{worker}@{socket.gethostname()}"


def _handlers(process: str) -> list[logging.Handler]:
    folder = os.environ.get(FOLDER, "")
    if not folder:
        return []
    name, at, host = process.partition("@")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    file = _Handler(path / f"{f'workers-{host}' if at else name}.log", name, os.environ.get(FORMAT) == "json")
    loud = logging.StreamHandler(sys.stderr)
    loud.setLevel(logging.WARNING)
    return [file, loud]


@dataclass
class Line:
    """One record of a log.

    Attributes
    ----------
    unix : `float`
    level, process, logger, step, message, trace : `str`
    visit, detector : `int` or `None`
    """

    unix: float
    level: str = "INFO"
    process: str = ""
    logger: str = ""
    visit: int | None = None
    detector: int | None = None
    step: str = ""
    message: str = ""
    trace: str = ""

    def __str__(self) -> str:
        when = dt.datetime.fromtimestamp(self.unix, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        names = "".join(f" {n}={value}" for n in _FIELDS if (value := getattr(self, n)) not in (None, ""))
        more = ("\n" + self.trace.rstrip()).replace("\n", "\n    ") if self.trace else ""
        return f"{when}Z {self.level} {self.process}{names} {self.logger}: {self.message}{more}"


def parse(text: str) -> Line | None:
    """A line of either format; None for one that belongs to the line before, or is none."""
    if text.startswith("{"):
        try:
            told = json.loads(text)
            told["trace"] = told.pop("traceback", "")
            return Line(**told)
        except (ValueError, TypeError):
            return None
    found = _LINE.match(text)
    if found is None:
        return None
    fields: dict[str, Any] = {name: value for name, value in found.groupdict().items() if value is not None}
    when = dt.datetime.fromisoformat(fields.pop("time")).replace(tzinfo=dt.UTC)
    fields |= {name: int(fields[name]) for name in ("visit", "detector") if name in fields}
    return Line(when.timestamp(), **fields)


class Reader:
    """Follows the logs in a folder, files that come later too.

    Parameters
    ----------
    folder : `pathlib.Path`
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}

    def new(self) -> list[Line]:
        """What was written since the last call, by time."""
        found: list[Line] = []
        for path in sorted(self._folder.glob("*.log")):
            found += self._of(path)
        return sorted(found, key=lambda line: line.unix)

    def _of(self, path: Path) -> Iterator[Line]:
        with path.open("rb") as file:
            file.seek(self._offsets.get(path, 0))
            data = file.read()
        whole = data.rpartition(b"\n")[0] + b"\n" if b"\n" in data else b""
        self._offsets[path] = self._offsets.get(path, 0) + len(whole)
        last: Line | None = None
        for text in whole.decode(errors="replace").splitlines():
            line = parse(text)
            if line is None and last is not None:
                last.trace += text.removeprefix("    ") + "\n"
            elif line is not None:
                if last is not None:
                    yield last
                last = line
        if last is not None:
            yield last
