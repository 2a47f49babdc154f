"""Operations on a PPDB: what is broken by hand is found, what was exported comes back, duplicates become one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.io.ppdb.interface import Statement
from apflow.io.ppdb.migrate import migrate
from apflow.io.ppdb.operations import columns, contents, load_drp, withdraw
from apflow.io.ppdb.operations_check import check
from apflow.io.ppdb.operations_dedup import find_duplicates, merge
from apflow.io.ppdb.operations_export import NIGHTLY, export_night
from apflow.io.ppdb.operations_import import import_nights, renew_last
from apflow.io.ppdb.tables import APDB_TABLES, OWN_TABLES
from apflow.model import schema
from apflow.model.products import History
from apflow.operate.ppdb_dedup import dedup
from tests.io import ppdb_night as night
from tests.io.ppdb_backends import Backend, DuckDb, Postgres

NIGHT = 20250420
STORED = ("DiaObject", "DiaSource", "DiaForcedSource", "DiaObjectLast", "DiaObject_To_Object_Match", "outbox", "ledger")


def fill(ppdb: Ppdb, *visits: int, detectors: int = 2) -> None:
    for k in visits:
        night.store(ppdb, [night.process(ppdb, k, d) for d in range(detectors)])


def duplicate(ppdb: Ppdb, k: int, n: int = 2) -> None:
    """A visit that sees the first `n` things of detector 0 and knows of nothing before, against the guard's will."""
    ra, dec = night.places(0)
    empty = History(schema.empty("DiaObject"), schema.empty("DiaSource"), schema.empty("DiaForcedSource"))
    new = night.result(night.sources(k, 0, (ra[:n], dec[:n])), k, 0, empty)
    report = ppdb.storeBatch([new], night.alerts([new]), 60785.5, radius_arcsec=1e-4)
    assert report.stored == ((night.FIRST + k, 0),)


@pytest.fixture(params=["duckdb", "postgresql"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """The kinds of PPDB that are ours to operate."""
    return DuckDb(tmp_path) if request.param == "duckdb" else Postgres(request.getfixturevalue("postgres"))


@pytest.fixture(scope="module", params=["duckdb", "postgresql"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ppdb]:
    """A sound PPDB of three visits; who breaks it mends it."""
    if request.param == "duckdb":
        url = DuckDb(tmp_path_factory.mktemp("sound")).url
    else:
        url = Postgres(request.getfixturevalue("postgres")).url
    with open_ppdb(url, create=True) as ppdb:
        fill(ppdb, 0, 1, 2)
        ppdb.loadDrpObjects(
            pd.DataFrame({"objectId": [1], "ra": [night.RA], "dec": [night.DEC], "extendedness": [0.0]})
        )
        yield ppdb


def broken(ppdb: Ppdb, breaks: str, mends: str) -> dict[str, tuple[int, str]]:
    """What `check` finds after a statement: how often, and an example; then all is well again."""
    ppdb.change([Statement(breaks)])
    found = check(ppdb)
    ppdb.change([Statement(mends), *renew_last(ppdb, pa.chunked_array([ppdb.table("DiaObject")["diaObjectId"]]))])
    assert not check(ppdb)
    assert all(v.remedy and v.count > 0 for v in found)
    return {v.invariant: (v.count, v.examples[0]) for v in found}


def test_a_sound_ppdb_has_no_violation(sound: Ppdb) -> None:
    assert check(sound) == []


def test_versions_are_checked(sound: Ppdb) -> None:
    object_id = sound.table("DiaObject")["diaObjectId"][0]
    last = f'"diaObjectId" = {object_id} AND "validityStartMjdTai" > {night.mjd(1) + 0.001}'
    first = f'"diaObjectId" = {object_id} AND "validityStartMjdTai" < {night.mjd(1) - 0.001}'
    end = 'UPDATE "DiaObject" SET "validityEndMjdTai" ='
    found = broken(sound, f"{end} 70000 WHERE {last}", f"{end} NULL WHERE {last}")
    assert found["a DiaObject that has DiaSources has a current version"] == (1, f"diaObjectId {object_id}")
    assert found["DiaObjectLast holds the current versions of DiaObject"] == (1, f"diaObjectId {object_id}")
    for wrong in (night.mjd(1) - 0.002, night.mjd(1) + 0.002):
        found = broken(sound, f"{end} {wrong} WHERE {first}", f"{end} {night.mjd(1)!r} WHERE {first}")
        count, example = found["versions of a DiaObject follow one another without gap or overlap"]
        assert count == 1 and example.startswith(f"diaObjectId {object_id}, ")
    if sound.versions == "DiaObject":  # elsewhere a view ends each version where the next begins
        found = broken(sound, f"{end} NULL WHERE {first}", f"{end} {night.mjd(1)!r} WHERE {first}")
        assert found["a DiaObject has one current version"] == (1, f"diaObjectId {object_id}")


def test_the_last_versions_are_checked(sound: Ppdb) -> None:
    object_id = sound.table("DiaObject")["diaObjectId"][0]
    for breaks in (
        f'UPDATE "DiaObjectLast" SET "nDiaSources" = 99 WHERE "diaObjectId" = {object_id}',
        f'UPDATE "DiaObjectLast" SET "raErr" = NULL WHERE "diaObjectId" = {object_id}',
        f'DELETE FROM "DiaObjectLast" WHERE "diaObjectId" = {object_id}',
    ):
        found = broken(sound, breaks, 'UPDATE "DiaObjectLast" SET "nDiaSources" = "nDiaSources"')
        assert found == {"DiaObjectLast holds the current versions of DiaObject": (1, f"diaObjectId {object_id}")}


def test_orphans_are_found(sound: Ppdb) -> None:
    source = sound.table("DiaSource").iloc[0]
    forced = sound.table("DiaForcedSource").iloc[0]
    which = f'WHERE "diaSourceId" = {source["diaSourceId"]}'
    for value in ("NULL", "5"):
        found = broken(
            sound,
            f'UPDATE "DiaSource" SET "diaObjectId" = {value} {which}',
            f'UPDATE "DiaSource" SET "diaObjectId" = {source["diaObjectId"]} {which}',
        )
        assert found == {"a DiaSource has a DiaObject or an SSObject": (1, f"diaSourceId {source['diaSourceId']}")}
    sound.change([Statement(f'UPDATE "DiaSource" SET "diaObjectId" = NULL, "ssObjectId" = 7 {which}')])
    assert not check(sound)  # an object of the solar system
    fake = f'UPDATE "DiaSource" SET "diaObjectId" = NULL, "ssObjectId" = NULL, "pixelFlags_injected" = true {which}'
    # It has an alert of this night: a fake must have none.
    found = broken(sound, fake, f'UPDATE "DiaSource" SET "pixelFlags_injected" = false, "ssObjectId" = 7 {which}')
    assert found == {
        "a DiaSource that is injected has no DiaObject, no SSObject and no alert": (
            1,
            f"diaSourceId {source['diaSourceId']}",
        )
    }
    sound.change(
        [Statement(f'UPDATE "DiaSource" SET "diaObjectId" = {source["diaObjectId"]}, "ssObjectId" = NULL {which}')]
    )
    which = f'WHERE "diaForcedSourceId" = {forced["diaForcedSourceId"]}'
    found = broken(
        sound,
        f'UPDATE "DiaForcedSource" SET "diaObjectId" = 5 {which}',
        f'UPDATE "DiaForcedSource" SET "diaObjectId" = {forced["diaObjectId"]} {which}',
    )
    assert found == {"a DiaForcedSource has a DiaObject": (1, f"diaForcedSourceId {forced['diaForcedSourceId']}")}
    match = 'INSERT INTO "DiaObject_To_Object_Match" ("diaObjectId", "objectId") VALUES (5, 1)'
    found = broken(sound, match, 'DELETE FROM "DiaObject_To_Object_Match" WHERE "diaObjectId" = 5')
    assert found == {"a match has a DiaObject": (1, "diaObjectId 5, objectId 1")}
    alert = source["diaSourceId"]
    found = broken(
        sound,
        f"UPDATE outbox SET alert_id = 7 WHERE alert_id = {alert}",
        f"UPDATE outbox SET alert_id = {alert} WHERE alert_id = 7",
    )
    assert found == {"an alert has a DiaSource": (1, "alert_id 7")}


def test_counts_agree_with_the_ledger(sound: Ppdb) -> None:
    which = f"WHERE visit = {night.FIRST} AND detector = 1"
    place = f"visit {night.FIRST}, detector 1"
    for column, what in (("n_sources", "DiaSources"), ("n_alerts", "alerts")):
        found = broken(
            sound,
            f"UPDATE ledger SET {column} = 11 {which}",
            f"UPDATE ledger SET {column} = 10 {which}",
        )
        assert found == {f"the ledger counts the {what} of a detector-visit": (1, f"{place}, {column} 11, found 10")}
    found = broken(
        sound, f"UPDATE ledger SET stored_unix = NULL {which}", f"UPDATE ledger SET stored_unix = 1.0 {which}"
    )
    assert found == {
        f"{rows} are of detector-visits that the ledger has as stored": (1, place)
        for rows in ("DiaSources", "DiaForcedSources")
    }


def test_ids_are_checked(sound: Ppdb) -> None:
    one = sound.table("DiaSource")["diaSourceId"][0]
    renamed = one + (5 << 19)  # of detector 5
    update = 'UPDATE "DiaSource" SET "diaSourceId" = {} WHERE "diaSourceId" = {}'
    found = broken(sound, update.format(renamed, one), update.format(one, renamed))
    count, example = found["diaSourceId holds visit and detector of its row"]
    assert count == 1 and example.startswith(f"diaSourceId {renamed}, ")
    one, other = sound.table("DiaForcedSource")["diaForcedSourceId"][:2]
    renamed = one + (50 << 27)  # 50 visits later
    update = 'UPDATE "DiaForcedSource" SET "diaForcedSourceId" = {} WHERE {}'
    found = broken(
        sound,
        update.format(renamed, f'"diaForcedSourceId" = {one}'),
        update.format(one, f'"diaForcedSourceId" = {renamed}'),
    )
    assert [*found] == ["diaForcedSourceId holds visit and detector of its row"]
    row = sound.table("DiaForcedSource").set_index("diaForcedSourceId").loc[one]
    found = broken(
        sound,
        update.format(other, f'"diaForcedSourceId" = {one}'),
        update.format(one, f'"diaObjectId" = {row["diaObjectId"]} AND visit = {row["visit"]}'),
    )
    assert found["diaForcedSourceId is there once"] == (1, f"diaForcedSourceId {other}")


def test_ids_that_are_there_twice_are_refused_or_found(sound: Ppdb) -> None:
    source = sound.table("DiaSource").query(f"visit == {night.FIRST} and detector == 0")
    (one, other), ra = source["diaSourceId"][:2], source["ra"].iloc[0]
    update = f'UPDATE "DiaSource" SET "diaSourceId" = {{}}, "midpointMjdTai" = {{}} WHERE ra = {float(ra)!r}'
    forced = sound.table("DiaForcedSource").query(f"visit == {night.FIRST} and detector == 0")
    (mine, theirs), ra = forced["diaObjectId"][:2], forced["ra"].iloc[0]
    again = f'UPDATE "DiaForcedSource" SET "diaObjectId" = {{}}, "midpointMjdTai" = {{}} WHERE ra = {float(ra)!r} '
    again += f"AND visit = {night.FIRST}"
    for text, values in ((update, (one, other)), (again, (mine, theirs))):
        breaks, mends = text.format(values[1], night.mjd(0) + 1e-6), text.format(values[0], repr(night.mjd(0)))
        if sound.versions == "DiaObject":
            with pytest.raises(DataError, match="uplicate key"):
                sound.change([Statement(breaks)])
            continue
        found = broken(sound, breaks, mends)  # keys there hold the time, which differs
        twice = {"diaSourceId is there once", "a DiaObject is forced once a detector-visit"} & {*found}
        assert len(twice) == 1


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("DiaObject", "diaObjectId"),
        ("DiaSource", "diaSourceId"),
        ("DiaForcedSource", "diaObjectId"),
        ("DiaObjectLast", "diaObjectId"),
        ("DrpObject", "objectId"),
    ],
)
def test_pixels_are_checked(sound: Ppdb, table: str, key: str) -> None:
    [row] = sound.select(f'SELECT "{key}", "pixelId" FROM "{table}" ORDER BY "pixelId" LIMIT 1').to_pylist()
    update = f'UPDATE "{table}" SET "pixelId" = {{}} WHERE "pixelId" = {{}}'
    found = broken(sound, update.format(-1, row["pixelId"]), update.format(row["pixelId"], -1))
    count, example = found[f"pixelId of {table} is that of ra and dec"]
    assert count >= 1 and str(row[key]) in example


def test_a_change_is_whole_or_not_at_all(sound: Ppdb) -> None:
    first = Statement("UPDATE outbox SET object_id = 1")
    for second, error in (
        (Statement("UPDATE outbox SET object_id = 2 WHERE alert_id = 0", rows=1), BadRequest),
        (Statement("UPDATE ledger SET state = NULL"), DataError),
    ):
        with pytest.raises(error):
            sound.change([first, second])
    assert not (sound.table("outbox")["object_id"] == 1).any()


def test_contents_and_columns(sound: Ppdb) -> None:
    found = contents(sound)
    assert found.versions["version:schema"] == schema.version()
    assert found.rows["DiaSource"] == 60 and found.rows["DiaObjectLast"] == 20
    assert {*found.rows} == {*found.size_bytes} == {*APDB_TABLES, *OWN_TABLES}
    assert found.states == {"stored": 6} and found.n_visits == 3 and found.n_pending == 60
    assert found.first_mjd_tai == night.mjd(0) and found.last_mjd_tai == night.mjd(2)
    shown = columns(sound, "DiaSource").set_index("column_name")
    assert [*shown.index] == [*schema.table("DiaSource").names, "pixelId"]
    assert shown.loc["psfFlux", "unit"] == "nJy" and "arrived_unix" in columns(sound, "ledger")["column_name"].tolist()
    with pytest.raises(BadRequest, match="no table 'DiaSources'; accepted: DetectorVisitProcessingSummary, "):
        columns(sound, "DiaSources")


def test_what_is_withdrawn_is_kept_but_not_sent(ppdb: Ppdb) -> None:
    fill(ppdb, 0, 1)
    sent = ppdb.pendingAlerts(5)
    ppdb.markPublished([a.alert_id for a in sent], 100.0)
    done = withdraw(ppdb, 60800.0, visit=night.FIRST, detector=0)
    assert (done.n_sources, done.n_alerts) == (10, 5)
    again = withdraw(ppdb, 60900.0, visit=night.FIRST)
    assert (again.n_sources, again.n_alerts) == (10, 10)
    sources = ppdb.table("DiaSource")
    gone = sources[sources["visit"] == night.FIRST]
    assert gone["timeWithdrawnMjdTai"].tolist() == [60800.0] * 10 + [60900.0] * 10
    assert sources["timeWithdrawnMjdTai"].isna().sum() == 20 and len(ppdb.pendingAlerts()) == 20
    assert len(ppdb.table("outbox")) == 40 and not check(ppdb)
    one = int(sources["diaSourceId"].iloc[-1])
    assert withdraw(ppdb, 60900.0, ids=[one, one]).n_sources == 1
    for arguments, words in (
        ({"visit": 5}, "no DiaSource with visit = 5"),
        ({"ids": [one, 5]}, r"no DiaSource 5 \(1 of 2"),
        ({"detector": 0}, "a visit and one of its detectors"),
        ({"visit": night.FIRST, "ids": [one]}, "or ids"),
        ({}, "accepted: a visit"),
    ):
        with pytest.raises(BadRequest, match=words):
            withdraw(ppdb, 60900.0, **arguments)


def test_what_was_exported_comes_back(ppdb: Ppdb, tmp_path: Path) -> None:
    fill(ppdb, 0, 1)
    fill(ppdb, 100_000)  # of the next day, and much later
    counts = [export_night(ppdb, n, tmp_path / "nights") for n in (NIGHT, NIGHT + 1)]
    assert [c["DiaObject"] for c in counts] == [40, 20] and [c["ledger"] for c in counts] == [4, 2]
    assert sorted(p.name for p in (tmp_path / "nights").iterdir()) == [str(NIGHT), str(NIGHT + 1)]
    with open_ppdb(f"duckdb://{tmp_path}/copy.duckdb", create=True) as copy:
        import_nights(copy, tmp_path / "nights" / str(NIGHT))
        assert not check(copy)  # as it stood that night
        assert copy.table("DiaObject")["validityEndMjdTai"].isna().sum() == 20
        added = import_nights(copy, tmp_path / "nights")
        assert added["DiaObject"] == 20 and not check(copy)
        for name in STORED:
            pd.testing.assert_frame_equal(copy.table(name), ppdb.table(name))
        assert copy.pendingAlerts() == ppdb.pendingAlerts()
    assert not any(import_nights(ppdb, tmp_path / "nights").values())


def test_a_night_that_was_lost_is_restored(ppdb: Ppdb, tmp_path: Path) -> None:
    fill(ppdb, 0, 1)
    export_night(ppdb, NIGHT, tmp_path)
    before = {name: ppdb.table(name) for name in STORED}
    lost = f"visit = {night.FIRST + 1}"
    ppdb.change(
        [
            Statement(f'DELETE FROM "DiaSource" WHERE {lost}'),
            Statement(f"DELETE FROM outbox WHERE {lost} AND detector = 0"),
            Statement(f"UPDATE ledger SET stored_unix = NULL, state = 'failed' WHERE {lost}"),
            Statement(f'DELETE FROM "DiaObject" WHERE "validityStartMjdTai" > {night.mjd(0) + 0.001}'),
            Statement('DELETE FROM "DiaObjectLast"'),
        ]
    )
    assert len(check(ppdb)) == 3
    added = import_nights(ppdb, tmp_path)
    assert (added["DiaSource"], added["outbox"], added["DiaObject"]) == (20, 10, 20)
    assert not check(ppdb)
    for name, rows in before.items():
        pd.testing.assert_frame_equal(ppdb.table(name), rows)


def test_files_of_a_night_tell_units_and_versions(sound: Ppdb, tmp_path: Path) -> None:
    export_night(sound, NIGHT, tmp_path)
    files = sorted(p.stem for p in (tmp_path / str(NIGHT)).iterdir())
    assert files == sorted(NIGHTLY)
    found = pq.read_schema(tmp_path / str(NIGHT) / "DiaSource.parquet")
    assert found.names == list(schema.table("DiaSource").names)
    assert found.field("psfFlux").metadata[b"unit"] == b"nJy" and found.field("psfFlux").type == pa.float32()
    assert found.field("ra").metadata[b"description"].decode() == schema.table("DiaSource").column("ra").description
    assert found.metadata[b"apdb_version"].decode() == schema.version()
    with pytest.raises(BadRequest, match="is there already"):
        export_night(sound, NIGHT, tmp_path)
    with pytest.raises(BadRequest, match="nothing of night 20250301; its visits: nights 20250420 to 20250420"):
        export_night(sound, 20250301, tmp_path)
    with pytest.raises(BadRequest, match="night 20251399 is not accepted"):
        export_night(sound, 20251399, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ServiceError, match="cannot be written"):
        export_night(sound, NIGHT, tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == [str(NIGHT), "file"]


def test_bad_files_are_refused_before_anything_is_written(sound: Ppdb, tmp_path: Path) -> None:
    export_night(sound, NIGHT, tmp_path)
    folder = tmp_path / str(NIGHT)
    with open_ppdb(f"duckdb://{tmp_path}/empty.duckdb", create=True) as empty:
        with pytest.raises(BadRequest, match="holds no night"):
            import_nights(empty, tmp_path / "none")
        path = folder / "ledger.parquet"
        good = path.read_bytes()
        rows = pq.read_table(path)
        old = rows.replace_schema_metadata({**rows.schema.metadata, b"apdb_version": b"9.0.0"})
        pq.write_table(old, path)
        with pytest.raises(BadRequest, match=r"of apdb.yaml 9\.0\.0; accepted: 10"):
            import_nights(empty, tmp_path)
        pq.write_table(rows.drop_columns("state"), path)
        with pytest.raises(DataError, match=r"ledger\.state is missing"):
            import_nights(empty, tmp_path)
        path.write_bytes(good[:100])
        with pytest.raises(DataError, match=r"ledger\.parquet is no Parquet file"):
            import_nights(empty, tmp_path)
        path.write_bytes(good)
        (folder / "outbox.parquet").unlink()
        with pytest.raises(BadRequest, match=r"outbox\.parquet is not there"):
            import_nights(empty, tmp_path)
        assert empty.table("DiaSource").empty and empty.ledger().empty


def test_drp_objects_are_loaded_from_parquet(ppdb: Ppdb, tmp_path: Path) -> None:
    path = tmp_path / "objects.parquet"
    ra, dec = night.places(0, 3)
    rows = {"objectId": [3, 1, 2], "coord_ra": ra, "coord_dec": dec, "refExtendedness": [0.0, np.nan, 1.0], "u": 1.0}
    pd.DataFrame(rows).to_parquet(path)
    for _ in range(2):
        assert load_drp(ppdb, path) == 3
    found = ppdb.getDrpObjects(night.square()).set_index("objectId")
    assert found.index.tolist() == [1, 2, 3] and found.loc[2, "extendedness"] == 1.0
    assert found.loc[3, "ra"] == ra[0] and found["extendedness"].isna()[1]
    pd.DataFrame({"objectId": [2], "ra": ra[:1], "dec": dec[:1], "extendedness": [0.0]}).to_parquet(path)
    load_drp(ppdb, path)
    assert ppdb.getDrpObjects(night.square())["extendedness"].isin([0.0]).sum() == 2 and not check(ppdb)
    for bad, words in (
        ({"objectId": [1], "ra": [1.0]}, "has no column 'dec'; accepted: dec or coord_dec"),
        ({**rows, "coord_ra": 400.0}, "objects.parquet: DrpObject.ra is 400.0"),
        ({**rows, "objectId": 1}, "objectId 1 is there twice"),
        ({**rows, "objectId": [0.5, 1.0, 2.0]}, "objectId is of type"),
    ):
        pd.DataFrame(bad).to_parquet(path)
        with pytest.raises(DataError, match=words):
            load_drp(ppdb, path)
    with pytest.raises(BadRequest, match=r"none\.parquet is not there"):
        load_drp(ppdb, tmp_path / "none.parquet")
    assert len(ppdb.table("DrpObject")) == 3


def test_duplicates_become_one(ppdb: Ppdb) -> None:
    fill(ppdb, 0, 1, detectors=1)
    assert not dedup(ppdb, 1.0, 0.05, apply=True)
    for k in (2, 3):
        duplicate(ppdb, k)
    found = dedup(ppdb, 1.0, 0.05, apply=False)
    assert len(found) == 2 and all(d.separation_arcsec < 0.5 for d in found)
    assert len(ppdb.table("DiaObjectLast")) == 14
    merged = dedup(ppdb, 1.0, 0.05, apply=True)
    assert len(merged) == 4 and not dedup(ppdb, 1.0, 0.05, apply=False) and not check(ppdb)
    last = ppdb.getDiaObjects(night.square()).set_index("diaObjectId")
    kept = {d.kept for d in merged} - {d.dropped for d in merged}
    assert len(last) == 10 and kept <= set(last.index)
    assert (last.loc[list(kept), "nDiaSources"] == 4).all()
    assert (last.loc[list(kept), "r_psfFluxNdata"] == 4).all()
    assert (last.loc[list(kept), "firstDiaSourceMjdTai"] == night.mjd(0)).all()
    sources = ppdb.table("DiaSource")
    assert sources.groupby("diaObjectId").size().loc[list(kept)].eq(4).all()
    fluxes = sources[sources["diaObjectId"] == merged[0].kept]["psfFlux"]
    assert last.loc[merged[0].kept, "r_psfFluxMean"] == pytest.approx(fluxes.mean(), rel=1e-5)
    assert len(ppdb.table("DiaForcedSource")) == 24  # none is lost
    fill(ppdb, 4, detectors=1)
    assert (ppdb.getDiaObjects(night.square())["nDiaSources"].sum()) == 34 and not check(ppdb)


def test_two_that_one_visit_saw_are_two(ppdb: Ppdb) -> None:
    ra, dec = night.places(0, 1)
    pair = (np.append(ra, ra), np.append(dec, dec + 0.8 / 3600.0))
    new = night.sources(0, 0, pair)
    empty = History(schema.empty("DiaObject"), schema.empty("DiaSource"), schema.empty("DiaForcedSource"))
    night.store(ppdb, [night.result(new, 0, 0, empty)])
    assert not find_duplicates(ppdb, 5.0)
    with pytest.raises(BadRequest, match="radius 0 arcsec; accepted: up to 10"):
        find_duplicates(ppdb, 0.0)


def test_forced_twice_in_one_visit_is_kept_and_withdrawn(ppdb: Ppdb) -> None:
    fill(ppdb, 0, detectors=1)
    duplicate(ppdb, 1, n=1)
    [pair] = find_duplicates(ppdb, 1.0)
    to_visit = f'UPDATE "DiaForcedSource" SET visit = {night.FIRST + 1} WHERE "diaObjectId" = {pair.kept}'
    ppdb.change([Statement(to_visit, rows=1)])
    dedup(ppdb, 1.0, 0.05, apply=True)
    forced = ppdb.table("DiaForcedSource").set_index("diaObjectId")
    assert forced.loc[pair.dropped, "timeWithdrawnMjdTai"] == pair.at_mjd_tai
    assert forced["timeWithdrawnMjdTai"].isna()[pair.kept]


def test_a_merge_of_what_has_changed_since_is_refused(ppdb: Ppdb) -> None:
    fill(ppdb, 0, detectors=1)
    duplicate(ppdb, 1)
    found = find_duplicates(ppdb, 1.0)
    versions = ppdb.getDiaObjects(night.square()).set_index("diaObjectId").loc[[d.kept for d in found]].reset_index()
    versions = schema.conform(versions.assign(validityStartMjdTai=[d.at_mjd_tai for d in found]), "DiaObject")
    fill(ppdb, 2, detectors=1)
    before = {name: ppdb.table(name) for name in STORED}
    with pytest.raises(BadRequest, match="changed by others meanwhile"):
        merge(ppdb, found, versions)
    for name, rows in before.items():
        pd.testing.assert_frame_equal(ppdb.table(name), rows)


#: Columns of the outbox before there were claims and withdrawals.
OUTBOX_1 = ["alert_id", "object_id", "visit", "detector", "file", "offset", "length", "checksum", "published_unix"]


def as_layout_1(path: Path) -> None:
    """Take from a file what the layout before had not."""
    new = ("DiaObjectLast", "DiaObject_To_Object_Match", "SSObject", "SSSource", "mpc_orbits", "DrpObject")
    with duckdb.connect(str(path)) as con:
        for name in (*new, "DetectorVisitProcessingSummary"):
            con.execute(f'DROP TABLE "{name}"')
        for column in ("trimmed", "withdrawn_mjd_tai", "claim", "claimed_until_unix", "refused"):
            con.execute(f"ALTER TABLE outbox DROP COLUMN {column}")
        had = "'DiaObject', 'DiaSource', 'DiaForcedSource', 'metadata'"
        con.execute(f"DELETE FROM column_info WHERE table_name NOT IN ({had}) OR column_name = 'pixelId'")
        con.execute("UPDATE metadata SET value = '1' WHERE name = 'version:layout'")


def test_the_layout_before_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "ppdb.duckdb"
    with open_ppdb(f"duckdb://{path}", create=True) as ppdb:
        fill(ppdb, 0, 1)
        before = {name: ppdb.table(name) for name in (*STORED, "column_info", "metadata")}
        with pytest.raises(BadRequest, match="in use"):
            migrate(path)
    as_layout_1(path)
    with pytest.raises(BadRequest, match=r"version:layout 1; accepted: 2|holds no PPDB"):
        open_ppdb(f"duckdb://{path}")
    assert migrate(path) and not migrate(path)
    with open_ppdb(f"duckdb://{path}") as ppdb:
        assert not check(ppdb)
        for name, rows in before.items():
            had = OUTBOX_1 if name == "outbox" else list(rows.columns)
            pd.testing.assert_frame_equal(ppdb.table(name)[had], rows[had])
        fill(ppdb, 2)
        withdraw(ppdb, 60800.0, visit=night.FIRST)
        assert not check(ppdb)


def test_other_versions_are_not_migrated(tmp_path: Path) -> None:
    path = tmp_path / "ppdb.duckdb"
    with pytest.raises(BadRequest, match="does not exist"):
        migrate(path)
    open_ppdb(f"duckdb://{path}", create=True).close()
    with duckdb.connect(str(path)) as con:
        con.execute("UPDATE metadata SET value = '9.0.0' WHERE name = 'version:schema'")
    with pytest.raises(BadRequest, match=r"schema version 9\.0\.0 and layout 2; accepted: 10\.0\.0 and 1"):
        migrate(path)
    with duckdb.connect(f"{tmp_path}/other.duckdb") as con:
        con.execute("CREATE TABLE t (x INTEGER)")
    with pytest.raises(BadRequest, match="holds no PPDB"):
        migrate(tmp_path / "other.duckdb")


def test_partitions_are_made_ahead_where_there_are_any(ppdb: Ppdb) -> None:
    made = ppdb.makePartitions(61000.0, 61031.0)
    names = {p.name for p in ppdb.partitions()}
    assert set(made) <= names
    if ppdb.versions == "DiaObject":
        assert not names
    else:
        assert len(made) == 6 and not ppdb.makePartitions(61000.0, 61031.0)
