"""What made the outputs of a detector-visit: inputs, configuration, software, worker.

A dataset of its own (`ap_provenance`) says it for all outputs of its
detector-visit and run; images say the ids of their inputs in their headers,
under the keywords that the Butler of Rubin gives them
(`lsst.daf.butler.DatasetProvenance`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import socket
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from apflow.config import Config
from apflow.errors import DataError
from apflow.io.atomic import atomic
from apflow.model.products import Plan, Snaps

#: Packages whose versions may make a difference to the results.
PACKAGES = (
    *("apflow", "numpy", "numba", "scipy", "astropy", "sep", "pandas", "pyarrow", "fastavro", "distributed"),
    *("lsst-daf-butler", "lsst-sphgeom", "lsst-sdm-schemas", "lsst-alert-packet"),
)


def provenance(plan: Plan, detector: int, snaps: Snaps, config: Config) -> dict[str, Any]:
    """What makes the outputs of a detector-visit, in this process and now.

    Returns
    -------
    record : `dict`
        Of what JSON has. `inputs` are datasets of the Butler with type, run
        and id, raw images with their exposure; `processing_id` is
        `Config.processing_id` and `configuration` all that it is made of.
    """
    visit = plan.visit
    settings = dataclasses.asdict(config)
    return {
        "instrument": visit.instrument,
        "visit": visit.visit,
        "detector": detector,
        "group": visit.group,
        "run": plan.run,
        "raws": [{"dataset_type": "raw", "exposure": r.exposure, "snap": r.snap, "path": r.path} for r in snaps.raws],
        "missing_snaps": list(snaps.missing),
        "inputs": [dataclasses.asdict(ref) for ref in plan.inputs[detector].refs],
        "template_cells": [{"tract": tract, "patch": patch} for tract, patch, _ in plan.inputs[detector].templates],
        "skymap": plan.inputs[detector].skymap,
        "processing_id": config.processing_id,
        "configuration": {name: settings[name] for name in ("camera", "size", *config.PROCESSING)},
        "versions": dict(versions()),
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "made_unix": time.time(),
    }


@functools.cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of `PACKAGES`, where they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def keywords(record: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a FITS header that say what `record` does, as far as they can."""
    said = {
        "LSST BUTLER RUN": record["run"],
        "LSST BUTLER N_INPUTS": len(record["inputs"]),
        "APFLOW VERSION": record["versions"]["apflow"],
        "APFLOW PROCESSING": record["processing_id"],
        "APFLOW WORKER": record["worker"],
    }
    return said | {f"LSST BUTLER INPUT {n} ID": ref["id"] for n, ref in enumerate(record["inputs"])}


def write_provenance(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON."""
    with atomic(path) as file:
        file.write(json.dumps(record, indent=1).encode())


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Read a record.

    Raises
    ------
    DataError
        The file is missing or not JSON.
    """
    try:
        record: dict[str, Any] = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a record of provenance: {error}") from error
    return record
