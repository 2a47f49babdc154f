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
from apflow.errors import ApflowError, DataError, ServiceError
from apflow.graph import node
from apflow.io.alerts.archive import Archive, open_archive
from apflow.io.alerts.publish import publish, with_publication
from apflow.io.butler import Repository
from apflow.io.kafka.sinks import open_sink
from apflow.io.ppdb import open_ppdb
from apflow.model.ap_metrics import STAGE_METRICS
from apflow.model.ledger import Ended, Failure, Outcome, State
from apflow.model.products import Archived, DetectorResult, OutboxRow, Plan, Stored
from apflow.model.visit import Visit
from apflow.steps.associate import associate, load_history
from apflow.steps.package import association_metrics, packets_of, with_forced, write_catalogues
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


@node(gather=True, retries=2)
def write_ppdb(archived: Archived, config: Config) -> Stored:
    """Store the batch in one transaction, outbox and ledger inside it.

    A detector whose DiaObjects another visit changed after they were read is
    left out by the guard, associated again with what is there now, and stored
    by the next transaction. A detector that the database refuses ends as
    bad_data, alone.
    """
    results: dict[int, DetectorResult] = {e.detector: e.value for e in archived.batch if e.failure is None}
    refused: dict[int, Failure] = {}
    rows, waiting = list(archived.rows), dict(results)
    for _ in range(_MAX_RACES):
        lost, refusals = _store(list(waiting.values()), rows, config)
        refused |= refusals
        if not lost:
            break
        waiting = {d: _again(waiting[d], config) for d in lost}
        results |= waiting
        rows = _append(list(waiting.values()), config)
    else:
        raise ServiceError(f"detectors {sorted(lost)} lost the race for their DiaObjects {_MAX_RACES} times")
    stored_unix = time.time()
    batch = [dataclasses.replace(e, failure=refused.get(e.detector, e.failure)) for e in archived.batch]
    outcomes = tuple(_outcome(archived.visit, e, results, stored_unix) for e in batch)
    open_ppdb(config.ppdb_url).settle(outcomes)  # later visits on this sky may go on
    return Stored(archived.visit, outcomes)


def _store(
    results: Sequence[DetectorResult], rows: Sequence[OutboxRow], config: Config
) -> tuple[set[int], dict[int, Failure]]:
    """Store detectors; gives those that lost a race, and those refused with the reason."""
    if not results:
        return set(), {}
    mine = {r.detector for r in results}
    outbox = [row for row in rows if row.detector in mine]
    try:
        report = open_ppdb(config.ppdb_url).storeBatch(
            results, outbox, Time.now().tai.mjd, radius_arcsec=config.associate.radius_arcsec
        )
    except DataError as error:
        if len(results) == 1:
            return set(), {results[0].detector: Failure(State(error.state), "write_ppdb", str(error))}
        # The transaction took none of them: one by one, the others are not held up by the one at fault.
        parts = [_store([result], rows, config) for result in results]
        return set().union(*(lost for lost, _ in parts)), {d: f for _, refused in parts for d, f in refused.items()}
    return {detector for _, detector in report.lost_race}, {}


def _again(result: DetectorResult, config: Config) -> DetectorResult:
    """Associate a detector with the DiaObjects that are there now, and correct the files that tell of them."""
    region = detector_region(result.visit, result.detector, config)
    bare = result.sources.assign(diaObjectId=None)
    history = load_history(region, bare, result.mjd_mid_tai, config)
    history = dataclasses.replace(history, ss_objects=result.ss_objects)
    associated = associate(bare, history, config)
    known = {*history.objects["diaObjectId"], *associated.objects["diaObjectId"]}
    forced = result.forced[result.forced["diaObjectId"].isin(known)]
    associated = with_forced(associated, history, forced)
    packets = packets_of(associated, history, forced, result.cutouts, config)
    corrected = dataclasses.replace(
        result,
        sources=associated.sources,
        objects=associated.objects,
        guard=associated.guard,
        matches=associated.matches,
        ss_sources=associated.ss_sources,
        forced=forced,
        packets=packets,
        metrics={**result.metrics, **association_metrics(associated, history, forced, packets)},
    )
    write_catalogues(corrected)  # before it is stored: once it is, nobody associates it again
    return corrected


def _outcome(visit: Visit, ended: Ended, results: dict[int, DetectorResult], stored_unix: float) -> Outcome:
    common = Outcome(visit.instrument, visit.visit, ended.detector, State.DONE, steps=ended.steps)
    result = results.get(ended.detector)
    if ended.failure is not None:
        failure = ended.failure
        measured = result.metrics if result else {n: ended.measured.get(n, float("nan")) for n in STAGE_METRICS}
        return dataclasses.replace(
            common, state=failure.state, cause=failure.cause, step=failure.step, metrics=measured
        )
    assert result is not None
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
    """Send what the outbox holds of the batch, exactly the bytes that were made durable.

    The rows come from the database, since this may be a second run after one
    that stored, or published, and died. Alerts that cannot be sent now stay in
    the outbox, from where they are delivered later (`apflow.operate.deliver`);
    their detectors are done all the same, with the cause noted.
    """
    ppdb, visit = open_ppdb(config.ppdb_url), stored.visit.visit
    mine = [o.detector for o in stored.outcomes if o.state is State.DONE]
    cause = ""
    try:
        publish(ppdb, _archive(config), open_sink(config.kafka, config.packets.schema_version), visit, mine)
    except ApflowError as error:
        cause = f"alerts wait in the outbox: {error}"
    waiting = {row.detector for row in ppdb.pendingAlerts(visit=visit)}
    now, outcomes = time.time(), []
    for o in stored.outcomes:
        if o.state is State.DONE:
            left = None if o.detector in waiting else now
            o = dataclasses.replace(o, published_unix=left, cause=o.cause or cause)
        outcomes.append(o)
    ppdb.settle(outcomes)
    return tuple(with_publication(ppdb, outcomes))  # the ledger knows when each left, in a second run too


@node(gather=True)
def register_outputs(batch: Sequence[Ended], plan: Plan, config: Config) -> int:
    """Register the files of a batch by one Butler ingest; returns how many datasets."""
    outputs = [(o, plan.visit.visit, e.detector) for e in batch if e.failure is None for o in e.value.outputs]
    if outputs:
        Repository.open(config.butler, writeable=True).register_outputs(plan.run, outputs)
    return len(outputs)
