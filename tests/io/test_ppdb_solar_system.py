"""SSSource and mpc_orbits in any PPDB."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from apflow.catalogs.associate import associate
from apflow.catalogs.solar_system import predicted
from apflow.errors import BadRequest, DataError
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.io.ppdb.interface import Statement
from apflow.io.ppdb.operations_check import check
from apflow.io.ppdb.operations_orbits import load_orbits
from apflow.model.products import DetectorResult
from tests.io import ppdb_night as night
from tests.io.ppdb_backends import Backend

#: Backends that operations can be done on; with an Apdb they are done on its companion.
ours = pytest.mark.parametrize("backend", ["duckdb", "postgresql"], indirect=True)


def moving(ppdb: Ppdb, k: int = 0, detector: int = 0) -> DetectorResult:
    """A detector whose first three sources are those of Solar System objects."""
    new = night.sources(k, detector)
    ids = {"ssObjectId": [70, 71, 72], "designation": ["2008 AB", "2009 CD", None]}
    given = pd.DataFrame(ids | {c: new[c][:3] for c in ("ra", "dec", "raErr", "decErr")}).assign(ephVmag=20.5)
    history = night.read(ppdb, k, night.regions()[detector], new)
    limits: dict[str, Any] = {"radius_arcsec": 1.0, "position_floor_arcsec": 0.05, "max_new_objects": 100}
    out = associate(new, history, ss_objects=predicted(given, night.mjd(k)), **limits)
    made = night.result(new, k, detector, history)
    forced = made.forced[made.forced["diaObjectId"].isin(out.objects["diaObjectId"])]
    return dataclasses.replace(
        made, sources=out.sources, objects=out.objects, forced=forced, guard=out.guard, ss_sources=out.ss_sources
    )


def orbits(names: list[str], ids: list[int], a: float = 2.5) -> pd.DataFrame:
    columns = {f"{kind}_primary_provisional_designation": names for kind in ("packed", "unpacked")}
    fitted = pd.to_datetime(["2025-04-20T00:00:01.5"] * len(names))
    return pd.DataFrame({"id": ids, "designation": names, **columns, "fitting_datetime": fitted, "a": a, "nopp": 3})


def test_ss_sources_are_stored_with_their_sources_and_once(ppdb: Ppdb) -> None:
    result = moving(ppdb)
    assert len(result.ss_sources) == 3 and len(result.objects) == 7
    other = night.process(ppdb, 0, 1)
    for report in (ppdb.storeBatch([result, other], [], 60785.5), ppdb.storeBatch([result], [], 60785.6)):
        assert len(report.stored) + len(report.already) >= 1
        stored = ppdb.table("SSSource")
        pd.testing.assert_frame_equal(stored, result.ss_sources)
    sources = ppdb.table("DiaSource").set_index("diaSourceId")
    mine = sources.loc[stored["diaSourceId"]]
    assert mine["diaObjectId"].isna().all() and mine["ssObjectId"].tolist() == [70, 71, 72]
    assert sources["ssObjectId"].notna().sum() == 3 and stored.attrs["unit"]["ephOffset"] == "arcsec"


def test_a_detector_that_lost_the_race_leaves_no_ss_source(ppdb: Ppdb) -> None:
    result = moving(ppdb)
    assert night.store(ppdb, [night.process(ppdb, 1, 0)]).stored
    assert ppdb.storeBatch([result], [], 60785.5).lost_race
    assert ppdb.table("SSSource").empty


@ours
def test_orphans_among_ss_sources_are_found(ppdb: Ppdb) -> None:
    ppdb.storeBatch([moving(ppdb)], [], 60785.5)
    assert not check(ppdb)
    ppdb.change([Statement('UPDATE "SSSource" SET "ssObjectId" = 5 WHERE "ssObjectId" = 70', rows=1)])
    (found,) = check(ppdb)
    assert found.invariant == "an SSSource has a DiaSource of its SSObject" and found.count == 1


@ours
def test_orbits_are_loaded_renewed_and_found_by_designation(ppdb: Ppdb, tmp_path: Path) -> None:
    path = tmp_path / "orbits.parquet"
    orbits(["2008 AB", "2009 CD", "O'1"], [1, 2, 3]).to_parquet(path)
    assert load_orbits(ppdb, path) == 3
    assert load_orbits(ppdb, path) == 3
    found = ppdb.getOrbits(["O'1", "2008 AB", "2008 AB", "unknown"]).sort_values("id", ignore_index=True)
    assert found["designation"].tolist() == ["2008 AB", "O'1"] and found["nopp"].tolist() == [3, 3]
    assert (found["fitting_datetime"] == pd.Timestamp("2025-04-20T00:00:01.5")).all()
    assert found["created_at"].isna().all() and np.isnan(found["e"]).all()
    # The next release numbers its rows anew: an orbit for each designation all the same.
    orbits(["2009 CD", "2008 AB"], [1, 7], a=2.6).to_parquet(path)
    load_orbits(ppdb, path)
    rows = ppdb.getOrbits(["2008 AB", "2009 CD", "O'1"])
    assert dict(zip(rows["designation"], rows["a"], strict=True)) == {"2008 AB": 2.6, "2009 CD": 2.6, "O'1": 2.5}
    assert ppdb.getOrbits([]).empty


@ours
def test_bad_orbits_are_refused(ppdb: Ppdb, tmp_path: Path) -> None:
    good = orbits(["2008 AB", "2009 CD"], [1, 2])
    for bad, message in (
        (good.drop(columns="designation"), r"mpc_orbits.designation is missing"),
        (good.assign(colour="red"), r"no column 'colour'"),
        (good.assign(designation="2008 AB"), r"designation 2008 AB comes twice"),
        (good.assign(id=1), r"id 1 comes twice"),
        (good.assign(fitting_datetime="soon"), r"soon"),
    ):
        bad.to_parquet(tmp_path / "bad.parquet")
        with pytest.raises(DataError, match=message):
            load_orbits(ppdb, tmp_path / "bad.parquet")
    with pytest.raises(BadRequest, match="is not there"):
        load_orbits(ppdb, tmp_path / "none.parquet")
    assert ppdb.getOrbits(["2008 AB"]).empty


@pytest.mark.parametrize("backend", ["dax-sqlite"], indirect=True)
def test_orbits_of_an_apdb_are_in_its_companion(backend: Backend, ppdb: Ppdb, tmp_path: Path) -> None:
    orbits(["2008 AB"], [1]).to_parquet(tmp_path / "orbits.parquet")
    with open_ppdb(unquote(backend.url.partition("companion=")[2])) as companion:
        load_orbits(companion, tmp_path / "orbits.parquet")
    assert ppdb.getOrbits(["2008 AB", "2009 CD"])["id"].tolist() == [1]
