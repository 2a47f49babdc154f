"""How a night stands: its processes, its cluster, and what its records add up to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from apflow.cluster.holder import CLUSTER
from apflow.operate.dashboard.feed import Feed
from apflow.operate.night.folder import NIGHT, is_supervised, read_json


def night_status(folder: Path) -> dict[str, Any]:
    """The state of a night, for JSON: what is not known is null.

    Parameters
    ----------
    folder : `pathlib.Path`
        Of the night.
    """
    told, cluster = read_json(folder / NIGHT), read_json(folder / CLUSTER)
    feed = Feed(folder)
    while feed.is_behind:
        before = feed.version
        feed.refresh()
        if feed.version == before:
            break
    ended = sum(v.ended for v in feed.visits.values())
    running = is_supervised(folder)
    return {
        "night": int(folder.name),
        "running": running,
        "pid": told.get("pid") if running else None,
        "started_unix": told.get("started_unix"),
        "ended_unix": told.get("ended_unix"),
        "processes": told.get("children", {}) if running else {},
        "cluster": {name: cluster.get(name) for name in ("kind", "address", "dashboard", "n_workers", "gather_workers")}
        if cluster
        else None,
        "visits": {"ended": ended, "under_way": len(feed.visits) - ended},
        "detector_visits": {
            "expected": sum(v.n_detectors for v in feed.visits.values()),
            **{str(state): n for state, n in feed.states.items() if n},
        },
        "alerts": {"made": feed.n_alerts, "published": feed.n_published, "unsent": feed.n_unsent},
        "latency_s": {f"p{p}": _known(feed.latency.percentile(p)) for p in (50, 98)},
        "verdict": {name: _known(value) for name, value in feed.verdict().items()},
        "events": {f"{kind} {outcome}": n for (kind, outcome), n in feed.events.items()},
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
