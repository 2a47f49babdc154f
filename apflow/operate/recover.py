"""What an interrupted run stored but did not bring to its end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from apflow.config import Config
from apflow.io.alerts.archive import open_archive
from apflow.io.alerts.publish import publish
from apflow.io.butler import OUTPUTS, Repository, output_path, output_run
from apflow.io.ppdb import Ppdb
from apflow.model.ledger import Outcome, State
from apflow.model.products import OutputFile
from apflow.model.visit import Visit


def recover(ppdb: Ppdb, visits: Sequence[Visit], outcomes: Sequence[Outcome], config: Config) -> list[Outcome]:
    """Publish what waits in the outbox and register files that are not, for detector-visits that are done.

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
        Alerts cannot be read back as they were archived.
    """
    done = {(o.visit, o.detector) for o in outcomes if o.state is State.DONE}
    pending = [row for row in ppdb.pendingAlerts() if (row.visit, row.detector) in done]
    publish(ppdb, open_archive(config.alerts_url, config.packets.schema_version), pending)
    now, ended, late = time.time(), [], []
    for outcome in outcomes:
        if outcome.state is State.DONE and outcome.published_unix is None:
            outcome = dataclasses.replace(outcome, published_unix=now)
            late.append(outcome)
        ended.append(outcome)
    if late:
        ppdb.settle(late)
    for visit in visits:
        _register(visit, [d for v, d in sorted(done) if v == visit.visit], config)
    return ended


def _register(visit: Visit, detectors: Sequence[int], config: Config) -> None:
    run = output_run(visit)
    paths = [(name, output_path(config.butler, name, visit, d, run), d) for name in OUTPUTS for d in detectors]
    files = [(OutputFile(name, path), visit.visit, d) for name, path, d in paths if Path(path).is_file()]
    if files:
        Repository.open(config.butler, writeable=True).register_outputs(run, files)
