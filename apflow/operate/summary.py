"""The numbers of a replay: what ``--json`` and the report say."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import psutil

from apflow import __version__
from apflow.model.ledger import Outcome, State, StepRecord
from apflow.operate.meter import Meter

_PACKAGES = ("dask", "distributed", "numpy", "numba", "astropy", "pandas", "duckdb", "lsst-daf-butler")


def summarise(
    outcomes: Sequence[Outcome],
    expected: int,
    score: Mapping[str, Any],
    *,
    processed: int,
    since_unix: float,
    gathers: Sequence[StepRecord],
    meter: Meter,
    wall_s: float,
    seed: int,
) -> dict[str, Any]:
    """The summary of a run, as ``--json`` writes it.

    Parameters
    ----------
    outcomes : sequence of `Outcome`
        One for each detector-visit.
    expected : `int`
        Visits times detectors; the states must add up to it.
    score : mapping
        From `apflow.simulate.score.score`.
    processed : `int`
        Detector-visits that this run processed; a run that continues another
        found the rest done.
    since_unix : `float`
        When the run began: images that came before waited for it, which is no
        latency.
    gathers : sequence of `StepRecord`
        Steps of visits and batches, which are no detector's own.
    meter : `Meter`
        CPU and memory of the worker processes, simulation excluded.

    Returns
    -------
    summary : `dict`
        Latencies count from the end of readout to the published alert.
    """
    states = Counter(str(o.state) for o in outcomes)
    if sum(states.values()) != expected or len({(o.visit, o.detector) for o in outcomes}) != expected:
        raise AssertionError(f"{dict(states)} do not add up to {expected} distinct detector-visits")
    summary = {
        "detector_visits": {"expected": expected, **{str(s): states.get(str(s), 0) for s in State}},
        "score": dict(score),
        "alerts": sum(o.n_alerts for o in outcomes),
        "latency_s": latencies([o for o in outcomes if (o.arrived_unix or 0.0) >= since_unix]),
        "stages": stages(outcomes, gathers, processed),
        "core_s_per_detector": meter.core_s / max(processed, 1),
        "driver_core_s": meter.driver_core_s,
        "peak_rss_mib": meter.peak_rss_mib,
        "wall_s": wall_s,
        "machine": machine(),
        "versions": {
            "apflow": __version__,
            "python": platform.python_version(),
            **{p: metadata.version(p) for p in _PACKAGES},
        },
        "seed": seed,
    }
    made: dict[str, Any] = finite(summary)
    return made


def finite(value: Any) -> Any:
    """NaN and infinity as None: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def latencies(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """End of readout to published alert, seconds, over the detectors that are done."""
    values = [
        o.published_unix - o.arrived_unix
        for o in outcomes
        if o.published_unix is not None and o.arrived_unix is not None
    ]
    if not values:
        return {"p50": None, "p95": None, "p98": None, "max": None}
    p50, p95, p98 = np.percentile(values, [50, 95, 98])
    return {"p50": float(p50), "p95": float(p95), "p98": float(p98), "max": float(max(values))}


def stages(outcomes: Sequence[Outcome], gathers: Sequence[StepRecord], processed: int) -> dict[str, dict[str, float]]:
    """By step: CPU seconds in all and a detector-visit, wall seconds of one run by percentile."""
    by_step: dict[str, list[tuple[float, float]]] = {}
    for record in [*(r for o in outcomes for r in o.steps), *gathers]:
        by_step.setdefault(record.step, []).append((record.core_s, record.stop_unix - record.start_unix))
    table = {}
    for step, rows in by_step.items():
        core, wall = np.array(rows).T
        p50, p95, p98 = np.percentile(wall, [50, 95, 98])
        table[step] = {
            "core_s": float(core.sum()),
            "core_s_per_detector": float(core.sum()) / max(processed, 1),
            "p50_s": float(p50),
            "p95_s": float(p95),
            "p98_s": float(p98),
            "max_s": float(wall.max()),
        }
    return table


def ledger_frame(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row a detector-visit: state, cause, counts, times, and its metrics as columns."""
    rows = []
    for o in outcomes:
        rows.append(
            {
                "instrument": o.instrument,
                "visit": o.visit,
                "detector": o.detector,
                "state": str(o.state),
                "cause": o.cause,
                "step": o.step,
                "n_sources": o.n_sources,
                "n_alerts": o.n_alerts,
                "arrived_unix": o.arrived_unix,
                "stored_unix": o.stored_unix,
                "published_unix": o.published_unix,
                **{k: v for k, v in o.metrics.items() if k not in ("n_sources",)},
            }
        )
    frame = pd.DataFrame(rows)
    for column in ("arrived_unix", "stored_unix", "published_unix"):
        frame[column] = frame[column].astype(float)
    frame["latency_s"] = frame["published_unix"] - frame["arrived_unix"]
    return frame


def machine() -> dict[str, Any]:
    """The processor, cores and memory that the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            model = next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the platform's own word stands
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
    }
