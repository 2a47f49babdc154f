"""Logs of a night's processes: both formats, read back."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apflow.logs import FOLDER, FORMAT, FORMATS, Reader, about, logging_of, parse, worker_process

_log = logging.getLogger("apflow.tests")


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder to which the processes of a test log, in each format."""
    os.environ |= {FOLDER: str(tmp_path), FORMAT: request.param}
    yield tmp_path  # type: ignore[misc]
    del os.environ[FOLDER], os.environ[FORMAT]


def test_a_line_says_what_it_is_about(folder: Path) -> None:
    before = time.time()
    with logging_of("driver"):
        with about(visit=2026112300001, detector=94), about(step="subtract", detector=None):
            _log.info("residual of %.1f: %s", 1.5, "high")
        _log.debug("not told")
        logging.getLogger("distributed.core").info("not told")
        try:
            raise ValueError("two\nlines")
        except ValueError:
            _log.exception("it failed")
    _log.warning("outside")
    first, second = Reader(folder).new()
    assert (first.visit, first.detector, first.step) == (2026112300001, 94, "subtract")
    assert (first.level, first.process, first.logger) == ("INFO", "driver", "apflow.tests")
    assert first.message == "residual of 1.5: high"
    assert before - 0.001 <= first.unix <= time.time()
    assert (second.visit, second.level, second.message) == (None, "ERROR", "it failed")
    assert second.trace.startswith("Traceback")
    assert "ValueError: two" in second.trace
    assert "lines" in second.trace
    shown = parse(str(first))
    assert shown is not None
    assert (shown.visit, shown.message) == (first.visit, first.message)


def test_nothing_is_written_where_nobody_asked(tmp_path: Path) -> None:
    assert FOLDER not in os.environ
    with logging_of("driver"):
        _log.warning("to nobody")
    assert not list(tmp_path.iterdir())


def test_lines_of_processes_never_mix(folder: Path) -> None:
    code = (
        "import logging; from apflow.logs import start_logging; start_logging('{}')\n"
        "for i in range(2000): logging.getLogger('a').info('%d %s', i, 'x' * 500)"
    )
    words = [[sys.executable, "-c", code.format(worker_process(f"ccd-{i}"))] for i in range(3)]
    writers = [subprocess.Popen(w) for w in words]
    assert [w.wait(timeout=60) for w in writers] == [0, 0, 0]
    [path] = folder.glob("workers-*.log")
    assert len(path.read_bytes().splitlines()) == 6000
    lines = Reader(folder).new()
    assert {line.process for line in lines} == {"ccd-0", "ccd-1", "ccd-2"}
    assert all(line.message.endswith(" " + "x" * 500) for line in lines)
    assert len(lines) == 6000


def test_a_reader_goes_on_where_it_was(folder: Path) -> None:
    reader = Reader(folder)
    assert reader.new() == []
    with logging_of("driver"):
        _log.info("one")
        assert [line.message for line in reader.new()] == ["one"]
        with (folder / "driver.log").open("ab") as file:
            file.write(b"half a li")
            file.flush()
            assert reader.new() == []
            file.write(b"ne\n")
        _log.info("two")
        with logging_of("holder"):
            logging.getLogger("b").info("three")
        told = [line.message for line in reader.new()]
    assert told.count("two") == 1
    assert "three" in told
