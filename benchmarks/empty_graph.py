"""A graph of the shape of alert_production with steps that do nothing; images arrive at given times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apflow.graph import gathers, node
from apflow.model.ledger import Ended


@dataclass(frozen=True)
class Arrivals:
    """When the image of each detector arrives (Unix seconds)."""

    at_unix: tuple[float, ...]


@node(gather=True)
def open_visit(visit: int, detectors: Sequence[int], config: Arrivals) -> int:
    return visit


@node
def detector_region(visit: int, detector: int, config: Arrivals) -> None: ...


@node
def fetch_calibs(plan: int, detector: int, config: Arrivals) -> None: ...


@node
def fetch_template(plan: int, detector: int, region: None, config: Arrivals) -> None: ...


@node(waits=True)
def await_science_images(visit: int, detector: int, config: Arrivals) -> float:
    time.sleep(max(0.0, config.at_unix[detector] - time.time()))
    return config.at_unix[detector]


@node
def remove_signature(snaps: float, calibs: None, detector: int, config: Arrivals) -> float:
    return snaps


@node
def calibrate(post_isr: float, calibs: None, config: Arrivals) -> float:
    return post_isr


@node
def match_template(science: float, template: None, config: Arrivals) -> None: ...


@node
def subtract(science: float, matched: None, config: Arrivals) -> None: ...


@node
def detect_and_measure(difference: None, science: float, config: Arrivals) -> None: ...


@node(waits=True)
def read_history(visit: int, detector: int, region: None, sources: None, config: Arrivals) -> None: ...


@node
def associate(sources: None, history: None, config: Arrivals) -> None: ...


@node
def force_photometry(associated: None, history: None, difference: None, science: float, config: Arrivals) -> None: ...


@node
def package(visit: int, detector: int, science: float, associated: None, forced: None, config: Arrivals) -> float:
    return science


@node(gather=True)
def archive_packets(batch: tuple[Ended, ...], config: Arrivals) -> tuple[Ended, ...]:
    return batch


@node(gather=True)
def write_ppdb(archived: tuple[Ended, ...], config: Arrivals) -> list[float]:
    now = time.time()
    return [now - ended.value for ended in archived]


@node(gather=True)
def publish_alerts(stored: list[float], config: Arrivals) -> list[float]:
    return stored


@node(gather=True)
def register_outputs(batch: tuple[Ended, ...], plan: int, config: Arrivals) -> None: ...


@node(gather=True)
def visit_report(visit: int, detectors: Sequence[int], outcomes: list[list[float]], config: Arrivals) -> list[float]:
    return [latency for batch in outcomes for latency in batch]


def detector(visit: int, detector: int, plan: Any, config: Arrivals) -> Any:
    region = detector_region(visit, detector, config)
    calibs = fetch_calibs(plan, detector, config)
    template = fetch_template(plan, detector, region, config)
    snaps = await_science_images(visit, detector, config)
    post_isr = remove_signature(snaps, calibs, detector, config)
    science = calibrate(post_isr, calibs, config)
    matched = match_template(science, template, config)
    difference = subtract(science, matched, config)
    sources = detect_and_measure(difference, science, config)
    history = read_history(visit, detector, region, sources, config)
    associated = associate(sources, history, config)
    forced = force_photometry(associated, history, difference, science, config)
    return package(visit, detector, science, associated, forced, config)


def visit(visit: int, detectors: Sequence[int], config: Arrivals) -> Any:
    """Returns the seconds from arrival to storage of each detector."""
    plan = open_visit(visit, detectors, config)
    results = [detector(visit, d, plan, config) for d in detectors]
    outcomes = []
    for batch in gathers(results):
        archived = archive_packets(batch, config)
        stored = write_ppdb(archived, config)
        outcomes.append(publish_alerts(stored, config))
        register_outputs(batch, plan, config)
    return visit_report(visit, detectors, outcomes, config)


def chain(detector_id: int, config: Arrivals) -> float:
    """One detector without Dask, for comparison: the same functions called one after the other."""
    arrived: float = detector(0, detector_id, 0, config)
    return arrived
