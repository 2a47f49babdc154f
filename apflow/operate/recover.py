"""What an interrupted run stored but did not bring to its end."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from apflow.config import Config
from apflow.errors import ServiceError
from apflow.io.alerts.publish import with_publication
from apflow.io.butler import OUTPUTS, Repository, output_path, output_run
from apflow.io.metrics import read_bundle
from apflow.io.ppdb import Ppdb
from apflow.model.ap_metrics import known_values
from apflow.model.ledger import Outcome, State
from apflow.model.products import OutputFile
from apflow.model.visit import Visit
from apflow.operate.deliver import deliver
from apflow.steps.metrics import keep_metrics

_log = logging.getLogger(__name__)


def recover(ppdb: Ppdb, visits: Sequence[Visit], outcomes: Sequence[Outcome], config: Config) -> list[Outcome]:
    """Publish what waits in the outbox and register files that are not, for detector-visits that are done.

    What cannot be published now goes on waiting; `apflow.operate.deliver.Delivery` tries again.

    Parameters
    ----------
    visits : sequence of `Visit`
        Those of the outcomes.
    outcomes : sequence of `Outcome`
        As the ledger has them.

    Returns
    -------
    outcomes : `list` [`Outcome`]
        The same, with the time of publication where there was none.

    Raises
    ------
    AfterWrite
        Alerts cannot be read back as they were archived, or are refused for good.
    """
    try:
        deliver(ppdb, config)
    except ServiceError as error:
        _log.warning("alerts wait in the outbox: %s", error)
    done = {(o.visit, o.detector) for o in outcomes if o.state is State.DONE}
    waiting = {(row.visit, row.detector) for row in ppdb.pendingAlerts()}
    now, ended, late = time.time(), [], []
    for outcome in with_publication(ppdb, outcomes):
        key = outcome.visit, outcome.detector
        if outcome.published_unix is None and key in done - waiting:
            outcome = dataclasses.replace(outcome, published_unix=now)
            late.append(outcome)
        ended.append(outcome)
    if late:
        ppdb.settle(late)
    for visit in visits:
        mine = [o for o in ended if o.visit == visit.visit and o.state is State.DONE]
        _register(visit, [o.detector for o in mine], config)
        _measure(visit, mine, config)
    return ended


def _register(visit: Visit, detectors: Sequence[int], config: Config) -> None:
    run = output_run(visit, config)
    paths = [(name, output_path(config.butler, name, visit, d, run), d) for name in OUTPUTS for d in detectors]
    files = [(OutputFile(name, path), visit.visit, d) for name, path, d in paths if Path(path).is_file()]
    if files:
        Repository.open(config.butler, writeable=True).register_outputs(run, files)


def _measure(visit: Visit, done: Sequence[Outcome], config: Config) -> None:
    """Keep and send the metrics of detectors that an interrupted run published and no more."""
    run = output_run(visit, config)

    def path(kind: str, detector: int) -> Path:
        return Path(output_path(config.butler, kind, visit, detector, run))

    left = [
        dataclasses.replace(o, metrics=known_values(read_bundle(path("ap_metrics", o.detector))))
        for o in done
        if path("ap_metrics", o.detector).is_file() and not path("ap_delivery_metrics", o.detector).is_file()
    ]
    if left:
        keep_metrics(visit, left, config)
