"""The gathers: packets to durable storage, one bulk transaction, publication, registration.

Every one of them may run twice (a worker that dies takes finished results with
it), so each is idempotent by (instrument, visit, detector): the PPDB's ledger
row is written in the same transaction as the rows it stands for, alerts leave
through an outbox committed with the rows they announce, and a dataset that is
registered already is left as it is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from astropy.time import Time

from apflow.config import Config
from apflow.errors import ServiceError
from apflow.graph import node
from apflow.io.alerts.archive import Archive, open_archive
from apflow.io.alerts.publish import publish
from apflow.io.butler import Repository
from apflow.io.ppdb import open_ppdb
from apflow.model.ledger import Ended, Outcome, State
from apflow.model.products import Archived, DetectorResult, History, OutboxRow, Plan, Stored
from apflow.model.visit import Visit
from apflow.steps.associate import associate, load_history
from apflow.steps.package import packets_of
from apflow.steps.visits import detector_region

#: Times that a detector is associated again when overlapping visits change its objects.
_MAX_RACES = 5


@node(gather=True)
def archive_packets(visit: Visit, batch: tuple[Ended, ...], config: Config) -> Archived:
    """Append the packets and sync: they outlive the worker before anything announces them."""
    return Archived(visit, batch, tuple(_append([e.value for e in batch if e.failure is None], config)))


def _append(results: Sequence[DetectorResult], config: Config) -> list[OutboxRow]:
    packets = [(r.packets, r.visit.visit, r.detector) for r in results]
    return _archive(config).append_batch(packets, results[0].day_obs) if results else []


def _archive(config: Config) -> Archive:
    return open_archive(config.alerts_url, config.packets.schema_version)


@node(gather=True)
def write_ppdb(archived: Archived, config: Config) -> Stored:
    """Store the batch in one transaction, outbox and ledger inside it.

    A detector whose DiaObjects another visit changed after they were read is
    left out by the guard, associated again with what is there now, and stored
    by the next transaction.
    """
    ppdb = open_ppdb(config.ppdb_url)
    results = {e.detector: e.value for e in archived.batch if e.failure is None}
    rows = list(archived.rows)
    waiting = dict(results)
    for _ in range(_MAX_RACES):
        report = ppdb.storeBatch(list(waiting.values()), rows, Time.now().tai.mjd)
        lost = {detector for _, detector in report.lost_race}
        if not lost:
            break
        rows = [row for row in rows if row.detector not in lost]
        waiting = {d: _again(waiting[d], config) for d in lost}
        results |= waiting
        rows += _append(list(waiting.values()), config)
    else:
        raise ServiceError(f"detectors {sorted(lost)} lost the race for their DiaObjects {_MAX_RACES} times")
    stored_unix = time.time()
    outcomes = tuple(_outcome(archived.visit, e, results, stored_unix) for e in archived.batch)
    ppdb.settle(outcomes)  # later visits on this sky may go on
    return Stored(outcomes, tuple(rows))


def _again(result: DetectorResult, config: Config) -> DetectorResult:
    """Associate a detector with the DiaObjects that are there now."""
    region = detector_region(result.visit, result.detector, config)
    bare = result.sources.assign(diaObjectId=None)
    history: History = load_history(region, bare, config)
    associated = associate(bare, history, region, config)
    return dataclasses.replace(
        result,
        sources=associated.sources,
        objects=associated.objects,
        guard=associated.guard,
        forced=result.forced[result.forced["diaObjectId"].isin(history.objects["diaObjectId"])],
        packets=packets_of(associated, history, result.forced, result.cutouts, config),
    )


def _outcome(visit: Visit, ended: Ended, results: dict[int, DetectorResult], stored_unix: float) -> Outcome:
    common = Outcome(visit.instrument, visit.visit, ended.detector, State.DONE, steps=ended.steps)
    if ended.failure is not None:
        failure = ended.failure
        return dataclasses.replace(common, state=failure.state, cause=failure.cause, step=failure.step)
    result = results[ended.detector]
    return dataclasses.replace(
        common,
        n_sources=len(result.sources),
        n_alerts=len(result.packets),
        arrived_unix=result.arrived_unix,
        stored_unix=stored_unix,
        metrics=result.metrics,
    )


@node(gather=True)
def publish_alerts(stored: Stored, config: Config) -> tuple[Outcome, ...]:
    """Send what the outbox holds of the batch, exactly the bytes that were made durable."""
    publish(open_ppdb(config.ppdb_url), _archive(config), stored.rows)
    now = time.time()
    return tuple(dataclasses.replace(o, published_unix=now) if o.state is State.DONE else o for o in stored.outcomes)


@node(gather=True)
def register_outputs(batch: Sequence[Ended], plan: Plan, config: Config) -> int:
    """Register the files of a batch by one Butler ingest; returns how many datasets."""
    outputs = [(o, plan.visit.visit, e.detector) for e in batch if e.failure is None for o in e.value.outputs]
    if outputs:
        Repository.open(config.butler, writeable=True).register_outputs(plan.run, outputs)
    return len(outputs)
