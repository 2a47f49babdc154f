"""Detector-visits of a night that did not end as done, processed again: `reprocess` and `catchup`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apflow.errors import BadRequest
from apflow.io.ppdb import open_ppdb
from apflow.model.camera import load_camera
from apflow.model.ids import day_obs_of
from apflow.model.ledger import State
from apflow.model.visit import Visit
from apflow.operate.listen.journal import FOLDER, entries, target_from
from apflow.operate.listen.service import Service
from apflow.operate.listen.start import Request, listen
from apflow.operate.night.drive import take
from apflow.operate.night.folder import Order, is_supervised
from apflow.operate.repository import repository_config

#: States of detector-visits that something went wrong with, and of those that something was missing for.
FAILED = frozenset({str(State.FAILED), str(State.BAD_DATA)})
MISSED = frozenset({str(State.IMAGE_TIMEOUT), str(State.NO_CALIB), "expected"})


def order_of(
    butler: str,
    day_obs: int,
    states: Collection[str],
    *,
    cause: str = "",
    visit: int | None = None,
    idle: bool = False,
    reason: str,
    ppdb: str = "",
) -> tuple[Order, int, list[int]]:
    """What of a night is to be processed again.

    Parameters
    ----------
    butler, ppdb : `str`
        Repository, and its PPDB where that is not as configured.
    day_obs : `int`
        The night.
    states : collection of `str`
        Of the ledger.
    cause : `str`
        Text that the cause holds; empty: any.
    visit : `int`, optional
        This one only.
    idle, reason
        See `Order`.

    Returns
    -------
    order : `Order`
    n_detectors : `int`
        Detector-visits in it.
    unknown : `list` [`int`]
        Visits that no service started, so that nobody knows how they were
        announced: those of a replay.
    """
    config = repository_config(butler, ppdb)
    with open_ppdb(config.ppdb_url) as database:
        rows = database.ledger()
    wanted = rows["state"].isin(list(states)) & (rows["instrument"] == load_camera(config.camera).instrument)
    wanted &= rows["visit"].map(day_obs_of) == day_obs
    if cause:
        wanted &= rows["cause"].fillna("").str.contains(cause, regex=False)
    if visit is not None:
        wanted &= rows["visit"] == visit
    detectors: defaultdict[int, list[int]] = defaultdict(list)
    for number, detector in zip(rows["visit"][wanted].tolist(), rows["detector"][wanted].tolist(), strict=True):
        detectors[number].append(detector)
    started = _started(Path(config.butler) / FOLDER, set(detectors))
    visits = tuple({**started[v], "detectors": sorted(which)} for v, which in detectors.items() if v in started)
    n = sum(len(v["detectors"]) for v in visits)
    return Order(visits, idle, reason), n, sorted(v for v in detectors if v not in started)


def _started(journal: Path, visits: Collection[int]) -> dict[int, dict[str, Any]]:
    """How the service last started each of some visits."""
    found: dict[int, dict[str, Any]] = {}
    for entry in entries(journal, 0.0):
        if entry["what"] == "started" and isinstance(target := target_from(entry), Visit) and target.visit in visits:
            found[target.visit] = {"visit": asdict(target), "graph": entry["graph"]}
    return found


def process(order: Order, folder: Path, request: Request, tell: Callable[[str], None]) -> bool:
    """Give an order to the night if it runs; else process it here and now, with the workers of this machine.

    Returns
    -------
    here : `bool`
        Whether it was done here, and is over.

    Raises
    ------
    BadRequest
        There is nothing to do.
    """
    if not order.visits:
        raise BadRequest(f"night {folder.name} has no such detectors; accepted: states and causes as its report has")
    if is_supervised(folder):
        order.leave(folder)
        return False
    begun = False

    def look(service: Service) -> None:
        nonlocal begun
        if not begun:
            take(Order(order.visits, False, order.reason), service)
            begun = True
        service.drain()

    listen(request, tell, look=look)
    return True
