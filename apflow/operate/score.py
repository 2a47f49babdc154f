"""``apflow score``: what a run found of what was there, simulated or injected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from apflow.catalogs.injected import is_injected
from apflow.errors import BadRequest
from apflow.io.butler import Repository
from apflow.io.butler.create import SETTINGS
from apflow.io.butler.paths import prompt_chain
from apflow.io.ppdb import open_ppdb
from apflow.io.tables import read_table
from apflow.operate.prepare import Record
from apflow.operate.repository import repository_config
from apflow.simulate.score import Scores, score

#: Files of a replay's report; the last only where fakes were injected.
TRUTH_FILE, SOURCES_FILE, LEDGER_FILE, INJECTED_FILE = (
    f"{name}.parquet" for name in ("truth", "diasources", "ledger", "injections")
)
AGAINST = ("truth", "injections")
_INJECTED = "injected_sources"
#: What `score` has to know of a change.
_TRUTH_COLUMNS = ("visit", "detector", "kind", "ra", "dec", "flux_njy", "snr", "good")
_TRAIL_COLUMNS = ("trail_length_arcsec", "trail_angle_deg")
Key = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Run:
    """What is scored.

    Attributes
    ----------
    truth : `pandas.DataFrame`
        Of the simulation; without rows where there was none.
    fakes : `pandas.DataFrame`
        Those injected; without rows where none were.
    sources : `pandas.DataFrame`
        The DiaSources.
    ended : `frozenset` [`tuple` [`int`, `int`]]
        Every (visit, detector) that came to an end, however.
    """

    truth: pd.DataFrame
    fakes: pd.DataFrame
    sources: pd.DataFrame
    ended: frozenset[Key]


def score_run(path: Path, against: str = "", min_reliability: float = 0.0, ppdb: str = "") -> Scores:
    """Score a run.

    Parameters
    ----------
    path : `pathlib.Path`
        Folder of a replay's report, or a repository.
    against : `str`
        ``truth`` of the simulation or ``injections``; empty: the first that there is.
    min_reliability : `float`
        Less reliable DiaSources are left out.
    ppdb : `str`
        URL of the PPDB of a repository; default: as configured, or as its replay had it.

    Returns
    -------
    score : `dict`
        That of `apflow.simulate.score.score`, with what it was scored against.

    Raises
    ------
    BadRequest
        There is no run, or nothing that it can be scored against.
    """
    if against not in ("", *AGAINST):
        raise BadRequest(f"--against {against!r} is not accepted: {', '.join(AGAINST)}")
    run = open_run(path, ppdb)
    known = [name for name, table in zip(AGAINST, (run.truth, run.fakes), strict=True) if len(table)]
    chosen = against or next(iter(known), "")
    if chosen not in known:
        what = {"": "truth of a simulation, nor injections", "truth": "truth of a simulation"}.get(chosen, chosen)
        raise BadRequest(f"{path} has no {what}; accepted: a replay, or a run with fakes (configuration injection)")
    if chosen == "truth":
        found = score(run.truth, run.sources, run.ended, min_reliability)
    else:
        found = score_injections(run.fakes, run.sources, run.ended, min_reliability)
    return {"against": chosen, "detector_visits": len(run.ended), "min_reliability": min_reliability, **found}


def open_run(path: Path, ppdb: str = "") -> Run:
    """Read what a run left."""
    if (path / SOURCES_FILE).is_file() and (path / LEDGER_FILE).is_file():
        if ppdb:
            raise BadRequest(f"--ppdb with the report's folder {path} is not accepted: its tables are there")
        fakes = read_table(path / INJECTED_FILE) if (path / INJECTED_FILE).is_file() else pd.DataFrame()
        truth = read_table(path / TRUTH_FILE) if (path / TRUTH_FILE).is_file() else pd.DataFrame()
        sources, ledger = read_table(path / SOURCES_FILE), read_table(path / LEDGER_FILE)
    elif (path / SETTINGS).is_file():
        record = Record.read(path)
        config = repository_config(str(path), ppdb or (record.ppdb if record else ""))
        with open_ppdb(config.ppdb_url) as opened:
            sources, ledger = opened.table("DiaSource"), opened.ledger()
        kept = [read_table(file) for file in sorted((path / "simulated").glob("truth*.parquet"))]
        truth, fakes = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(), injected_sources(path)
    else:
        raise BadRequest(f"{path} is not accepted: the folder of a replay's report, or a repository")
    for name, table in (("truth", truth), (_INJECTED, fakes)):
        missing = [c for c in (*_TRUTH_COLUMNS, *(_TRAIL_COLUMNS if name == "truth" else ())) if c not in table]
        if len(table) and missing:
            raise BadRequest(f"{path}: {name} has no column {missing[0]!r}; accepted: what apflow replay writes")
    ended = frozenset(zip(ledger["visit"].astype(int), ledger["detector"].astype(int), strict=True))
    return Run(truth, fakes, sources, ended)


def injected_sources(root: Path) -> pd.DataFrame:
    """The truth of all fakes of a repository, without rows where none were injected."""
    from lsst.daf.butler import MissingCollectionError, MissingDatasetTypeError

    repository = Repository.open(root)
    try:
        refs = repository.butler.query_datasets(
            _INJECTED, prompt_chain(repository.instrument), limit=None, explain=False
        )
    except (MissingDatasetTypeError, MissingCollectionError):  # a repository that an earlier version made
        return pd.DataFrame()
    tables = [repository.butler.get(ref) for ref in sorted(refs, key=lambda ref: ref.dataId.required_values)]
    found: pd.DataFrame = pd.concat([t for t in tables if len(t)] or [pd.DataFrame()], ignore_index=True)
    return found


def score_injections(
    fakes: pd.DataFrame, sources: pd.DataFrame, ended: Iterable[Key], min_reliability: float = 0.0
) -> Scores:
    """Score the DiaSources that hold the light of fakes against these.

    Detectors without fakes do not count; those that failed before their fakes
    were written down are among them. Purity is the share of such DiaSources
    that are within 1" of a fake: remnants of its subtraction are not.
    """
    keys = set(zip(fakes["visit"].astype(int), fakes["detector"].astype(int), strict=True))
    truth = fakes.assign(**dict.fromkeys(_TRAIL_COLUMNS, 0.0))
    truth["snr"] = truth["snr"].fillna(0.0)
    truth["good"] = truth["good"] & np.isfinite(fakes["snr"])
    mine = sources[is_injected(sources)].drop(columns=["pixelFlags_injected", "ssObjectId"])
    return score(truth, mine, keys & set(ended), min_reliability)
