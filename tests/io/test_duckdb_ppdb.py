"""What only the embedded PPDB has: a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.engine import Engine
from apflow.io.ppdb.interface import Statement, Wanted
from apflow.io.ppdb.tables import cut
from apflow.io.ppdb.together import Parts, Together
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


TERMS = (20.0, 1.0, 365.0)


@pytest.fixture
def three_detectors(tmp_path: Path) -> Path:
    path = tmp_path / "ppdb.duckdb"
    with open_ppdb(f"duckdb://{path}", create=True) as ppdb:
        for k in range(2):
            night.store(ppdb, [night.process(ppdb, k, d) for d in range(3)])
    return path


def wanted(detector: int, k: int = 2) -> list[Wanted]:
    new = night.sources(k, detector)
    return [Wanted(night.regions()[detector], new["ra"].to_numpy(), new["dec"].to_numpy(), night.mjd(k))]


def at_once(engine: Engine, asked: Sequence[Sequence[Wanted]]) -> tuple[list[Any], list[int]]:
    """Answers, or errors, to requests that wait for the database together; and how many detectors each read had."""
    database, reads = threading.Lock(), []

    def read(wanted: Sequence[Wanted], *terms: float) -> Parts:
        reads.append(len(wanted))
        return engine.histories(wanted, *terms)

    together = Together(database, read)
    with ThreadPoolExecutor(len(asked)) as pool:
        with database:
            answers = [pool.submit(together.histories, w, *TERMS) for w in asked]
            until = time.monotonic() + 10.0
            while together.waiting < len(asked) and time.monotonic() < until:
                time.sleep(0.001)
        return [a.exception() or a.result() for a in answers], reads


def frames(parts: Parts) -> list[pd.DataFrame]:
    return [frame for name, p in parts.items() for frame in cut(p.rows, p.take, p.offsets, name)]


def test_histories_that_are_waited_for_together_are_read_together(three_detectors: Path) -> None:
    engine = Engine(three_detectors, create=False)
    asked = [wanted(0), wanted(1) + wanted(2), wanted(2), wanted(0, 1)]
    answers, reads = at_once(engine, asked)
    assert sorted(reads) == [1, 4]  # of two visits
    for one, answer in zip(asked, answers, strict=True):
        alone = frames(engine.histories(one, *TERMS))
        assert sum(len(f) for f in alone) > 0
        for a, b in zip(frames(answer), alone, strict=True):
            pd.testing.assert_frame_equal(a, b)
    assert answers[0]["DiaSource"].rows.num_rows == 20  # its own rows only
    engine.close()


def test_a_history_that_cannot_be_read_fails_none_that_waits_with_it(three_detectors: Path) -> None:
    engine = Engine(three_detectors, create=False)
    twice = 'SELECT * REPLACE ("validityStartMjdTai" + 1 AS "validityStartMjdTai") FROM "DiaObject" '
    first = 'WHERE "diaObjectId" = (SELECT min("diaObjectId") FROM "DiaObject") AND "validityEndMjdTai" IS NULL'
    engine.change([Statement(f'INSERT INTO "DiaObject" {twice}{first}', rows=1)])
    (bad, good, fine), reads = at_once(engine, [wanted(0), wanted(1), wanted(2)])
    assert isinstance(bad, DataError) and "not exactly one current version" in str(bad)
    assert [a["DiaSource"].rows.num_rows for a in (good, fine)] == [20, 20]
    assert sorted(reads) == [1, 1, 1, 3]
    engine.close()
