"""The figures of a night's performance: what was expected, what became of it, how long it took (DMS-REQ-0099)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from apflow.model.ledger import State
from apflow.operate.night.ranges import Ranges
from apflow.operate.night.report_tables import NightTables, unknown_states

#: Not done, and somebody can do something about it; without a template or an order there is nothing to be done.
MISSED = (State.NO_CALIB, State.IMAGE_TIMEOUT, State.BAD_DATA, State.FAILED)
#: Of the alerts of a visit that is in time (OTR1 of LSE-61).
ON_TIME = 0.98
_SLOWEST = 6
_PERCENTILES = {"p50_s": 50, "p95_s": 95, "p98_s": 98}


def performance(
    tables: NightTables, limit_s: float, ranges: Ranges, outbox: Mapping[str, int], stored: Mapping[str, int] | None
) -> dict[str, Any]:
    """The performance of a night.

    Parameters
    ----------
    tables : `NightTables`
    limit_s : `float`
        From the end of readout to the alerts (OTT1 of LSE-61).
    ranges : `Ranges`
    outbox : mapping
        Alerts of the night in the PPDB's outbox: stored, published, unsent,
        withdrawn, refused; empty where it was not asked.
    stored : mapping or `None`
        Detector-visits of the night by state in the PPDB's ledger; None where it was not asked.

    Returns
    -------
    figures : `dict`
        Of what JSON has. `adds_up` is False where states and expectation differ, and `differences` says how.
    """
    detectors = tables.detectors
    detectors = detectors.assign(latency_s=detectors["published_unix"] - detectors["arrived_unix"])
    counts = Counter(detectors["state"])
    states = {str(s): counts.get(str(s), 0) for s in State}
    expected = int(tables.visits["n_detectors"].fillna(0).sum()) if len(tables.visits) else 0
    differences = _differences(tables, stored, counts)
    alerts = _alerts(detectors, limit_s, outbox)
    of_visits = _visits(detectors, limit_s)
    return {
        "expected": {
            "visits": len(tables.visits),
            "detectors_a_visit": sorted({int(n) for n in tables.visits["n_detectors"].dropna()}),
            "detector_visits": expected,
        },
        "states": states,
        "sum_of_states": sum(states.values()),
        "adds_up": not differences,
        "differences": differences,
        "missed": _missed(detectors),
        "recovered": _recovered(tables),
        "left_out": _left_out(tables),
        "latency_s": _percentiles(detectors["latency_s"].to_numpy()),
        "store_latency_s": _percentiles((detectors["stored_unix"] - detectors["arrived_unix"]).to_numpy()),
        "stages": _stages(tables.steps),
        "alerts": alerts,
        "verdict": _verdict(tables, of_visits, alerts, states, limit_s, ranges),
        "slowest_visits": _slowest(of_visits),
    }


def _differences(tables: NightTables, stored: Mapping[str, int] | None, counts: Mapping[str, int]) -> list[str]:
    """Where the states of detector-visits do not add up to what was expected."""
    ended = tables.detectors.groupby("visit").size() if len(tables.detectors) else pd.Series(dtype=int)
    wanted = tables.visits["n_detectors"].fillna(0).astype(int)
    both = pd.DataFrame({"wanted": wanted, "ended": ended}).fillna(0).astype(int)
    found = [
        f"visit {visit}: {int(row.wanted)} detectors expected, {int(row.ended)} came to an end"
        for visit, row in both[both["wanted"] != both["ended"]].iterrows()
    ]
    found += [f"state {state!r} is no terminal state" for state in unknown_states(tables.detectors)]
    if stored is not None:
        found += [
            f"{state}: {counts.get(state, 0)} in the records, {stored.get(state, 0)} in the PPDB's ledger"
            for state in State
            if stored.get(state, 0) != counts.get(state, 0)
        ]
    return found


def _missed(detectors: pd.DataFrame) -> list[dict[str, Any]]:
    lost = detectors[detectors["state"] != State.DONE]
    rows = []
    for (state, step, cause), group in lost.groupby(["state", "step", "cause"], sort=False):
        rows.append(
            {
                "state": str(state),
                "step": str(step),
                "cause": str(cause),
                "n": len(group),
                "visits": int(group["visit"].nunique()),
                "detectors": sorted({int(d) for d in group["detector"]}),
            }
        )
    return sorted(rows, key=lambda row: -row["n"])


def _recovered(tables: NightTables) -> list[dict[str, Any]]:
    """Failures that cost no detector-visit, and how."""
    detectors, steps = tables.detectors, tables.steps
    done = detectors.loc[detectors["state"] == State.DONE, ["visit", "detector"]]
    rows: list[dict[str, Any]] = []
    again = steps[steps["attempt"] > 1].merge(done, on=["visit", "detector"])
    for step, group in again.groupby("step", observed=True):
        n = len(group[["visit", "detector"]].drop_duplicates())
        rows.append({"how": "step run again", "what": str(step), "n": n})
    reran = detectors[(detectors["first_state"] != State.DONE) & (detectors["state"] == State.DONE)]
    for (state, cause), group in reran.groupby(["first_state", "first_cause"]):
        rows.append({"how": "processed again later", "what": f"{state}: {cause}", "n": len(group)})
    happy = set(map(tuple, done.to_numpy().tolist()))
    reruns = {(e.visit, e.detector) for e in tables.events if e.kind == "rerun"}
    if reruns & happy:
        rows.append({"how": "begun on an idle worker as well", "what": "stragglers", "n": len(reruns & happy)})
    for kind, how in (("worker", "worker"), ("cluster", "scheduler or cluster"), ("night", "driver")):
        outcomes = Counter(e.outcome for e in tables.events if e.kind == kind)
        for outcome in ("lost", "restarted", "recovered", "resumed"):
            if outcomes[outcome]:
                rows.append({"how": f"{how} {outcome}", "what": "", "n": outcomes[outcome]})
    return rows


def _left_out(tables: NightTables) -> list[dict[str, Any]]:
    """Optional work that gave way, and detectors that missed their batch."""
    counts = Counter((e.kind, e.step, e.cause) for e in tables.events if e.kind in ("shed", "late"))
    return [{"kind": k, "step": s, "cause": c, "n": n} for (k, s, c), n in counts.most_common()]


def _percentiles(values: Any) -> dict[str, float | None]:
    known = values[np.isfinite(values)]
    if not known.size:
        return {**dict.fromkeys(_PERCENTILES), "max_s": None, "n": 0}
    found = np.percentile(known, list(_PERCENTILES.values())).tolist()
    return {**dict(zip(_PERCENTILES, found, strict=True)), "max_s": float(known.max()), "n": int(known.size)}


def _stages(steps: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Wall seconds of one run of each step by percentile, and its CPU seconds, in the order of the night's first."""
    found = {}
    for step, group in steps.groupby("step", observed=True):
        wall = (group["stop_unix"] - group["start_unix"]).to_numpy()
        found[str(step)] = {**_percentiles(wall), "core_s": float(np.nansum(group["core_s"]))}
    return found


def _alerts(detectors: pd.DataFrame, limit_s: float, outbox: Mapping[str, int]) -> dict[str, int]:
    """Counts of alerts; what the outbox knows stands before what the records say."""
    n, latency = detectors["n_alerts"], detectors["latency_s"]
    published = n[detectors["published_unix"].notna()]
    told = {"stored": n.sum(), "published": published.sum(), "unsent": n.sum() - published.sum()}
    told |= {"on_time": n[latency <= limit_s].sum(), "late": n[latency > limit_s].sum()}
    return {name: int(value) for name, value in told.items()} | dict(outbox)


def _visits(detectors: pd.DataFrame, limit_s: float) -> pd.DataFrame:
    """By visit: alerts, those in time, those published, whether any could be, and latencies."""
    late = detectors["latency_s"]
    alerts = detectors["n_alerts"]
    rows = detectors.assign(
        on_time=alerts.where(late <= limit_s, 0.0),
        sent=alerts.where(late.notna(), 0.0),
        missed=detectors["state"].isin(MISSED),
        done=detectors["state"] == State.DONE,
    )
    by = rows.groupby("visit")
    found = by[["n_alerts", "on_time", "sent", "missed", "done"]].sum()
    return found.assign(
        p50_s=by["latency_s"].median(), p98_s=by["latency_s"].quantile(0.98), max_s=by["latency_s"].max()
    )


def _verdict(
    tables: NightTables,
    visits: pd.DataFrame,
    alerts: Mapping[str, int],
    states: Mapping[str, int],
    limit_s: float,
    ranges: Ranges,
) -> list[dict[str, Any]]:
    """The limits of LSE-61, and how the night stands to them."""
    n = max(len(visits), 1)
    late = (visits["n_alerts"] > 0) & (visits["on_time"] < ON_TIME * visits["n_alerts"])
    lost = (visits["sent"] == 0) & ((visits["missed"] > 0) | (visits["n_alerts"] > 0))
    never = len(set(tables.visits.index) - set(visits.index))
    tried = sum(states[s] for s in (State.DONE, *MISSED))
    values = {
        "on_time_fraction": alerts["on_time"] / alerts["stored"] if alerts["stored"] else None,
        "late_visit_fraction": float((late & ~lost).sum()) / n,
        "lost_visit_fraction": float(lost.sum() + never) / (n + never),
        "missed_detector_fraction": sum(states[s] for s in MISSED) / tried if tried else None,
        "n_unsent_alerts": float(alerts["unsent"]),
    }
    text = {
        "on_time_fraction": f"alerts within {limit_s:g} s of the end of readout, at least 98 %",
        "late_visit_fraction": "visits with fewer alerts in time, at most 1 %",
        "lost_visit_fraction": "visits without alerts that should have some, at most 0.1 %",
        "missed_detector_fraction": "detector-visits that could have been done and are not",
        "n_unsent_alerts": "alerts stored and not yet published",
    }
    return [
        {"metric": name, "value": value, "text": text[name], "verdict": ranges.verdict(name, value)}
        for name, value in values.items()
    ]


def _slowest(visits: pd.DataFrame) -> list[dict[str, Any]]:
    order = visits.dropna(subset="max_s").sort_values("max_s", ascending=False).head(_SLOWEST)
    names = ("p50_s", "p98_s", "max_s")
    return [{"visit": int(str(v)), **{name: float(row[name]) for name in names}} for v, row in order.iterrows()]
