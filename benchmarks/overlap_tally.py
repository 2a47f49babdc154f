"""What of some overlapping visits is stored: rows lost, rows there twice, and whatever else should not be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from overlap_sky import FIRST, Sky
from scipy.spatial import cKDTree

from apflow.config import Config
from apflow.errors import DataError
from apflow.io.alerts.archive import open_archive
from apflow.io.ppdb import Ppdb
from apflow.io.ppdb.operations_check import check
from apflow.model.ledger import State
from apflow.model.products import OutboxRow

_NEAR_ARCSEC = 1.0


@dataclass
class Tally:
    """Counts of rows.

    Attributes
    ----------
    expected
        Rows that must be there: DiaSources, DiaObject versions, alerts, detector-visits that are done.
    lost
        Those that are not there, and alerts that are not published or cannot be read.
    duplicated
        Rows beyond them, DiaObjects beyond one a variable, and pairs of DiaObjects within 1 arcsec.
    wrong
        What breaks an invariant of `apflow ppdb check`, and DiaObjects of more than one variable.
    unforced
        DiaSources whose DiaObject has no DiaForcedSource of their detector-visit. There are none but in a
        detector that lost a race: what it measured for a DiaObject that it did not make after all is left out.
    notes
        What is behind the counts, in words.
    """

    expected: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    unforced: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, lost: int = 0, duplicated: int = 0, wrong: int = 0) -> None:
        """Add to the counts."""
        if lost or duplicated or wrong:
            self.notes.append(f"{what}: {lost} lost, {duplicated} duplicated, {wrong} wrong")
        self.lost, self.duplicated, self.wrong = self.lost + lost, self.duplicated + duplicated, self.wrong + wrong

    def compare(self, what: str, expected: Collection[object], found: Collection[object]) -> None:
        """Add keys that must be there once, and those that are."""
        wanted, there = set(expected), set(found)
        self.expected += len(wanted)
        self.add(what, len(wanted - there), len(found) - len(there) + len(there - wanted))


def tally(ppdb: Ppdb, config: Config, sky: Sky, visits: Sequence[int]) -> Tally:
    """Compare what is stored with the truth; the PPDB holds these visits only."""
    out, truth = Tally(), sky.truth(visits)
    sources = ppdb.table("DiaSource")
    sources = sources.assign(place=sources["diaSourceId"].map(truth))
    out.compare("DiaSource", truth, sources["diaSourceId"].tolist())
    _objects(out, sources, ppdb.table("DiaObject"))
    _forced(out, sources, ppdb.table("DiaForcedSource"))
    _alerts(out, sources, ppdb.table("outbox"), config)
    ledger = ppdb.ledger()
    done = ledger[ledger["state"] == State.DONE]
    out.compare("ledger", [(FIRST + k, d) for k in visits for d in sky.detectors], _keys(done, "visit", "detector"))
    for violation in check(ppdb):
        out.add(f"{violation.invariant} ({'; '.join(violation.examples)})", wrong=violation.count)
    return out


def _keys(table: pd.DataFrame, *columns: str) -> list[tuple[int, ...]]:
    return list(zip(*(table[c].tolist() for c in columns), strict=True))


def _objects(out: Tally, sources: pd.DataFrame, versions: pd.DataFrame) -> None:
    """One DiaObject a variable; one version a DiaSource, each with one more than the version before."""
    counted = sources.assign(n=sources.groupby("diaObjectId").cumcount() + 1)
    out.compare("DiaObject", _keys(counted, "diaObjectId", "n"), _keys(versions, "diaObjectId", "nDiaSources"))
    per_place = sources.groupby("place")["diaObjectId"].nunique()
    out.add("DiaObjects of one variable", duplicated=int((per_place - 1).sum()))
    per_object = sources.groupby("diaObjectId")["place"].nunique()
    out.add("variables of one DiaObject", wrong=int((per_object - 1).sum()))
    current = versions[versions["validityEndMjdTai"].isna()]
    ra, dec = (np.radians(current[c].to_numpy()) for c in ("ra", "dec"))
    places = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], -1)
    pairs = cKDTree(places).query_pairs(np.radians(_NEAR_ARCSEC / 3600.0))
    out.add("pairs of DiaObjects within 1 arcsec", duplicated=len(pairs))


def _forced(out: Tally, sources: pd.DataFrame, forced: pd.DataFrame) -> None:
    expected, found = (_keys(t, "diaObjectId", "visit", "detector") for t in (sources, forced))
    out.unforced = len(set(expected) - set(found))
    out.add("DiaForcedSource", duplicated=len(found) - len(set(found) & set(expected)))


def _alerts(out: Tally, sources: pd.DataFrame, outbox: pd.DataFrame, config: Config) -> None:
    """One alert a DiaSource, about its DiaObject, published, and durable byte for byte."""
    out.compare("outbox", _keys(sources, "diaSourceId", "diaObjectId"), _keys(outbox, "alert_id", "object_id"))
    out.add("alerts not published", lost=int(outbox["published_unix"].isna().sum()))
    archive, lost = open_archive(config.alerts_url, config.packets.schema_version), 0
    names = ("alert_id", "object_id", "visit", "detector", "file", "offset", "length", "checksum")
    for row in _keys(outbox, *names):
        try:
            archive.read(OutboxRow(*row))  # type: ignore[arg-type]
        except DataError:
            lost += 1
    out.add("alerts that cannot be read", lost=lost)
