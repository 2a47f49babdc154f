"""What the night report asks of the PPDB, the alert archive and the Butler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apflow.config import Config
from apflow.errors import DataError
from apflow.io.butler import Repository
from apflow.io.butler.paths import checks_chain
from apflow.io.metrics import values_of
from apflow.io.ppdb import Ppdb
from apflow.model.calibration_bundle import EXPOSURE_ACTION
from apflow.model.ids import day_obs_of, image_name
from apflow.model.ledger import State
from apflow.model.verdict import Verdict
from apflow.operate.calibration.summary import remarks
from apflow.operate.night.report_tables import NightTables
from apflow.operate.report_stamps import Stamp
from apflow.operate.score import injected_sources, score_injections
from apflow.operate.stamps import pick_stamps
from apflow.operate.summary import finite

#: Fakes are scored on this many visits at most, spread over the night: their DiaSources have to be read for it.
_SCORED_VISITS = 30
_STAMPS_A_DETECTOR = 3
_OUTBOX = {
    "stored": "count(*)",
    "published": "count(published_unix)",
    "unsent": "sum(CASE WHEN published_unix IS NULL AND withdrawn_mjd_tai IS NULL AND refused IS NULL "
    "THEN 1 ELSE 0 END)",
    "withdrawn": "count(withdrawn_mjd_tai)",
    "refused": "count(refused)",
}


def outbox_counts(ppdb: Ppdb, day_obs: int) -> dict[str, int]:
    """Alerts of a night by what became of them."""
    columns = ", ".join(f"{what} AS {name}" for name, what in _OUTBOX.items())
    row = ppdb.select(f"SELECT {columns} FROM outbox WHERE {_of_night(day_obs)}").to_pylist()[0]
    return {name: int(value or 0) for name, value in row.items()}


def ledger_counts(ppdb: Ppdb, day_obs: int) -> dict[str, int]:
    """Detector-visits of a night by state."""
    rows = ppdb.select(f"SELECT state, count(*) AS n FROM ledger WHERE {_of_night(day_obs)} GROUP BY state")
    return {str(row["state"]): int(row["n"]) for row in rows.to_pylist()}


def _of_night(day_obs: int) -> str:
    return f"visit >= {day_obs * 100_000} AND visit < {(day_obs + 1) * 100_000}"


def fakes_score(ppdb: Ppdb, tables: NightTables, config: Config) -> dict[str, Any]:
    """The score of the night's injected fakes (`apflow.operate.score`); empty where there were none."""
    if "n_injected" not in tables.detectors or not tables.detectors["n_injected"].sum() > 0:
        return {}
    with_fakes = tables.detectors[tables.detectors["n_injected"] > 0]
    visits = with_fakes["visit"].unique()
    chosen = visits[np.linspace(0, len(visits) - 1, min(len(visits), _SCORED_VISITS)).astype(int)]
    fakes = injected_sources(Path(config.butler))
    if not len(fakes):
        return {}
    fakes = fakes[fakes["visit"].isin(chosen)]
    sources = ppdb.table("DiaSource", {"visit": [int(v) for v in chosen]})
    keys = with_fakes.loc[with_fakes["visit"].isin(chosen), ["visit", "detector"]].to_numpy().tolist()
    found: dict[str, Any] = finite(score_injections(fakes, sources, {(v, d) for v, d in keys}))
    return {"visits_scored": len(chosen), **found}


def worst_stamps(
    ppdb: Ppdb, tables: NightTables, worst: Sequence[Mapping[str, Any]], config: Config
) -> dict[int, list[Stamp]]:
    """Stamps of alerts of the worst detectors: of the visits on which each found most."""
    found: dict[int, list[Stamp]] = {}
    done = tables.detectors[(tables.detectors["state"] == State.DONE) & (tables.detectors["n_alerts"] > 0)]
    for detector in (int(row["detector"]) for row in worst):
        mine = done[done["detector"] == detector].nlargest(_STAMPS_A_DETECTOR, "n_alerts")
        where = {"visit": [int(v) for v in mine["visit"]], "detector": [detector]}
        if where["visit"]:
            sources, outbox = ppdb.table("DiaSource", where), ppdb.table("outbox", where)
            found[detector] = pick_stamps(config.alerts_url, config.packets.schema_version, sources, outbox, 1)
    return found


def calibrations(config: Config, day_obs: int) -> list[dict[str, Any]]:
    """The calibration exposures of a night with the verdicts on them, in order.

    Returns
    -------
    exposures : `list` [`dict`]
        Of what JSON has: exposure, image, intent, verdict (empty where none was
        checked), n_detectors, n_done, detectors by verdict, remarks, metrics.
    """
    from lsst.daf.butler import MissingCollectionError, MissingDatasetTypeError

    with Repository(config.butler) as repository:
        try:
            refs = repository.butler.query_datasets(
                "calibration_exposure_metrics",
                checks_chain(repository.instrument),
                with_dimension_records=True,
                limit=None,
                explain=False,
            )
        except (MissingDatasetTypeError, MissingCollectionError):  # nothing of the kind was ever kept here
            return []
        mine = sorted((r for r in refs if day_obs_of(int(r.dataId["exposure"])) == day_obs), key=lambda r: r.dataId)
        prefix = repository.camera.image_prefix
        return [_calibration(ref, repository.butler.getURI(ref).ospath, config, prefix) for ref in mine]


def _calibration(ref: Any, path: str, config: Config, prefix: str) -> dict[str, Any]:
    try:
        values = values_of(json.loads(Path(path).read_bytes()))[EXPOSURE_ACTION]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a MetricMeasurementBundle: {type(error).__name__}: {error}") from error
    exposure = int(ref.dataId["exposure"])
    image = image_name(exposure, prefix)
    checked = Path(config.butler) / "calibration-reports" / f"{image}.json"
    summary = json.loads(checked.read_text()) if checked.is_file() else None
    verdict = values.get("verdict")
    kinds = {str(v).lower(): values.get(f"n_{str(v).lower()}") for v in Verdict}
    return {
        "exposure": exposure,
        "image": image,
        "intent": str(ref.dataId.records["exposure"].observation_type),
        "verdict": "" if verdict is None else str(Verdict(int(verdict))).lower(),
        "n_detectors": int(values.get("n_detectors") or 0),
        "n_done": int(values.get("n_detectors_done") or 0),
        "detectors": {name: int(n or 0) for name, n in kinds.items()},
        "remarks": [f"{names}: {why}" for names, _, why in remarks(summary)] if summary else [],
        "metrics": dict(values),
    }
