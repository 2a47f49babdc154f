"""``apflow ppdb`` as a DBA uses it: on a repository, on a URL, and while another process owns the file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from apflow.cli import main
from apflow.config import Config, to_toml
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.interface import Statement
from apflow.operate.services import PostgresServer
from tests.io import ppdb_night as night
from tests.io.ppdb_backends import Postgres

NIGHT = "20250420"


def url_of(root: Path) -> str:
    return f"duckdb://{root}/ppdb.duckdb"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, as these commands see one, whose PPDB holds a visit."""
    root = tmp_path_factory.mktemp("repository")
    (root / "apflow.toml").write_text(to_toml(Config(camera="lsstcam")))
    with open_ppdb(url_of(root), create=True) as ppdb:
        night.store(ppdb, [night.process(ppdb, 0, d) for d in range(2)])
    return root


@pytest.fixture
def root(filled: Path, tmp_path: Path) -> Path:
    """A copy of that repository."""
    for name in ("apflow.toml", "ppdb.duckdb"):
        (tmp_path / name).write_bytes((filled / name).read_bytes())
    return tmp_path


type Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``apflow ppdb``: exit code and output, which for an error is one line."""

    def command(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(["ppdb", *map(str, words)])
        out, error = capfd.readouterr()
        assert isinstance(end.value.code, int)
        if error:
            assert error.startswith("error: ") and error.count("\n") == 1, error
        return end.value.code, error or out

    return command


def test_create_makes_a_ppdb_and_leaves_one_as_it_is(run: Run, tmp_path: Path) -> None:
    url = f"duckdb://{tmp_path}/new.duckdb"
    for _ in range(2):
        assert run("create", url) == (0, "ready: version:layout 2, version:schema 10.0.0\n")
    (tmp_path / "text").write_text("no database " * 1000)
    code, told = run("create", f"duckdb://{tmp_path}/text")
    assert code == 69 and "cannot be opened" in told
    for bad in (f"{tmp_path}/new.duckdb", "duckdb://relative.duckdb", "mysql://host/db"):
        code, told = run("create", bad)
        assert code == 2 and "accepted: duckdb:///absolute/path" in told
    assert run("create", f"duckdb://{tmp_path}/none/new.duckdb")[0] == 2


def test_create_on_a_server(run: Run, postgres: PostgresServer) -> None:
    url = postgres.database()
    for _ in range(2):
        code, told = run("create", url)
        assert code == 0 and told.startswith("ready: version:layout postgresql")
    code, told = run("show", url)
    assert code == 0 and "DiaObjectLast" in told and "detector-visits: none" in told
    code, told = run("partitions", "--ppdb", url, "--make", 2)
    assert code == 0 and "DiaForcedSource_rest" in told and "made now" in told


def test_show_tells_what_is_in_it(run: Run, root: Path) -> None:
    code, told = run("show", "--butler", root)
    assert code == 0
    for words in ("version:schema: 10.0.0", "1 visits; detector-visits: 2 stored", "20 alerts wait", "MJD 60785.30000"):
        assert words in told
    assert ["DiaSource", "20"] in [line.split()[:2] for line in told.splitlines()]
    code, told = run("show", url_of(root), "--json")
    assert code == 0 and json.loads(told)["rows"]["DiaForcedSource"] == 20
    code, told = run("show", "--butler", root, "--table", "DiaSource")
    line = next(line for line in told.splitlines() if line.startswith("psfFlux "))
    assert line.split()[:4] == ["psfFlux", "float", "yes", "nJy"]
    code, told = run("show", "--butler", root, "--table", "Stars")
    assert code == 2 and "no table 'Stars'; accepted: " in told


def test_check_by_its_exit_code(run: Run, root: Path) -> None:
    code, told = run("check", "--butler", root)
    assert code == 0 and told.startswith("clean: ")
    assert run("check", "--butler", root, "--json") == (0, "[]\n")
    with open_ppdb(url_of(root)) as ppdb:
        ppdb.change([Statement('UPDATE "DiaSource" SET "diaObjectId" = NULL WHERE detector = 1')])
    code, told = run("check", "--ppdb", url_of(root))
    assert code == 1 and "a DiaSource has a DiaObject" in told and "1 of " in told
    assert "restore the night from an export" in told
    code, told = run("check", "--butler", root, "--json")
    assert code == 1 and json.loads(told)[0]["count"] == 10


def test_a_database_that_another_process_owns(run: Run, root: Path) -> None:
    command = [sys.executable, "-m", "tests.io.ppdb_night", "serve", url_of(root)]
    cwd = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline().startswith("open")
        try:
            assert run("show", "--butler", root)[0] == 0
            assert run("check", "--butler", root)[0] == 0
            assert run("dedup", "--butler", root, "--apply")[0] == 0
            assert run("withdraw", "--butler", root, "--visit", night.FIRST, "--detector", 0)[0] == 0
            assert run("export", "--butler", root, "--night", NIGHT, "--to", root / "nights")[0] == 0
            assert run("import", root / "nights", "--butler", root)[0] == 0
            code, told = run("migrate", url_of(root))
            assert code == 2 and "is in use" in told
        finally:
            owner.kill()


def test_dedup_finds_none_in_ours(run: Run, root: Path) -> None:
    assert run("dedup", "--butler", root) == (0, "0 duplicates within 1 arcsec found\n")
    assert run("dedup", "--butler", root, "--json", "--apply") == (0, "[]\n")
    code, told = run("dedup", "--butler", root, "--radius", "60")
    assert code == 2 and "radius 60 arcsec; accepted: up to 10" in told


def test_withdraw_by_visit_detector_and_id(run: Run, root: Path) -> None:
    with open_ppdb(url_of(root)) as ppdb:
        ids = ppdb.table("DiaSource", {"detector": [1]})["diaSourceId"].tolist()
    told = "10 DiaSources withdrawn; 10 alerts of theirs will not be sent\n"
    assert run("withdraw", "--butler", root, "--visit", night.FIRST, "--detector", 0) == (0, told)
    code, told = run("withdraw", "--butler", root, "--id", ids[0], "--id", ids[1])
    assert code == 0 and told.startswith("2 DiaSources withdrawn; 2 alerts")
    assert run("withdraw", "--butler", root, "--visit", night.FIRST)[1].startswith("8 DiaSources")
    for words, told in (
        (("--visit", 5), "no DiaSource with visit = 5"),
        (("--detector", 5), "accepted: a visit"),
        ((), "accepted: a visit"),
        (("--id", "x"), "valid integer"),
    ):
        code, error = run("withdraw", "--butler", root, *words)
        assert code == 2 and told in error


def test_a_night_goes_out_and_comes_back(run: Run, root: Path) -> None:
    code, told = run("export", "--butler", root, "--night", NIGHT, "--to", root / "nights")
    assert code == 0 and told.endswith(f"{root}/nights/{NIGHT}: 9 files\n")
    assert len(pd.read_parquet(root / "nights" / NIGHT / "DiaSource.parquet")) == 20
    url = f"duckdb://{root}/copy.duckdb"
    code, told = run("import", root / "nights", "--ppdb", url)
    assert code == 2 and "does not exist" in told
    run("create", url)
    code, told = run("import", root / "nights", "--ppdb", url)
    assert code == 0 and told.endswith("82 rows added\n")
    assert run("import", root / "nights", "--ppdb", url)[1].endswith("\n0 rows added\n")
    assert run("check", "--ppdb", url)[0] == 0
    code, told = run("export", "--butler", root, "--night", "20250421", "--to", root / "nights")
    assert code == 2 and "nothing of night 20250421" in told


def test_drp_objects_come_in(run: Run, root: Path) -> None:
    file = root / "objects.parquet"
    pd.DataFrame({"objectId": [1, 2], "coord_ra": 10.0, "coord_dec": -30.0, "refExtendedness": 0.0}).to_parquet(file)
    assert run("import", "--drp", file, "--butler", root) == (0, "2 DRP Objects loaded\n")
    for words, code, told in (
        (("--drp", root / "none.parquet"), 2, "none.parquet is not there"),
        (("--drp", root / "apflow.toml"), 65, "is no Parquet file"),
        ((root / "nights", "--drp", file), 2, "accepted: a folder of exported nights, or --drp FILE"),
        ((), 2, "accepted: a folder of exported nights, or --drp FILE"),
        ((root / "none",), 2, "holds no night"),
    ):
        found = run("import", *words, "--butler", root)
        assert found[0] == code and told in found[1]


def test_orbits_come_in(run: Run, root: Path) -> None:
    file, names = root / "orbits.parquet", ("packed", "unpacked")
    columns = {f"{n}_primary_provisional_designation": ["2008 AB", "2009 CD"] for n in names}
    pd.DataFrame({"id": [1, 2], "designation": ["2008 AB", "2009 CD"], "a": 2.5, **columns}).to_parquet(file)
    for _ in range(2):
        assert run("import", "--orbits", file, "--butler", root) == (0, "2 orbits loaded\n")
    code, told = run("import", "--orbits", file, "--drp", file, "--butler", root)
    assert code == 2 and "or --orbits FILE" in told


def test_a_file_has_no_partitions_and_nothing_to_migrate(run: Run, root: Path) -> None:
    assert "has no partitions: only one on PostgreSQL" in run("partitions", "--butler", root, "--make", 3)[1]
    assert run("migrate", url_of(root)) == (0, "layout 2 already; nothing was done\n")
    code, told = run("migrate", "postgresql://host/db")
    assert code == 2 and "'postgresql' cannot be migrated" in told


def test_the_ppdb_must_be_named_and_be_there(run: Run, tmp_path: Path) -> None:
    for words, told in (
        (("check",), "no PPDB is named; accepted: --butler REPO"),
        (("check", "--butler", tmp_path), "no Butler repository of apflow in"),
        (("show", f"duckdb://{tmp_path}/none.duckdb"), "none.duckdb does not exist"),
        (("export", "--butler", tmp_path), "Missing option"),
    ):
        code, error = run(*words)
        assert code == 2 and told in error


@pytest.mark.parametrize(
    "command",
    ["create", "show", "check", "dedup", "withdraw", "export", "import", "partitions", "migrate"],
)
def test_help_gives_an_example(run: Run, command: str) -> None:
    code, told = run(command, "--help")
    assert code == 0 and f"Example: apflow ppdb {command} " in " ".join(told.replace("│", " ").split())


def test_a_server_is_checked_too(run: Run, postgres: PostgresServer) -> None:
    url = Postgres(postgres).url
    with open_ppdb(url) as ppdb:
        night.store(ppdb, [night.process(ppdb, 0, 0)])
    assert run("check", "--ppdb", url)[0] == 0
    with open_ppdb(url) as ppdb:
        ppdb.change([Statement('DELETE FROM "DiaObjectLast"')])
    code, told = run("check", "--ppdb", url)
    assert code == 1 and "DiaObjectLast holds the current versions" in " ".join(told.split())
