"""Before a night starts: its folder, and the cluster that its focal plane asks for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apflow.cluster.request import ClusterRequest
from apflow.errors import BadRequest
from apflow.io.records import night_folder
from apflow.logs import FORMATS
from apflow.model.camera import load_camera
from apflow.operate.listen.start import WARM_UP, Request
from apflow.operate.local_run import CORES
from apflow.operate.night.plan import plan_night
from apflow.operate.night.recorder import day_of
from apflow.operate.repository import repository_config


def prepared_folder(butler: str, night: str, camera: str) -> Path:
    """The folder of the night that is to start, made if it is not there.

    Raises
    ------
    BadRequest
        There is no repository, it is of another camera than `camera`, or
        `night` is no day of observation.
    """
    config = repository_config(butler)
    if camera and load_camera(camera).instrument != (own := load_camera(config.camera).instrument):
        raise BadRequest(f"--camera {camera} is not accepted: {butler} is a repository of {own}")
    if config.night.log_format not in FORMATS:
        raise BadRequest(f"night.log_format {config.night.log_format!r} is not accepted: {' or '.join(FORMATS)}")
    if night and not (night.isdigit() and len(night) == 8):
        raise BadRequest(f"--night {night!r} is not accepted: a day of observation, YYYYMMDD")
    folder = night_folder(config.butler, int(night) if night else day_of(time.time()))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cluster_request(
    request: Request,
    folder: Path,
    *,
    kind: str,
    workers: int,
    gather_workers: int,
    memory: str,
    tls: bool,
    dashboard: str,
    options: Mapping[str, Any],
) -> ClusterRequest:
    """The cluster of a night, checked; 0 `workers` or `gather_workers` are as many as `plan_night` says.

    Raises
    ------
    BadRequest
        A value is not acceptable.
    """
    config = repository_config(request.butler, request.ppdb, request.alerts)
    camera = load_camera(config.camera, config.size)
    plan = plan_night(camera, detectors=request.detectors, cores=CORES if kind == "local" else None)
    return ClusterRequest(
        kind=kind,
        n_workers=workers or plan.workers,
        memory_limit=memory,
        gather_workers=gather_workers or plan.gather_workers,
        tls=tls,
        dashboard_address=dashboard,
        folder=str(folder),
        warm_up=WARM_UP,
        options=dict(options),
    )
