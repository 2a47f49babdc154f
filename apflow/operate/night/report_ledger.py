"""A night without records, as the PPDB's ledger and the Butler's metrics tell it.

So there is a report of what `apflow visit` or a replay processed, and of a night whose records are lost: all but
retries, re-runs and losses of workers.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apflow.config import Config
from apflow.errors import DataError
from apflow.io.butler import Repository
from apflow.io.butler.paths import prompt_chain
from apflow.io.metrics import values_of
from apflow.io.ppdb import Ppdb
from apflow.model.ap_metrics import known_values
from apflow.model.ids import day_obs_of
from apflow.model.record import Record
from apflow.operate.night.report_tables import NightTables

#: The sources of a visit's metrics in the Butler.
_KINDS = ("ap_metrics", "ap_delivery_metrics")
_NUMBERS = ("n_sources", "n_alerts", "arrived_unix", "stored_unix", "published_unix")
#: States of the ledger that are no ends.
_OPEN = ("expected", "stored")


def ledger_nights(ppdb: Ppdb) -> list[int]:
    """Days of observation that the ledger knows, oldest first."""
    rows = ppdb.select("SELECT DISTINCT visit - visit % 100000 AS first FROM ledger").to_pylist()
    return sorted(day_obs_of(int(row["first"])) for row in rows)


def ledger_records(ppdb: Ppdb, config: Config, day_obs: int) -> Iterator[Record]:
    """Records of visits, steps and ends, made of the ledger, of the steps' records beside it and of the metrics."""
    night = f"visit >= {day_obs * 100_000} AND visit < {(day_obs + 1) * 100_000}"
    rows = ppdb.select(f"SELECT * FROM ledger WHERE {night} ORDER BY visit, detector").to_pylist()
    bands, metrics = _metrics(config, day_obs)
    first: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        first.setdefault(int(row["visit"]), []).append(row)
    for visit, mine in first.items():
        unix = min((float(r["arrived_unix"]) for r in mine if r["arrived_unix"] is not None), default=0.0)
        yield Record(
            unix,
            "visit",
            visit,
            numbers={"n_detectors": float(len(mine))},
            instrument=str(mine[0]["instrument"]),
            band=bands.get(visit, ""),
        )
    for row in ppdb.select(f"SELECT * FROM step_record WHERE {night} ORDER BY start_unix").to_pylist():
        yield Record(
            row["stop_unix"],
            "step",
            int(row["visit"]),
            int(row["detector"]),
            row["step"],
            row["start_unix"],
            row["stop_unix"],
            row["core_s"],
            row["worker"],
        )
    for row in rows:
        if row["state"] not in _OPEN:
            key = int(row["visit"]), int(row["detector"])
            numbers = {name: float(row[name]) for name in _NUMBERS if row[name] is not None}
            yield Record(
                max(numbers.get("published_unix", 0.0), numbers.get("arrived_unix", 0.0)),
                "ended",
                *key,
                row["step"] or "",
                outcome=row["state"],
                cause=row["cause"] or "",
                numbers=metrics.get(key, {}) | numbers,
            )


def with_publication(tables: NightTables, ppdb: Ppdb, day_obs: int) -> NightTables:
    """The same with the times of publication that the ledger has: what was delivered late came after its record."""
    night = f"visit >= {day_obs * 100_000} AND visit < {(day_obs + 1) * 100_000}"
    rows = ppdb.select(f"SELECT visit, detector, published_unix FROM ledger WHERE {night}").to_pandas()
    found = tables.detectors.merge(rows, "left", ["visit", "detector"], suffixes=("", "_ledger"))
    times = found.pop("published_unix_ledger").astype(float)
    found["published_unix"] = times.fillna(found["published_unix"])
    return dataclasses.replace(tables, detectors=found)


def _metrics(config: Config, day_obs: int) -> tuple[dict[int, str], dict[tuple[int, int], dict[str, float]]]:
    """Band by visit, and metrics by visit and detector, of the Butler's newest runs."""
    from lsst.daf.butler import MissingCollectionError, MissingDatasetTypeError

    bands: dict[int, str] = {}
    found: dict[tuple[int, int], dict[str, float]] = {}
    with Repository(config.butler) as repository:
        for kind in _KINDS:
            try:
                refs = repository.butler.query_datasets(
                    kind,
                    prompt_chain(repository.instrument),
                    where="visit >= low AND visit < high",
                    bind={"low": day_obs * 100_000, "high": (day_obs + 1) * 100_000},
                    instrument=repository.instrument,
                    with_dimension_records=True,
                    limit=None,
                    explain=False,
                )
            except (MissingDatasetTypeError, MissingCollectionError):  # nothing of the kind was ever kept here
                continue
            for ref in refs:
                visit, detector = int(ref.dataId["visit"]), int(ref.dataId["detector"])
                bands[visit] = str(ref.dataId["band"])
                path = repository.butler.getURI(ref).ospath
                try:
                    values = known_values(values_of(json.loads(Path(path).read_bytes())))
                except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                    raise DataError(f"{path} is not a MetricMeasurementBundle: {error}") from error
                kept = found.setdefault((visit, detector), {})
                kept.update({name: v for name, v in values.items() if math.isfinite(v)})
    return bands, found
