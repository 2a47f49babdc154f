"""Metrics of the night for Prometheus, after its conventions: base units, ``_total`` for counters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector as Base

from apflow.model.ledger import State
from apflow.operate.dashboard.feed import EDGES, Durations, Feed

#: Every tenth edge of the feed's histograms: 19 buckets from 1 ms to 1000 s.
_EVERY = 10


class Collector(Base):
    """Gives what a feed knows, and the workers of a scheduler where there is one."""

    def __init__(self, feed: Feed, scheduler: Any = None) -> None:
        self._feed, self._scheduler = feed, scheduler

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        feed = self._feed
        ended = sum(v.ended for v in feed.visits.values())
        visits = GaugeMetricFamily("apflow_visits", "Visits of the night by state.", labels=["state"])
        visits.add_metric(["ended"], ended)
        visits.add_metric(["running"], len(feed.visits) - ended)
        yield visits
        # A gauge: a detector-visit that is processed again moves from one state to another.
        states = GaugeMetricFamily(
            "apflow_detector_visits", "Detector-visits of the night by terminal state.", labels=["state"]
        )
        for state in State:
            states.add_metric([str(state)], feed.states[state])
        yield states
        expected = sum(v.n_detectors for v in feed.visits.values())
        yield GaugeMetricFamily("apflow_detector_visits_expected", "Detector-visits announced.", value=expected)
        yield CounterMetricFamily("apflow_alerts_published", "Alerts published.", value=feed.n_published)
        yield CounterMetricFamily("apflow_alerts_on_time", "Alerts published within 60 s.", value=feed.n_on_time)
        yield GaugeMetricFamily("apflow_unsent_alerts", "Alerts stored and not yet published.", value=feed.n_unsent)
        latency = HistogramMetricFamily(
            "apflow_alert_latency_seconds", "End of readout to the published alerts of a detector-visit.", labels=[]
        )
        latency.add_metric([], _buckets(feed.latency), feed.latency.total_s)
        yield latency
        stages = HistogramMetricFamily("apflow_step_duration_seconds", "Wall time of a step.", labels=["step"])
        for step, durations in feed.stages.items():
            stages.add_metric([step], _buckets(durations), durations.total_s)
        yield stages
        if self._scheduler is not None:
            workers = GaugeMetricFamily("apflow_workers", "Workers by what they are for.", labels=["role"])
            gather = sum("gather" in w.resources for w in self._scheduler.workers.values())
            workers.add_metric(["compute"], len(self._scheduler.workers) - gather)
            workers.add_metric(["gather"], gather)
            yield workers


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    """Cumulative counts up to some of the edges."""
    buckets, below = [], 0
    for i, count in enumerate(durations.counts[: len(EDGES)]):
        below += count
        if i % _EVERY == 0:
            buckets.append((f"{EDGES[i]:.4g}", float(below)))
    return [*buckets, ("+Inf", float(durations.n))]
