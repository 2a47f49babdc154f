"""A simulated field with its repository, and the real graph run over it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from distributed import Client

from apflow.config import Config
from apflow.graphs import alert_production
from apflow.io.arrivals import Ingestor
from apflow.io.ppdb import open_ppdb
from apflow.model.ledger import Outcome
from apflow.model.visit import Visit
from apflow.operate.prepare import open_replay, prepare
from apflow.operate.repository import repository_config
from apflow.run.on_dask import DaskRunner
from apflow.simulate.player import Player, Trouble
from apflow.simulate.scenario import Scenario, visits

#: Columns that say when something was processed: the only ones in which two runs of one seed may differ.
PROCESSING_TIMES = ["timeProcessedMjdTai", "validityStartMjdTai", "validityEndMjdTai"]


@dataclasses.dataclass(frozen=True)
class Field:
    """A repository with calibs, templates and reference stars, and rendered raws that have not landed."""

    root: Path
    scenario: Scenario
    player: Player
    truth: pd.DataFrame
    config: Config

    @property
    def visits(self) -> list[Visit]:
        """The visits, in order."""
        return visits(self.scenario)

    def table(self, name: str) -> pd.DataFrame:
        """A table of the PPDB."""
        with open_ppdb(self.config.ppdb_url) as ppdb:
            return ppdb.table(name)


def make_field(
    root: Path, scenario: Scenario, pool: ProcessPoolExecutor, troubles: tuple[Trouble, ...] = (), **timing: float
) -> Field:
    """Simulate a field into a new repository."""
    open_replay(root, scenario, own=False)
    prepare(root, scenario, pool, lambda what, done, total: None)
    player = Player(scenario, root / "staged", root / "landing", processes=2, troubles=troubles, spread_s=0.0)
    truth = player.render()
    config = repository_config(str(root))
    config = dataclasses.replace(config, timing=dataclasses.replace(config.timing, **timing))
    return Field(root, scenario, player, truth, config)


def play(
    field: Field, client: Client, order: Sequence[Visit], *, together: bool = False
) -> dict[int, tuple[Outcome, ...]]:
    """Land visits and process them on a cluster, one after the other or all together."""
    camera = field.scenario.load_camera()
    ended: dict[int, Any] = {}
    with (
        open_ppdb(field.config.ppdb_url, create=True),
        Ingestor(field.config.butler, field.player.landing),
        DaskRunner(
            client,
            group_of=lambda d: camera.detector(d).raft,
            label_of=lambda d: camera.detector(d).name,
            gather_after_s=field.config.timing.gather_after_s,
        ) as runner,
    ):
        for visit in order:
            handle = runner.start(alert_production.visit, visit, list(field.scenario.detectors), field.config)
            landing = threading.Thread(target=land, args=(field, visit))
            landing.start()
            ended[visit.visit] = handle if together else handle.result(timeout_s=240)
            landing.join()
        return {v: e.result(timeout_s=240) if together else e for v, e in ended.items()}


def land(field: Field, visit: Visit) -> None:
    """Land the raws of a visit now."""
    for detector in field.scenario.detectors:
        field.player.land(visit, detector)


def products(field: Field) -> dict[str, pd.DataFrame]:
    """DiaSources, DiaObjects and DiaForcedSources in the order of their keys, without processing times."""
    keys = {
        "DiaSource": ["diaSourceId"],
        "DiaObject": ["diaObjectId", "nDiaSources"],
        "DiaForcedSource": ["diaObjectId", "visit", "detector"],
    }
    out = {}
    for name, key in keys.items():
        table = field.table(name)
        out[name] = table.drop(columns=PROCESSING_TIMES, errors="ignore").sort_values(key, ignore_index=True)
    return out
