"""The command line: what it refuses, how it says so, and what it leaves behind then."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apflow.cli import main
from tests.operate.command import apflow

DETECTOR = ("detector", "R22_S11", "--ra", "150.1", "--dec", "-32", "--exptime", "30")
IMAGE = ("--image", "CC_O_20250420_000001")


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and the line on stderr."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    assert isinstance(end.value.code, int)
    return end.value.code, error


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with contextlib.chdir(tmp_path):
        yield tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--camera nocam", "'nocam' accepted: comcam, decam, lsstcam"),
        ("--camera none.yaml", "'none.yaml' accepted: comcam"),
        ("--camera file", "file"),
        ("--detectors 9", "'9' accepted: ids 0 to 8"),
        ("--detectors R22_S99", "'R22_S99' accepted: ids"),
        ("--filter q", "'q' accepted: u_05"),
        ("--size 0", "0 accepted: multiple of 16"),
        ("--size 500", "500 accepted: multiple of 16"),
        ("--size 1e3", "'1e3' accepted: small, full"),
        ("--cadence -1", "'-1' accepted: seconds burst"),
        ("--cadence nan", "'nan' accepted: seconds burst"),
        ("--visits 0", "'0' accepted: whole number from 1"),
        ("--visits two", "'two' accepted: whole number"),
        ("--snaps 3", "'3' accepted: from 1 to 2"),
        ("--workers -1", "'-1' accepted: from 0"),
        ("--workers 999", "999 accepted: 0"),
        ("--seed -1", "'-1' accepted: from 0"),
        ("--image-timeout nan", "'nan' accepted: from 0.1"),
        ("--ppdb sqlite:///x.db", "'sqlite:///x.db' accepted: duckdb:///absolute/path"),
        ("--ppdb duckdb://x.db", "'duckdb://x.db' accepted: duckdb:///absolute/path"),
        ("--ppdb duckdb:///nowhere/x.db", "duckdb:///nowhere/x.db no folder /nowhere"),
        ("--alerts s3://bucket", "'s3://bucket' accepted: file:///dir"),
        ("--json nowhere/run.json", "nowhere/run.json accepted: file in a folder that exists"),
        ("--json full", "full accepted: file"),
        ("--report file", "file folder"),
        ("--report file/below", "file/below folder"),
        ("--butler file", "file give another --butler"),
        ("--butler full", "full give another --butler"),
        ("--no-such-option", "--no-such-option --help"),
    ],
)
def test_replay_refuses_before_it_makes_anything(here: Path, capfd: pytest.CaptureFixture[str], words: str, told: str):
    before = sorted(here.rglob("*"))
    code, error = refused(capfd, "replay", "--camera", "comcam", *words.split())
    assert code == 2
    for part in told.split():
        assert part in error
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("--ra 361", 2, "--ra '361' 0 to 360"),
        ("--ra nan", 2, "--ra 'nan' 0 to 360"),
        ("--dec -91", 2, "--dec '-91' -90 to 90"),
        ("--dec north", 2, "--dec 'north' -90 to 90"),
        ("--exptime 1e6", 2, "--exptime '1e6' 0 to 3600"),
        ("--butler nowhere", 2, "'nowhere' apflow init nowhere"),
        ("--butler full", 2, "'full' apflow init"),
        ("--filter q", 2, "'q' u_05"),
        ("--image nonsense", 2, "'nonsense' MC_O_YYYYMMDD_NNNNNN"),
        ("--image MC_O_20250420_000002", 2, "'MC_O_20250420_000002' LSSTComCam accepted: CC_O_YYYYMMDD_NNNNNN"),
        ("--image CC_O_20250420_000002_R22_S00", 2, "R22_S11 accepted:"),
        ("--image CC_O_20250420_000001", 2, "two snaps"),
        ("--ppdb sqlite:///x", 2, "'sqlite:///x' duckdb:///absolute/path"),
        ("--alerts s3://x", 2, "'s3://x' file:///dir"),
        ("--timeout -1", 2, "--timeout '-1'"),
        ("--timeout 0.2", 75, "CC_O_20250420_000001 4 0.2 s"),
    ],
)
def test_detector_names_what_is_wrong_and_what_is_accepted(
    here: Path, repository: Path, capfd: pytest.CaptureFixture[str], words: str, code: int, told: str
):
    given = ("--butler", str(repository), *IMAGE)
    got, error = refused(capfd, *DETECTOR, *given, *words.split())
    assert got == code
    for part in told.split():
        assert part in error
    assert sorted(p.name for p in here.iterdir()) == ["file", "full"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "repo"
    with pytest.raises(SystemExit) as end:
        main(["init", str(root), "--camera", "comcam", "--size", "small"])
    assert end.value.code == 0
    return root


def test_an_unknown_detector_is_refused(repository: Path, capfd: pytest.CaptureFixture[str]):
    words = ["detector", "R99_S99", *DETECTOR[2:], "--butler", str(repository), *IMAGE]
    code, error = refused(capfd, *words)
    assert code == 2
    assert "'R99_S99'" in error and "R22_S00" in error


@pytest.mark.parametrize(
    "words",
    ["init full/x --camera nocam", "init file", "init x --size 7", "init x --size big", "difference a.fits b.fits"],
)
def test_the_other_commands_refuse_too(here: Path, capfd: pytest.CaptureFixture[str], words: str):
    code, _ = refused(capfd, *words.split())
    assert code == 2
    assert sorted(p.name for p in here.rglob("*")) == ["file", "full", "notes.txt"]


def test_a_repository_is_not_made_twice(repository: Path, capfd: pytest.CaptureFixture[str]):
    code, error = refused(capfd, "init", str(repository))
    assert code == 2
    assert "already" in error


@pytest.mark.parametrize("words", ["", "nonsense", "graph nonsense", "detector", "detector R22_S11 --ra 1"])
def test_wrong_words_are_answered_with_where_the_right_ones_are(capfd: pytest.CaptureFixture[str], words: str):
    code, error = refused(capfd, *words.split())
    assert code == 2
    assert "--help" in error


def test_brackets_in_a_message_are_shown(here: Path, capfd: pytest.CaptureFixture[str]):
    _, error = refused(capfd, "replay", "--camera", "[bold]x")
    assert "'[bold]x'" in error


def test_help_and_version_need_nothing_heavy():
    code = (
        "import sys\nfrom apflow.cli import main\ntry: main(['replay', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'distributed', 'lsst.daf.butler', 'numba'} & set(sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for option in ("--camera", "--detectors", "--size", "--visits", "--cadence", "--snaps", "--workers", "--seed"):
        assert option in told.stdout
    for option in ("--butler", "--ppdb", "--alerts", "--report", "--json"):
        assert option in told.stdout
    version = apflow("--version")
    assert version.returncode == 0 and version.stdout.startswith("apflow ")


def test_butler_works_on_what_init_made(tmp_path: Path):
    made = apflow("init", str(tmp_path / "repo"), "--camera", "lsstcam")
    assert made.returncode == 0, made.stderr
    butler = Path(sys.executable).with_name("butler")
    words = ["query-dimension-records", str(tmp_path / "repo"), "detector", "--where", "instrument='LSSTCam'"]
    told = subprocess.run([butler, *words], capture_output=True, text=True, timeout=60, check=True)
    rows = [line.split() for line in told.stdout.splitlines() if line.split()[:1] == ["LSSTCam"]]
    assert len(rows) == 205
    assert ["LSSTCam", "94", "R22_S11", "S11", "R22", "SCIENCE"] in rows
