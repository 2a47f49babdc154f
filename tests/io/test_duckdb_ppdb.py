"""What only the embedded PPDB has: a file."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from apflow.errors import BadRequest, ServiceError
from apflow.io.ppdb import open_ppdb
from tests.io import ppdb_night as night


def test_units_and_descriptions_are_comments_of_the_columns(tmp_path: Path) -> None:
    open_ppdb(f"duckdb://{tmp_path}/ppdb.duckdb", create=True).close()
    with duckdb.connect(f"{tmp_path}/ppdb.duckdb") as con:
        found = con.execute(
            "SELECT comment, data_type FROM duckdb_columns() WHERE table_name = 'DiaSource' AND column_name = 'psfFlux'"
        ).fetchone()
    assert found is not None and found[0].startswith("[nJy] ") and found[1] == "FLOAT"


def test_bad_urls_and_files_are_refused(tmp_path: Path) -> None:
    for url in ("mysql://host/db", "duckdb://relative.duckdb", f"{tmp_path}/x.duckdb"):
        with pytest.raises(BadRequest, match="duckdb:///absolute/path"):
            open_ppdb(url)
    with pytest.raises(BadRequest, match="does not exist"):
        open_ppdb(f"duckdb://{tmp_path}/none.duckdb")
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadRequest, match="folder"):
        open_ppdb(f"duckdb://{tmp_path}/no/such.duckdb", create=True)
    (tmp_path / "text.duckdb").write_text("not a database " * 100)
    with pytest.raises(ServiceError, match="cannot be opened"):
        open_ppdb(f"duckdb://{tmp_path}/text.duckdb")
    with duckdb.connect(f"{tmp_path}/other.duckdb") as con:
        con.execute("CREATE TABLE t (x INTEGER)")
    with pytest.raises(BadRequest, match="holds no PPDB"):
        open_ppdb(f"duckdb://{tmp_path}/other.duckdb", create=True)


def test_a_forgotten_handle_does_not_keep_the_file_open(tmp_path: Path) -> None:
    url = f"duckdb://{tmp_path}/ppdb.duckdb"
    with open_ppdb(url, create=True) as ppdb:
        night.store(open_ppdb(url), [night.process(open_ppdb(url), 0, 0)])
        open_ppdb(url).close()
        night.check(ppdb)
    with pytest.raises(BadRequest, match="after close"):
        ppdb.ledger()
    with duckdb.connect(f"{tmp_path}/ppdb.duckdb") as con:  # nobody holds it
        assert con.execute('SELECT count(*) FROM "DiaSource"').fetchone() == (10,)
