"""What an interrupted run stored but did not bring to its end."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from apflow.config import Config
from apflow.errors import ServiceError
from apflow.io.butler import OUTPUTS, Repository, output_path, output_run
from apflow.io.ppdb import Ppdb
from apflow.model.ledger import Outcome, State
from apflow.model.products import OutputFile
from apflow.model.visit import Visit
from apflow.operate.deliver import deliver, with_publication

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
        _register(visit, [d for v, d in sorted(done) if v == visit.visit], config)
    return ended


def _register(visit: Visit, detectors: Sequence[int], config: Config) -> None:
    run = output_run(visit, config)
    paths = [(name, output_path(config.butler, name, visit, d, run), d) for name in OUTPUTS for d in detectors]
    files = [(OutputFile(name, path), visit.visit, d) for name, path, d in paths if Path(path).is_file()]
    if files:
        Repository.open(config.butler, writeable=True).register_outputs(run, files)
