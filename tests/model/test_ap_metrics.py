"""The catalogue of alert production's metrics: complete, of one meaning each, and never shrinking."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from astropy import units

from apflow.graph_draw import trace
from apflow.graphs import alert_production
from apflow.model.ap_metrics import (
    DELIVERY,
    STAGE_METRICS,
    STAGES,
    STEPS,
    SUMMIT,
    VISIT,
    by_stage,
    delivery,
    known_values,
    over_visit,
)
from apflow.model.ledger import Outcome, State, StepRecord

#: What LSE-72 wants of each CCD (CONTRACT.md, last fact): PSF width and shape, WCS offset and scatter, zero point, sky
#: level and noise, depth, effective time, number of PSF stars, DIASource counts, alert latency.
WANTED = {
    *("psf_fwhm_arcsec", "psf_ellipticity_e1", "psf_ellipticity_e2", "n_psf_stars"),
    *("wcs_offset_arcsec", "wcs_scatter_arcsec", "zero_point_mag", "sky_electron", "sky_noise_electron"),
    *("depth_mag", "effective_time_s", "n_sources", "alert_latency_s"),
}


def outcome(detector: int, state: State = State.DONE, step: str = "", **metrics: float) -> Outcome:
    """A detector-visit that failed at a step, or did not: a second a step, half of it computed."""
    ran = STEPS[: STEPS.index(step) + 1] if step else STEPS
    records = tuple(StepRecord(name, float(n), n + 1.0, 0.5, "here") for n, name in enumerate(ran))
    done = state is State.DONE
    return Outcome(
        "LSSTCam", 2025042000123, detector, state, step=step, n_sources=3, n_alerts=2, arrived_unix=100.0,
        stored_unix=104.0 if done else None, published_unix=105.0 + detector if done else None,
        steps=records, metrics=metrics,
    )  # fmt: skip


def test_no_name_has_two_meanings_and_units_are_astropys() -> None:
    every = [m for table in (STAGES, DELIVERY, VISIT) for metrics in table.values() for m in metrics]
    assert max(Counter(metric.name for metric in every).values()) == 1
    for metric in every:
        assert metric.name.isidentifier() and metric.description.endswith((".", ").")), metric
        units.Unit(metric.unit)
        for ending, unit in {"_arcsec": "arcsec", "_s": "s", "_mag": "mag", "_electron": "electron"}.items():
            assert not metric.name.endswith(ending) or metric.unit == unit, metric


def test_summit_systems_find_what_they_want() -> None:
    assert set(SUMMIT) >= WANTED
    names = {metric.name for metric in VISIT["visit"]}
    assert names >= {f"{statistic}_{name}" for statistic in ("min", "median", "max") for name in WANTED}


def test_the_steps_are_those_of_a_detector_in_the_graph() -> None:
    assert list(STEPS) == [step.name for step in trace(alert_production.visit) if step.level == "detector"]


@pytest.mark.parametrize("step", STEPS)
def test_a_detector_that_failed_at_any_step_has_all_names(step: str) -> None:
    failed = outcome(1, State.BAD_DATA, step, psf_fwhm_arcsec=0.8, depth_mag=math.nan)
    stages = by_stage(failed.metrics)
    assert tuple(name for found in stages.values() for name in found) == STAGE_METRICS
    assert known_values(stages) == {"psf_fwhm_arcsec": 0.8}
    values = delivery(failed)["delivery"]
    assert list(values) == [metric.name for metric in DELIVERY["delivery"]]
    assert values["is_bad_data"] == 1.0 and values["is_done"] == values["is_failed"] == 0.0
    # No alert and no count of any is not the same as none.
    assert {values[name] for name in ("alert_latency_s", "store_latency_s", "n_alerts", "n_dia_sources")} == {None}
    n = STEPS.index(step) + 1
    assert values["processing_core_s"] == n / 2 and values[f"{step}_wall_s"] == 1.0
    assert [values[f"{name}_core_s"] for name in STEPS] == [0.5] * n + [None] * (len(STEPS) - n)


def test_delivery_counts_from_the_end_of_readout() -> None:
    values = delivery(outcome(2))["delivery"]
    assert (values["alert_latency_s"], values["store_latency_s"]) == (7.0, 4.0)
    assert (values["n_alerts"], values["n_dia_sources"]) == (2.0, 3.0)
    waiting = delivery(Outcome("LSSTCam", 1, 2, State.DONE, arrived_unix=1.0, stored_unix=2.0))["delivery"]
    assert (waiting["alert_latency_s"], waiting["store_latency_s"]) == (None, 1.0)
    assert waiting["processing_core_s"] is None  # nobody knows


def test_a_visit_has_minimum_median_and_maximum_of_its_detectors() -> None:
    ended = [outcome(d, n_sources=float(d), zero_point_mag=28.0) for d in range(4)]
    ended.append(outcome(4, State.NO_TEMPLATE, "match_template", zero_point_mag=27.0))
    rows = [known_values(by_stage(o.metrics) | delivery(o)) for o in ended]
    seen = over_visit(rows)["visit"]
    assert list(seen) == [metric.name for metric in VISIT["visit"]]
    assert (seen["n_detectors"], seen["n_done"], seen["n_no_template"], seen["n_failed"]) == (5.0, 4.0, 1.0, 0.0)
    assert [seen[f"{s}_n_sources"] for s in ("min", "median", "max", "total")] == [0.0, 1.5, 3.0, 6.0]
    assert [seen[f"{s}_zero_point_mag"] for s in ("min", "median", "max")] == [27.0, 28.0, 28.0]
    latencies = [5.0, 6.0, 7.0, 8.0]
    assert [seen[f"{s}_alert_latency_s"] for s in ("min", "median", "max")] == [5.0, 6.5, 8.0]
    assert seen["p98_alert_latency_s"] == pytest.approx(np.percentile(latencies, 98))
    assert seen["min_psf_fwhm_arcsec"] is seen["max_depth_mag"] is None
    assert seen["total_n_alerts"] == 8.0


def test_a_visit_of_which_nothing_is_known_has_all_names() -> None:
    seen = over_visit([])["visit"]
    assert list(seen) == [metric.name for metric in VISIT["visit"]]
    assert seen["n_detectors"] == 0.0 and seen["median_depth_mag"] is None
