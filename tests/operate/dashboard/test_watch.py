"""``apflow watch``."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apflow.io.records import Records, night_folder
from apflow.model.record import Record
from tests.operate.dashboard.small_night import DAY, DETECTORS, ended, number, visits

_WORDS = (sys.executable, "-c", "from apflow.cli import main; main()", "watch")
_ENVIRONMENT = {"COLUMNS": "160", "PATH": "/usr/bin:/bin"}


def watched(*words: str, code: int = 0) -> str:
    done = subprocess.run([*_WORDS, *words], capture_output=True, text=True, timeout=60, env=_ENVIRONMENT)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    with Records(night_folder(tmp_path, DAY)) as file:
        file.append(*visits(3))
        file.append(Record(2e9, "worker", worker="w1", outcome="lost"))
    return tmp_path


def test_once(repo: Path) -> None:
    failed = [ended(number(4), d, "failed") for d in DETECTORS[:2]]
    start = Record(2e9, "visit", number(4), numbers={"n_detectors": 9.0}, instrument="LSSTComCam", band="r")
    with Records(night_folder(repo, DAY)) as file:
        file.append(start, *failed)
    text = watched("--butler", str(repo), "--once")
    assert watched(str(night_folder(repo, DAY)), "--once") == text
    assert "3 of 4 visits ended" in text
    assert "36 detector-visits expected: 27 done, 2 failed" in text
    assert "alerts within 60 s 100 % (at least 98 %)" in text
    assert "1 workers lost" in text
    assert re.search(rf"{number(4)} .* r +2/9 … +2 failed", text)
    assert text.index(str(number(4))) < text.index(str(number(3))) < text.index(str(number(1)))
    assert re.search(r"calibrate +0\.\d+|calibrate +1", text)
    assert "end of readout to alerts" in text


@pytest.mark.parametrize("words", [(), ("--butler", "nowhere"), ("nowhere",), ("--butler", "nowhere", "--night", "x")])
def test_no_such_night(words: tuple[str, ...]) -> None:
    assert "error:" in watched(*words, code=2)


def test_follows_until_it_is_interrupted(repo: Path) -> None:
    folder = night_folder(repo, DAY)
    terminal, other = pty.openpty()
    with subprocess.Popen([*_WORDS, str(folder)], stdout=other, env=_ENVIRONMENT | {"TERM": "xterm"}) as process:
        said = b""
        while str(number(3)).encode() not in said:
            said += os.read(terminal, 1 << 16)
        with Records(folder) as file:
            file.append(ended(number(9), 0, "failed"))
        while str(number(9)).encode() not in said:
            said += os.read(terminal, 1 << 16)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    os.close(terminal)
    os.close(other)
