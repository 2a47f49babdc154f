"""What any PPDB refuses, by which words, and that nothing of it stays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from apflow.errors import BadRequest, DataError
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.model import schema
from tests.io import ppdb_night as night
from tests.io.ppdb_backends import Backend

BAD = {
    "unknown column": ("sources", {"flux": 1.0}, "DiaSource has no column 'flux'"),
    "ra is null": ("sources", {"ra": np.nan}, "DiaSource.ra is null"),
    "ra out of range": ("sources", {"ra": 361.0}, "DiaSource.ra is 361.0; accepted: 0 to 360"),
    "dec out of range": ("objects", {"dec": -91.0}, "DiaObject.dec is -91.0; accepted: -90 to 90"),
    "a word for a flux": ("sources", {"psfFlux": "x"}, "DiaSource.psfFlux is 'x'"),
    "NaN for an id": ("sources", {"diaSourceId": np.nan}, "DiaSource.diaSourceId is null"),
    "a fraction for an id": ("objects", {"diaObjectId": 1.5}, "DiaObject.diaObjectId is 1.5"),
    "an id too large": ("sources", {"diaSourceId": 2.0**70}, "DiaSource.diaSourceId is"),
    "of another detector": ("sources", {"detector": 5}, "a row has detector 5"),
    "of another visit": ("forced", {"visit": 7}, "a row has visit 7"),
    "a count too large": ("objects", {"nDiaSources": 2**40}, "DiaObject.nDiaSources is"),
}


def nothing_is_stored(ppdb: Ppdb) -> bool:
    tables = ("DiaSource", "DiaObject", "DiaObjectLast", "DiaForcedSource", "outbox", "ledger")
    return all(ppdb.table(name).empty for name in tables)


@pytest.mark.parametrize(("table", "change", "words"), BAD.values(), ids=BAD.keys())
def test_bad_values_are_refused_with_the_batch(ppdb: Ppdb, table: str, change: dict[str, object], words: str) -> None:
    good, other = night.process(ppdb, 0, 0), night.process(ppdb, 0, 1)
    frame: pd.DataFrame = getattr(other, table)
    with pytest.raises(DataError) as error:
        night_store(ppdb, [good, dataclasses.replace(other, **{table: frame.assign(**change)})])
    assert words in str(error.value) and f"visit {night.FIRST} detector 1" in str(error.value)
    assert nothing_is_stored(ppdb)
    assert night.store(ppdb, [good]).stored  # the next one is not held up


def night_store(ppdb: Ppdb, results: list[night.DetectorResult]) -> None:
    ppdb.storeBatch(results, [], 60785.5)


def test_a_missing_column_is_named(ppdb: Ppdb) -> None:
    result = night.process(ppdb, 0, 1)
    for column in ("ra", "diaSourceId", "midpointMjdTai"):
        bad = dataclasses.replace(result, sources=result.sources.drop(columns=column))
        with pytest.raises(DataError, match=rf"detector 1: DiaSource\.{column} is missing"):
            night_store(ppdb, [bad])
    assert nothing_is_stored(ppdb)


def test_an_id_of_another_visit_is_refused(ppdb: Ppdb) -> None:
    good, other = night.process(ppdb, 0, 0), night.process(ppdb, 1, 1)
    taken = dataclasses.replace(other, sources=other.sources.assign(diaSourceId=good.sources["diaSourceId"]))
    with pytest.raises(DataError, match=f"DiaSource.*{good.sources['diaSourceId'][0]}"):
        night_store(ppdb, [good, taken])
    assert nothing_is_stored(ppdb)
    night.store(ppdb, [good])
    with pytest.raises(DataError, match=f"DiaSource.*{good.sources['diaSourceId'][0]}"):
        night_store(ppdb, [taken])
    assert len(ppdb.table("DiaSource")) == 10 and len(ppdb.ledger()) == 1
    assert night.store(ppdb, [other]).stored
    night.check(ppdb)


def test_an_alert_that_is_there_is_refused(ppdb: Ppdb) -> None:
    results = [night.process(ppdb, 0, d) for d in range(2)]
    rows = night.alerts(results)
    ppdb.storeBatch(results[:1], rows[:10], 60785.5)
    taken = [dataclasses.replace(r, alert_id=rows[0].alert_id) for r in rows[10:]]
    with pytest.raises(DataError, match=str(rows[0].alert_id)):
        ppdb.storeBatch(results[1:], taken, 60785.5)
    assert len(ppdb.table("DiaSource")) == 10


def test_a_version_that_is_no_later_is_refused(ppdb: Ppdb) -> None:
    night.store(ppdb, [night.process(ppdb, 0, 0)])
    result = night.process(ppdb, 1, 0)
    bad = dataclasses.replace(result, objects=result.objects.assign(validityStartMjdTai=night.mjd(0)))
    with pytest.raises(DataError, match=r"DiaObject \d+ has validityStartMjdTai 60785\.3; accepted: later"):
        night_store(ppdb, [bad])
    with pytest.raises(BadRequest, match=r"association radius 9\.0 arcsec; accepted: up to 5"):
        ppdb.storeBatch([result], [], 60785.5, radius_arcsec=9.0)
    assert night.store(ppdb, [result]).stored


def test_unknown_names_are_refused(ppdb: Ppdb) -> None:
    with pytest.raises(BadRequest, match=r"no table 'x'; accepted: .*DiaSource"):
        ppdb.table("x")
    with pytest.raises(BadRequest, match="detector 9 is not announced"):
        ppdb.awaitTurn(night.FIRST, 9, 1.0)


def test_another_schema_version_is_refused(backend: Backend) -> None:
    open_ppdb(backend.url, create=True).close()
    backend.execute("UPDATE metadata SET value = '9.0.0' WHERE name = 'version:schema'")
    for create in (False, True):
        with pytest.raises(BadRequest, match=rf"9\.0\.0; accepted: {schema.version()}"):
            open_ppdb(backend.url, create=create)


def test_a_closed_handle_is_refused(backend: Backend) -> None:
    with open_ppdb(backend.url, create=True) as ppdb, open_ppdb(backend.url) as other:
        ppdb.close()
        with pytest.raises(BadRequest, match="after close"):
            ppdb.ledger()
        assert other.ledger().empty


def test_what_was_stored_survives_reopening(backend: Backend) -> None:
    with open_ppdb(backend.url, create=True) as ppdb:
        ppdb.openVisit(night.visit(0), night.regions(), 4e9)
        night.store(ppdb, [night.process(ppdb, 0, 0)])
    with open_ppdb(backend.url) as ppdb, open_ppdb(backend.url, create=True) as same:
        same.openVisit(night.visit(1), {0: night.square(x_arcsec=150.0)}, 4e9)
        assert not ppdb.awaitTurn(night.FIRST + 1, 0, 0.01)  # detector 1 of visit 0 is still expected
        night.check(same)


def test_units_and_descriptions_are_in_the_database(ppdb: Ppdb) -> None:
    info = ppdb.table("column_info").set_index(["table_name", "column_name"])
    for name in ("DiaObject", "DiaSource", "DiaForcedSource", "DiaObjectLast"):
        for column in schema.table(name).columns:
            row = info.loc[(name, column.name)]
            assert (row["unit"], row["description"]) == (column.unit, column.description)
