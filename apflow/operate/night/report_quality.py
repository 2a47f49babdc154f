"""The figures of a night's data quality: its metrics against their ranges (DMS-REQ-0097)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.ap_metrics import INJECTION_SNR, VISIT, known_values, over_visit
from apflow.model.ledger import State
from apflow.model.verdict import Range
from apflow.operate.night.ranges import BANDS, Ranges, metric_choices
from apflow.operate.night.report_tables import NightTables

#: What is shown against time.
AGAINST_TIME = ("psf_fwhm_arcsec", "zero_point_mag", "sky_mag_arcsec2", "depth_mag")
_OF_VISITS = (*AGAINST_TIME, "effective_time_ratio", "wcs_scatter_arcsec", "alert_latency_s", "n_dia_sources")
_WORST_DETECTORS = 8
_WORST_PLACES = 5
#: Left out of the table of visits' metrics: they are summed up from those of detectors elsewhere.
_COUNTED = tuple(f"n_{state}" for state in State)


def quality(tables: NightTables, ranges: Ranges) -> dict[str, Any]:
    """The data quality of a night.

    Returns
    -------
    figures : `dict`
        Of what JSON has: `by_band`, `visits` (one row each, with verdicts),
        `metrics` (every metric that is stored, with range and verdicts),
        `out_of_range` (the worst places of those that have any),
        `completeness`, `worst_detectors`.
    """
    detectors = with_delivery(tables.detectors)
    metrics = [*_metrics(detectors, ranges), *_visit_metrics(detectors, ranges)]
    return {
        "by_band": _by_band(detectors),
        "visits": _visits(detectors, ranges),
        "metrics": metrics,
        "out_of_range": _out_of_range(detectors, ranges),
        "completeness": _completeness(detectors),
        "worst_detectors": _worst_detectors(detectors, ranges),
    }


def with_delivery(detectors: pd.DataFrame) -> pd.DataFrame:
    """The table with the metrics of delivery that its own columns give."""
    done = detectors["state"] == State.DONE
    made = {f"is_{s}": (detectors["state"] == s).astype(float) for s in State}
    made["alert_latency_s"] = detectors["published_unix"] - detectors["arrived_unix"]
    made["store_latency_s"] = detectors["stored_unix"] - detectors["arrived_unix"]
    made["n_dia_sources"] = detectors["n_sources"].where(done)
    return detectors.assign(n_alerts=detectors["n_alerts"].where(done), **made)


def _metrics(detectors: pd.DataFrame, ranges: Ranges) -> Iterator[dict[str, Any]]:
    for choice in metric_choices():
        head = {"metric": choice.name, "action": choice.action, "unit": choice.unit, "text": choice.description}
        values = detectors[choice.name].to_numpy(float) if choice.name in detectors else np.empty(0)
        for band, limits, mine in _of_bands(choice.name, values, detectors["band"], ranges):
            yield {**head, "band": band, **_judged(mine, limits)}


def _visit_metrics(detectors: pd.DataFrame, ranges: Ranges) -> Iterator[dict[str, Any]]:
    """Metrics of whole visits (`apflow.model.ap_metrics.over_visit`) that are no statistics of detectors'."""
    wanted = [m for m in VISIT["visit"] if not m.name.startswith(("min_", "median_", "max_")) or m.name in _COUNTED]
    names = [c for c in detectors if c in _USED]
    rows = []
    for _, group in detectors.groupby("visit"):
        known = group[names].to_dict("records")
        rows.append(known_values(over_visit([{str(k): v for k, v in r.items() if np.isfinite(v)} for r in known])))
    for metric in wanted:
        values = np.array([row.get(metric.name, np.nan) for row in rows])
        head = {"metric": metric.name, "action": "visit", "unit": metric.unit, "text": metric.description}
        yield {**head, "band": "", **_judged(values, ranges.limits(metric.name))}


_USED = frozenset(
    [
        *("n_sources", "n_alerts", "alert_latency_s", "n_injected", "n_injected_found"),
        *(f"is_{s}" for s in State),
        *(f"n_injected{f}_snr{low}" for f in ("", "_found") for low in INJECTION_SNR),
    ]
)


def _of_bands(
    name: str, values: NDArray[np.float64], bands: pd.Series, ranges: Ranges
) -> Iterator[tuple[str, Range | None, NDArray[np.float64]]]:
    """The whole of a metric with its range, or band by band where its range is so."""
    general = ranges.limits(name)
    own = {b: limits for b in BANDS if (limits := ranges.limits(name, b)) != general}
    if not own or not values.size:
        yield "", general, values
        return
    for band in sorted(set(bands), key=lambda b: BANDS.index(b) if b in BANDS else 9):
        yield band, own.get(band, general), values[(bands == band).to_numpy()]


def _judged(values: NDArray[np.float64], limits: Range | None) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    found: dict[str, Any] = {"n": int(known.size), "min": None, "median": None, "max": None}
    if known.size:
        found |= {"min": float(known.min()), "median": float(np.median(known)), "max": float(known.max())}
    found |= {"warning": None, "alert": None, "n_warning": 0, "n_alert": 0, "verdict": ""}
    if limits is not None:
        level = levels(known, limits)
        found |= {"warning": _pair(limits.warning), "alert": _pair(limits.alert)}
        found |= {"n_warning": int((level == 1).sum()), "n_alert": int((level == 2).sum())}
        if known.size:
            found["verdict"] = ("acceptable", "warning", "alert")[int(level.max())]
    return found


def levels(values: NDArray[np.float64], limits: Range) -> NDArray[np.int8]:
    """0, 1 or 2 for Acceptable, Warning and Alert of each value; 0 where there is none."""
    outside = [(values < low) | (values > high) for low, high in (limits.warning, limits.alert)]
    return np.where(outside[1], 2, np.where(outside[0], 1, 0)).astype(np.int8)


def _pair(pair: tuple[float, float]) -> list[float | None] | None:
    """JSON has no infinity."""
    found = [v if np.isfinite(v) else None for v in pair]
    return None if found == [None, None] else found


def _by_band(detectors: pd.DataFrame) -> dict[str, dict[str, Any]]:
    names = [name for name in AGAINST_TIME if name in detectors]
    found = {}
    groups = dict(iter(detectors.groupby("band")))
    for band in sorted(groups, key=lambda b: BANDS.index(b) if b in BANDS else len(BANDS)):
        group = groups[band]
        medians = {name: _number(group[name].median()) for name in names}
        found[str(band)] = {"n_visits": int(group["visit"].nunique()), **medians}
    return found


def _visits(detectors: pd.DataFrame, ranges: Ranges) -> list[dict[str, Any]]:
    """One row a visit: counts, medians with their verdicts, and when it was taken."""
    names = [name for name in _OF_VISITS if name in detectors]
    by = detectors.groupby("visit")
    medians, low, high = by[names].median(), by[names].min(), by[names].max()
    done, n = by["is_done"].sum(), by.size()
    alerts = by["n_alerts"].sum()
    times = by["mjd_mid_tai"].median() if "mjd_mid_tai" in detectors else None
    bands = by["band"].first()
    rows = []
    for visit in medians.index:
        values = {name: _number(medians.loc[visit, name]) for name in names}
        rows.append(
            {
                "visit": int(visit),
                "band": str(bands[visit]),
                "mjd_mid_tai": None if times is None else _number(times[visit]),
                "n_detectors": int(n[visit]),
                "n_done": int(done[visit]),
                "n_alerts": int(alerts[visit]),
                "median": values,
                "range": {name: [_number(low.loc[visit, name]), _number(high.loc[visit, name])] for name in names},
                "verdict": {name: ranges.verdict(f"median_{name}", v, str(bands[visit])) for name, v in values.items()},
            }
        )
    return rows


def _out_of_range(detectors: pd.DataFrame, ranges: Ranges) -> list[dict[str, Any]]:
    """Metrics that are somewhere not Acceptable, those with most Alerts first, and their worst places."""
    rows = []
    for name, band, limits, index in _limited(detectors, ranges):
        values = detectors.loc[index, name].to_numpy(float)
        level = levels(values, limits)
        if not level.any():
            continue
        excess = np.fmax(limits.warning[0] - values, values - limits.warning[1])
        excess = np.fmax(excess, np.fmax(limits.alert[0] - values, values - limits.alert[1]))
        worst = np.lexsort((-excess, -level))[: min(_WORST_PLACES, int((level > 0).sum()))]
        places = detectors.loc[index[worst], ["visit", "detector"]].to_numpy().tolist()
        rows.append(
            {
                "metric": name,
                "band": band,
                **_judged(values, limits),
                "worst": [
                    {"visit": v, "detector": d, "value": _number(x)}
                    for (v, d), x in zip(places, values[worst].tolist(), strict=True)
                ],
            }
        )
    return sorted(rows, key=lambda row: (-row["n_alert"], -row["n_warning"]))


def _limited(detectors: pd.DataFrame, ranges: Ranges) -> Iterator[tuple[str, str, Range, Any]]:
    """Metrics with a range, band by band where it is so, and the rows that they are of."""
    rows = np.arange(len(detectors), dtype=float)
    for choice in metric_choices():
        if choice.name in detectors:
            for band, limits, mine in _of_bands(choice.name, rows, detectors["band"], ranges):
                if limits is not None and mine.size:
                    yield choice.name, band, limits, detectors.index[mine.astype(int)]


def _completeness(detectors: pd.DataFrame) -> dict[str, Any]:
    """Fakes found of those injected, of all and by predicted S/N; empty where none were injected."""
    found: dict[str, Any] = {}
    for name, end in (("all", ""), *((f"snr{low}", f"_snr{low}") for low in INJECTION_SNR)):
        if f"n_injected{end}" in detectors and (n := detectors[f"n_injected{end}"].sum()) > 0:
            k = float(detectors[f"n_injected_found{end}"].sum())
            found[name] = {"n": int(n), "found": int(k), "completeness": k / float(n)}
    return found


def _worst_detectors(detectors: pd.DataFrame, ranges: Ranges) -> list[dict[str, Any]]:
    """Detectors with most missed visits, then most Alerts, then most Warnings."""
    level = np.zeros((len(detectors), 2), int)
    causes: dict[int, dict[str, int]] = {}
    for name, _, limits, index in _limited(detectors, ranges):
        if name.startswith(("is_", "alert_latency", "store_latency")):
            continue  # how it ended is counted as missed, and late is the fleet's fault
        found = levels(detectors.loc[index, name].to_numpy(float), limits)
        level[index, 0] += found == 2
        level[index, 1] += found == 1
        for detector, n in detectors.loc[index[found > 0], "detector"].value_counts().items():
            causes.setdefault(int(str(detector)), {})[name] = int(n)
    missed = ~detectors["state"].isin((State.DONE, State.CANCELLED, State.NO_TEMPLATE))
    rows = detectors.assign(missed=missed, alerts=level[:, 0], warnings=level[:, 1])
    total = rows.groupby("detector")[["missed", "alerts", "warnings"]].sum()
    total["visits"] = rows.groupby("detector").size()
    order = total.sort_values(["missed", "alerts", "warnings"], ascending=False).head(_WORST_DETECTORS)
    order = order[order[["missed", "alerts", "warnings"]].sum(axis=1) > 0]
    return [
        {
            "detector": int(str(d)),
            **{name: int(row[name]) for name in ("visits", "missed", "alerts", "warnings")},
            "metrics": dict(sorted(causes.get(int(str(d)), {}).items(), key=lambda item: -item[1])[:4]),
        }
        for d, row in order.iterrows()
    ]


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
