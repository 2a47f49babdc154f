"""One request for many detectors gives what one for each gives, whatever the number of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.interface import Wanted
from apflow.model import schema
from apflow.model.products import History
from tests.io import ppdb_night as night
from tests.io.ppdb_backends import DuckDb, Postgres

N = 600


@pytest.mark.parametrize("backend", ["duckdb", "postgresql"])
def test_many_detectors_at_once(request: pytest.FixtureRequest, backend: str, tmp_path: Path) -> None:
    place = DuckDb(tmp_path) if backend == "duckdb" else Postgres(request.getfixturevalue("postgres"))
    rng = np.random.default_rng(1)
    empty = History(schema.empty("DiaObject"), schema.empty("DiaSource"), schema.empty("DiaForcedSource"))
    wanted = []
    with open_ppdb(place.url, create=True) as ppdb:
        for d, region in night.regions(2).items():
            ra, dec = night.places(d, N)
            wanted.append(Wanted(region, ra, dec, night.mjd(1)))
            flags = pd.arrays.BooleanArray(rng.random(N) < 0.5, rng.random(N) < 0.3)
            new = night.sources(0, d, (ra, dec)).assign(isNegative=flags, trailNdata=rng.integers(0, 5, N))
            result = night.result(schema.conform(new, "DiaSource"), 0, d, empty)
            assert ppdb.storeBatch([result], [], 60785.5, radius_arcsec=1e-4).stored
        arguments = {"margin_arcsec": 20.0, "radius_arcsec": 1.0}
        together = ppdb.getHistory(wanted, **arguments)
        for history, one in zip(together, wanted, strict=True):
            [alone] = ppdb.getHistory([one], **arguments)
            assert len(history.sources) == N and history.sources["isNegative"].isna().any()
            for name in ("objects", "sources", "forced", "drp"):
                pd.testing.assert_frame_equal(getattr(history, name), getattr(alone, name))
