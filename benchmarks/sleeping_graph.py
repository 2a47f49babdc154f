"""The graph of `alert_production` with steps that sleep as long as the real ones compute; its gathers store nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apflow.graph import gathers, node
from apflow.model.ledger import Ended

#: Seconds on one core for a CCD of 4k x 4k, measured; those before the image hold up nobody.
BEFORE_S = {"fetch_calibs": 0.07, "fetch_template": 0.18}
AFTER_S = {
    "remove_signature": 0.11,
    "calibrate": 0.65,
    "match_template": 0.52,
    "subtract": 0.76,
    "detect_and_measure": 0.11,
    "read_history": 0.03,
    "associate": 0.02,
}
TOTAL_S = sum(BEFORE_S.values()) + sum(AFTER_S.values())


@dataclass(frozen=True)
class Night:
    """When images arrive (Unix seconds, by detector), and by what the steps' seconds are multiplied."""

    at_unix: tuple[float, ...]
    scale: float

    def sleep(self, step: str) -> None:
        """Sleep instead of a step."""
        time.sleep(self.scale * (BEFORE_S | AFTER_S)[step])


@dataclass(frozen=True)
class Stored:
    """A detector in a batch that its gather took."""

    detector: int
    arrived_unix: float
    stored_unix: float


@node(gather=True)
def open_visit(visit: int, detectors: Sequence[int], config: Night) -> int:
    return visit


@node
def fetch_calibs(plan: int, detector: int, config: Night) -> None:
    config.sleep("fetch_calibs")


@node
def fetch_template(plan: int, detector: int, config: Night) -> None:
    config.sleep("fetch_template")


@node(waits=True)
def await_science_images(visit: int, detector: int, config: Night) -> float:
    time.sleep(max(0.0, config.at_unix[detector] - time.time()))
    return config.at_unix[detector]


@node
def remove_signature(snaps: float, calibs: None, detector: int, config: Night) -> float:
    config.sleep("remove_signature")
    return snaps


@node
def calibrate(post_isr: float, calibs: None, config: Night) -> float:
    config.sleep("calibrate")
    return post_isr


@node
def match_template(science: float, template: None, config: Night) -> None:
    config.sleep("match_template")


@node
def subtract(science: float, matched: None, config: Night) -> None:
    config.sleep("subtract")


@node
def detect_and_measure(difference: None, science: float, config: Night) -> None:
    config.sleep("detect_and_measure")


@node(waits=True)
def read_history(plan: int, detector: int, sources: None, config: Night) -> None:
    config.sleep("read_history")


@node
def associate(sources: None, history: None, config: Night) -> None:
    config.sleep("associate")


@node
def force_photometry(associated: None, history: None, difference: None, science: float, config: Night) -> None: ...


@node
def package_alerts(plan: int, detector: int, snaps: float, associated: None, forced: None, config: Night) -> float:
    return snaps


@node(gather=True)
def archive_packets(batch: tuple[Ended, ...], config: Night) -> tuple[Ended, ...]:
    return batch


@node(gather=True)
def write_ppdb(archived: tuple[Ended, ...], config: Night) -> list[Stored]:
    now = time.time()
    return [Stored(ended.detector, ended.value, now) for ended in archived if ended.failure is None]


@node(gather=True)
def publish_alerts(stored: list[Stored], config: Night) -> list[Stored]:
    return stored


@node(gather=True)
def register_outputs(batch: tuple[Ended, ...], plan: int, config: Night) -> None: ...


@node(gather=True)
def visit_report(visit: int, detectors: Sequence[int], outcomes: list[list[Stored]], config: Night) -> list[Stored]:
    return [stored for batch in outcomes for stored in batch]


def detector(visit: int, detector: int, plan: Any, config: Night) -> Any:
    calibs = fetch_calibs(plan, detector, config)
    template = fetch_template(plan, detector, config)
    snaps = await_science_images(visit, detector, config)
    post_isr = remove_signature(snaps, calibs, detector, config)
    science = calibrate(post_isr, calibs, config)
    matched = match_template(science, template, config)
    difference = subtract(science, matched, config)
    sources = detect_and_measure(difference, science, config)
    history = read_history(plan, detector, sources, config)
    associated = associate(sources, history, config)
    forced = force_photometry(associated, history, difference, science, config)
    return package_alerts(plan, detector, snaps, associated, forced, config)


def visit(visit: int, detectors: Sequence[int], config: Night) -> Any:
    plan = open_visit(visit, detectors, config)
    results = [detector(visit, d, plan, config) for d in detectors]
    outcomes = []
    for batch in gathers(results):
        archived = archive_packets(batch, config)
        stored = write_ppdb(archived, config)
        outcomes.append(publish_alerts(stored, config))
        register_outputs(batch, plan, config)
    return visit_report(visit, detectors, outcomes, config)
