"""Visits, regions and results for the tests of the PPDB; run as a script it is another process that uses one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from apflow.catalogs.associate import associate
from apflow.catalogs.forced import forced_rows
from apflow.io.ppdb import Ppdb, StoreReport, open_ppdb
from apflow.io.ppdb.interface import Wanted
from apflow.model import schema
from apflow.model.ids import source_id
from apflow.model.ledger import Outcome, State
from apflow.model.products import DetectorResult, History, OutboxRow
from apflow.model.region import Region
from apflow.model.sky import deproject
from apflow.model.visit import Visit

RA, DEC = 10.0, -30.0
FIRST = 2025042000100


def visit(k: int = 0) -> Visit:
    """The k-th visit of a night, all of the same field."""
    name = f"MC_O_20250420_{100 + k:06d}"
    return Visit("LSSTCam", FIRST + k, f"group{k}", RA, DEC, 0.0, "r_57", "r", 30.0, (name,))


def mjd(k: int) -> float:
    """Midpoint of the k-th visit."""
    return 60785.3 + 0.01 * k


def square(ra: float = RA, dec: float = DEC, half_arcsec: float = 50.0, x_arcsec: float = 0.0) -> Region:
    """A square region, `x_arcsec` to the East of a point."""
    h, x = half_arcsec / 3600.0, x_arcsec / 3600.0
    return Region(np.stack(deproject(np.array([x + h, x - h, x - h, x + h]), np.array([-h, -h, h, h]), ra, dec), -1))


def regions(n: int = 3) -> dict[int, Region]:
    """Detectors 0 to n - 1, in a row and not touching."""
    return {d: square(x_arcsec=150.0 * d) for d in range(n)}


def places(detector: int, n: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """True positions of the variables of a detector: the same in each visit."""
    rng = np.random.default_rng(detector)
    x, y = rng.uniform(-45, 45, (2, n)) / 3600.0
    return deproject(x + 150.0 * detector / 3600.0, y, RA, DEC)


def sources(k: int, detector: int, position: tuple[np.ndarray, np.ndarray] | None = None) -> pd.DataFrame:
    """DiaSources of a detector-visit: 0.05 arcsec about the true positions."""
    ra, dec = places(detector) if position is None else position
    n = len(ra)
    rng = np.random.default_rng([k, detector])
    given = {
        "diaSourceId": [source_id(FIRST + k, detector, i + 1) for i in range(n)],
        "visit": FIRST + k,
        "detector": detector,
        "midpointMjdTai": mjd(k),
        "ra": (ra + rng.normal(0, 0.05, n) / 3600 / np.maximum(np.cos(np.radians(dec)), 0.05)) % 360.0,
        "dec": np.clip(dec + rng.normal(0, 0.05, n) / 3600, -90, 90),
        "raErr": 0.05 / 3600,
        "decErr": 0.05 / 3600,
        "x": 1.0,
        "y": 2.0,
        "psfFlux": rng.normal(1000, 50, n),
        "psfFluxErr": 50.0,
        "band": "r",
    }
    return schema.conform(pd.DataFrame(given), "DiaSource")


def read(ppdb: Ppdb, k: int, region: Region, new: pd.DataFrame) -> History:
    """What the association of new sources reads."""
    wanted = Wanted(region, new["ra"].to_numpy(), new["dec"].to_numpy(), mjd(k))
    (history,) = ppdb.getHistory([wanted], margin_arcsec=20.0, radius_arcsec=1.0)
    return history


def result(new: pd.DataFrame, k: int, detector: int, history: History) -> DetectorResult:
    """Associate and force: all of a detector that is stored."""
    out = associate(new, history, radius_arcsec=1.0, position_floor_arcsec=0.05, max_new_objects=1000)
    flux = np.ones(len(out.objects))
    forced = forced_rows(
        out.objects,
        psf_flux=flux,
        psf_flux_err=flux,
        science_flux=flux,
        science_flux_err=flux,
        visit=FIRST + k,
        detector=detector,
        band="r",
        midpoint_mjd_tai=mjd(k),
    )
    tables = (out.sources, out.objects, forced)
    more = (1.0, mjd(k), 20250420)
    return DetectorResult(visit(k), detector, *tables, out.guard, (), (), *more, matches=out.matches)


def process(ppdb: Ppdb, k: int, detector: int) -> DetectorResult:
    """Read, associate and force one detector of `regions`."""
    region, new = regions(detector + 1)[detector], sources(k, detector)
    return result(new, k, detector, read(ppdb, k, region, new))


def alerts(results: Sequence[DetectorResult]) -> list[OutboxRow]:
    """An outbox row for each source."""
    return [
        OutboxRow(int(s), int(o), r.visit.visit, r.detector, "20250420.avro", 100 * i, 100, 7)
        for r in results
        for i, (s, o) in enumerate(zip(r.sources["diaSourceId"], r.sources["diaObjectId"], strict=True))
    ]


def store(ppdb: Ppdb, results: Sequence[DetectorResult]) -> StoreReport:
    """Store results with their alerts."""
    return ppdb.storeBatch(results, alerts(results), 60785.5)


def check(ppdb: Ppdb) -> None:
    """What holds of any PPDB: nothing twice, nothing half."""
    new, objects, forced = (ppdb.table(t) for t in ("DiaSource", "DiaObject", "DiaForcedSource"))
    ledger, outbox = ppdb.ledger(), ppdb.table("outbox")
    stored = ledger[ledger["stored_unix"].notna()]
    assert new["diaSourceId"].is_unique and forced["diaForcedSourceId"].is_unique and outbox["alert_id"].is_unique
    counts = new.groupby(["visit", "detector"]).size()
    assert {k: int(v) for k, v in counts.items()} == {
        (r.visit, r.detector): r.n_sources for r in stored.itertuples() if r.n_sources
    }
    assert set(outbox["alert_id"]) == set(new["diaSourceId"])
    current = objects[objects["validityEndMjdTai"].isna()]
    assert current["diaObjectId"].is_unique and set(current["diaObjectId"]) == set(objects["diaObjectId"])
    per_object = new["diaObjectId"].value_counts().to_dict()
    assert dict(zip(current["diaObjectId"], current["nDiaSources"], strict=True)) == per_object
    assert objects["diaObjectId"].value_counts().to_dict() == per_object


def finish(ppdb: Ppdb, k: int, wait: bool = True) -> int:
    """All detectors of a visit as the graph does them, by any number of attempts; gives the races it lost."""
    ppdb.openVisit(visit(k), regions(), time.time() + 60.0)
    left, lost = list(regions()), 0
    while left:
        if wait:
            assert all([ppdb.awaitTurn(FIRST + k, d, 60.0) for d in left])
        results = [process(ppdb, k, d) for d in left]
        print("store", k, flush=True)
        report = store(ppdb, results)
        print("stored", k, len(report.stored), flush=True)
        left = [d for _, d in report.lost_race]
        lost += len(left)
    ppdb.settle([Outcome("LSSTCam", FIRST + k, d, State.DONE) for d in regions()])
    return lost


def main() -> None:
    """``serve URL [SECONDS]``: own it, so long or until killed.

    ``visits`` or ``turns URL FIRST N``: visits, told line by line.
    """
    what, url = sys.argv[1:3]
    with open_ppdb(url, create=True) as ppdb:
        print("open", os.getpid(), flush=True)
        if what == "serve":
            time.sleep(float(sys.argv[3]) if len(sys.argv) > 3 else 60)
            return
        first, n = int(sys.argv[3]), int(sys.argv[4])
        for k in range(first, first + n):
            finish(ppdb, k, wait=what == "turns")


if __name__ == "__main__":
    main()
