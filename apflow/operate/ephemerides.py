"""Predictions of Solar System objects into a repository: from files, and those of a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from apflow.errors import BadRequest
from apflow.io.butler import Repository
from apflow.io.ephemerides import read_ephemerides
from apflow.simulate.ephemerides import predict
from apflow.simulate.scenario import Scenario, visits


def ingest_ephemerides(butler: Path, files: Sequence[Path], group: str = "", visit: int = 0) -> dict[str, int]:
    """Store the predictions of files, for all science detectors; which are in a CCD's field is found when it is read.

    Parameters
    ----------
    butler : `pathlib.Path`
    files : sequence of `pathlib.Path`
        See `apflow.io.ephemerides`; a column ``group`` tells of which visit each row is.
    group : `str`
        Group of the visit that all rows are of, as nextVisit announces it.
    visit : `int`
        The same by number, once one of its images is registered.

    Returns
    -------
    stored : `dict` [`str`, `int`]
        Number of objects by group.

    Raises
    ------
    BadRequest
        Nothing, or more than one thing, says of which visit the rows are.
    """
    with Repository(butler, writeable=True) as repository:
        if group and visit:
            raise BadRequest("--group with --visit is not accepted: one of them")
        whole = group or (_group_of(repository, visit) if visit else "")
        tables: dict[str, list[pd.DataFrame]] = {}
        for file in files:
            table = read_ephemerides(file)
            if ("group" in table) == bool(whole):
                raise BadRequest(
                    f"{file} {'has' if whole else 'has no'} column 'group', and --group or --visit "
                    f"{'was' if whole else 'was not'} given; accepted: one of the two"
                )
            for name, part in [(whole, table)] if whole else table.groupby("group"):
                tables.setdefault(str(name), []).append(part.drop(columns="group", errors="ignore"))
        stored = {}
        for name, parts in tables.items():
            table = pd.concat(parts, ignore_index=True)
            twice = table["ssObjectId"].duplicated()
            if twice.any():
                first = table["ssObjectId"][twice].iloc[0]
                raise BadRequest(f"ssObjectId {first} comes twice for group {name}; accepted: one row for each")
            repository.ingest_ss_objects(name, dict.fromkeys(repository.camera.select("science"), table))
            stored[name] = len(table)
    return stored


def _group_of(repository: Repository, visit: int) -> str:
    records = repository.butler.query_dimension_records(
        "exposure", instrument=repository.instrument, exposure=visit, explain=False
    )
    if not records:
        raise BadRequest(f"visit {visit} is not registered; it is when its first raw image is; or give --group")
    return str(records[0].group)


def ingest_simulated(root: Path, scenario: Scenario) -> None:
    """Store what is predicted of the simulated movers, for every visit and detector of a scenario."""
    repository = Repository.open(root, writeable=True)
    for visit in visits(scenario):
        tables = {d: predict(scenario, visit, d) for d in scenario.detectors}
        repository.ingest_ss_objects(visit.group, {d: table for d, table in tables.items() if len(table)})
