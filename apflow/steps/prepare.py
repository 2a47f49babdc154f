"""Before the shutter opens: what a visit will need is brought to where it will be needed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from apflow.config import Config
from apflow.graph import node
from apflow.io.input_cache import take_counts
from apflow.io.ppdb import open_ppdb
from apflow.model.ledger import Ended, Failure
from apflow.model.products import Plan, Preparation, Prepared
from apflow.model.visit import Visit
from apflow.steps.fetch import fetch_calibs, fetch_template
from apflow.steps.visits import detector_region, resolve_inputs


@node(gather=True)
def prepare_inputs(visit: Visit, detectors: Sequence[int], config: Config) -> Plan:
    """Resolve the inputs of all detectors; the ledger hears nothing of a visit that may never be."""
    return resolve_inputs(visit, detectors, config)


@node
def prepare_detector(plan: Plan, detector: int, config: Config) -> Prepared:
    """Read calibs, reference stars and template into this worker's memory and fast store, and open the PPDB.

    The steps of the same names will find them there.
    """
    start, start_core = time.perf_counter(), time.thread_time()
    visit = plan.visit
    fetch_calibs(plan, detector, detector_region(visit, detector, config), config)
    fetch_template(plan, detector, config)
    open_ppdb(config.ppdb_url).containsVisitDetector(visit.visit, detector)
    counts = take_counts(visit.visit, detector)
    return Prepared(detector, time.perf_counter() - start, time.thread_time() - start_core, counts)


@node(gather=True)
def gather_prepared(batch: Sequence[Ended]) -> tuple[Ended, ...]:
    """The detectors of a batch, ready or not."""
    return tuple(batch)


@node(gather=True)
def preparation_report(visit: Visit, batches: Sequence[tuple[Ended, ...] | Failure]) -> Preparation:
    """How many detectors are ready, what that cost, and why the others are not."""
    ended = [end for batch in batches if not isinstance(batch, Failure) for end in batch]
    ready: list[Prepared] = [end.value for end in ended if end.failure is None]
    counts: Counter[str] = Counter()
    for prepared in ready:
        counts.update(prepared.counts)
    return Preparation(
        group=visit.group,
        detectors=tuple(sorted(prepared.detector for prepared in ready)),
        causes={end.detector: end.failure.cause for end in ended if end.failure is not None},
        seconds=sum(prepared.seconds for prepared in ready),
        core_s=sum(prepared.core_s for prepared in ready),
        counts=counts,
    )
