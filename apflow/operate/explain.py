"""``apflow explain ID``: what made a DiaSource, an alert or a dataset."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any

from apflow.config import Config
from apflow.errors import BadRequest, DataError
from apflow.io.butler import Repository
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.io.provenance import read_provenance
from apflow.model.ids import visit_detector_of

if TYPE_CHECKING:
    from lsst.daf.butler import DatasetRef

_PROVENANCE = "ap_provenance"


def explain(name: str, config: Config) -> dict[str, Any]:
    """Everything that is known of where something came from.

    Parameters
    ----------
    name : `str`
        A diaSourceId, which is an alert's id too, or the UUID of a dataset.

    Returns
    -------
    explained : `dict`
        Of what JSON has: `what` it is, its ledger row and alert where it has
        them, and `provenance`, the record of `apflow.io.provenance` with the
        data ids and files of its inputs; None where nothing made it here.

    Raises
    ------
    BadRequest
        The name is of neither form, or nothing bears it.
    """
    if name.isdigit():
        return _source(int(name), config)
    try:
        return _dataset(uuid.UUID(name), config)
    except ValueError:
        raise BadRequest(f"{name!r} is not accepted: a diaSourceId (digits) or the UUID of a dataset") from None


def _source(source: int, config: Config) -> dict[str, Any]:
    with open_ppdb(config.ppdb_url) as ppdb:
        rows = ppdb.table("DiaSource", {"diaSourceId": [source]})
        if rows.empty:
            raise BadRequest(f"DiaSource {source} is not in the PPDB; accepted: the diaSourceId of one that is")
        visit, detector = int(rows["visit"].iloc[0]), int(rows["detector"].iloc[0])
        known = rows[["diaObjectId", "ssObjectId", "ra", "dec", "midpointMjdTai", "timeProcessedMjdTai", "band"]]
        told = {
            "what": f"DiaSource {source}",
            "visit": visit,
            "detector": detector,
            "source": known.astype(object).where(known.notna(), None).to_dict("records")[0],
            "alert": _first(ppdb, "outbox", alert_id=source),
            "ledger": _first(ppdb, "ledger", visit=visit, detector=detector),
        }
    if visit_detector_of(source) != (visit, detector):
        raise DataError(
            f"DiaSource {source} is stored under visit {visit}, detector {detector}, but its id says otherwise"
        )
    with Repository(config.butler) as repository:
        return told | {"provenance": _provenance(repository, visit, detector)}


def _first(ppdb: Ppdb, table: str, **where: int) -> dict[str, Any] | None:
    rows = ppdb.table(table, {column: [value] for column, value in where.items()})
    found = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return {str(k): v for k, v in found[0].items()} if found else None


def _dataset(name: uuid.UUID, config: Config) -> dict[str, Any]:
    with Repository(config.butler) as repository:
        ref = repository.butler.get_dataset(name)
        if ref is None:
            raise BadRequest(f"dataset {name} is not in {config.butler}; accepted: the UUID of one that is")
        told = {"what": f"dataset {name}", **_described(repository, ref)}
        if not {"visit", "detector"} <= set(ref.dimensions.required):
            return told | {"provenance": None}
        visit, detector = int(ref.dataId["visit"]), int(ref.dataId["detector"])
        return told | {"provenance": _provenance(repository, visit, detector, ref.run)}


def _described(repository: Repository, ref: DatasetRef) -> dict[str, Any]:
    uri = repository.butler.getURI(ref) if repository.butler.stored(ref) else None
    return {
        "dataset_type": ref.datasetType.name,
        "run": ref.run,
        "data_id": dict(ref.dataId.required),
        "file": uri.ospath if uri is not None else None,
    }


def _provenance(repository: Repository, visit: int, detector: int, run: str = "") -> dict[str, Any] | None:
    """The record of a detector-visit, the newest where no run is named, with its inputs looked up."""
    butler = repository.butler
    key = {"instrument": repository.instrument, "visit": visit, "detector": detector}
    refs = butler.query_datasets(_PROVENANCE, run or "*", find_first=False, data_id=key, explain=False)
    records = [read_provenance(butler.getURI(ref).ospath) for ref in refs]
    if not records:
        return None
    record = max(records, key=lambda r: float(r["made_unix"]))
    inputs = []
    for said in record["inputs"]:
        ref = butler.get_dataset(uuid.UUID(said["id"]))
        inputs.append(said | (_described(repository, ref) if ref is not None else {"gone": True}))
    for raw in record["raws"]:
        where = {"instrument": repository.instrument, "exposure": raw["exposure"], "detector": detector}
        for ref in butler.query_datasets("raw", "*", find_first=False, data_id=where, explain=False):
            raw |= {"id": str(ref.id), "run": ref.run}
    made = dt.datetime.fromtimestamp(record["made_unix"], dt.UTC).isoformat(timespec="seconds")
    return record | {"inputs": inputs, "made": made}
