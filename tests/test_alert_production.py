"""The real graph on a real cluster over a simulated field: outcomes, association, kills, identity of two runs."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from distributed import Client
from lsst.daf.butler import Butler

from apflow.cluster.local import local_cluster
from apflow.graphs import alert_production
from apflow.io.alerts.archive import read_night
from apflow.io.arrivals import Ingestor
from apflow.io.metrics import values_of
from apflow.io.ppdb import open_ppdb
from apflow.model.ap_metrics import STAGE_METRICS, STAGES, by_stage, delivery, known_values, over_visit
from apflow.model.ids import day_obs_of, source_id
from apflow.model.ledger import Outcome, State
from apflow.model.sky import separation_arcsec
from apflow.operate.detector import check_request, process_detector
from apflow.operate.picture import alert_production_markdown
from apflow.operate.prepare import simulation_pool
from apflow.simulate.player import Trouble
from apflow.simulate.scenario import Scenario, visits
from apflow.simulate.score import score
from tests.field import Field, land, make_field, play, products

TROUBLED = {0: State.IMAGE_TIMEOUT, 1: State.BAD_DATA, 2: State.BAD_DATA}
IMAGE_TIMEOUT_S = 25.0


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with simulation_pool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    warm_up = ["apflow.graphs.alert_production"]
    with local_cluster(2, warm_up=warm_up) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(3, timeout=60)
        yield client


@dataclasses.dataclass(frozen=True)
class Night:
    """Two visits of a field, the second with three raws in trouble."""

    field: Field
    outcomes: dict[int, tuple[Outcome, ...]]
    prefixes: set[str]

    def of(self, index: int) -> dict[int, Outcome]:
        return {o.detector: o for o in self.outcomes[self.field.visits[index].visit]}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, pool: ProcessPoolExecutor, client: Client) -> Night:
    scenario = Scenario(camera="comcam", seed=11, nvisits=2, cadence_s=0.0)
    second = visits(scenario)[1].visit
    kinds = {0: "missing", 1: "truncated", 2: "nan"}
    troubles = tuple(Trouble(detector=d, kind=k, visit=second) for d, k in kinds.items())
    root = tmp_path_factory.mktemp("night") / "butler"
    field = make_field(root, scenario, pool, troubles, image_timeout_s=IMAGE_TIMEOUT_S, gather_after_s=1.0)
    outcomes = play(field, client, field.visits)
    prefixes = set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes)))
    return Night(field, outcomes, prefixes)


def test_the_picture_of_the_graph_is_fresh():
    picture = Path(alert_production.__file__).with_suffix(".md")
    assert picture.read_text() == alert_production_markdown() + "\n", (
        "run: apflow graph show > graphs/alert_production.md"
    )


def test_every_detector_is_done_and_most_changes_are_found(night: Night):
    first = night.of(0)
    assert {o.state for o in first.values()} == {State.DONE}
    expected = [(night.field.visits[0].visit, d) for d in first]
    result = score(night.field.truth, night.field.table("DiaSource"), expected)
    assert result["completeness_snr6"] > 0.90
    assert result["purity"] > 0.90
    assert abs(result["zeropoint_bias_mag"]) < 0.02
    assert result["astrometric_scatter_arcsec"] < 0.05


def test_the_scheduler_knows_each_node_of_the_graph_by_name(night: Night):
    wanted = {
        *("open_visit", "detector_region", "fetch_calibs", "fetch_template", "await_science_images"),
        *("remove_signature", "calibrate", "inject_fakes", "match_template", "subtract", "detect_and_measure"),
        *("rate_reliability", "read_history", "associate", "force_photometry", "package_alerts"),
        *("archive_packets", "write_ppdb", "publish_alerts", "register_outputs", "dispatch_metrics"),
        "visit_report",
    }
    assert wanted <= {name for prefix in night.prefixes for name in prefix.split("+")}
    [chain] = (prefix for prefix in night.prefixes if prefix.startswith("remove_signature"))
    assert chain.endswith("+associate+force_photometry+package_alerts"), "a chain is one task from its image on"


def test_one_missing_one_truncated_one_blank_of_nine_and_the_other_six_on_time(night: Night):
    second = night.of(1)
    assert {d: o.state for d, o in second.items()} == {d: TROUBLED.get(d, State.DONE) for d in range(9)}
    name = night.field.visits[1].images[0]
    assert name in second[0].cause and "25" in second[0].cause
    assert second[1].cause and second[2].cause
    for d in range(3, 9):
        published, arrived = second[d].published_unix, second[d].arrived_unix
        assert published is not None and arrived is not None
        assert published - arrived < IMAGE_TIMEOUT_S, "the missing image of another detector delayed this one"


def test_the_ledger_has_one_terminal_state_for_each(night: Night):
    with open_ppdb(night.field.config.ppdb_url) as ppdb:
        ledger = ppdb.ledger()
    assert len(ledger) == 18
    assert not ledger.duplicated(["visit", "detector"]).any()
    assert ledger["state"].value_counts().to_dict() == {"done": 15, "bad_data": 2, "image_timeout": 1}


def test_the_second_visit_associates_with_the_objects_of_the_first(night: Night):
    sources, truth = night.field.table("DiaSource"), night.field.truth
    one, two = (v.visit for v in night.field.visits)
    steady = truth[(truth["kind"].isin(["variable", "transient", "hosted"])) & truth["good"] & (truth["snr"] > 8)]
    both = set(steady[steady["visit"] == one]["truth_id"]) & set(steady[steady["visit"] == two]["truth_id"])
    linked = 0
    for truth_id in both:
        ids = []
        for visit in (one, two):
            t = steady[(steady["visit"] == visit) & (steady["truth_id"] == truth_id)].iloc[0]
            seen = sources[(sources["visit"] == visit) & (sources["detector"] == t["detector"])]
            distance = separation_arcsec(seen["ra"], seen["dec"], t["ra"], t["dec"])
            if len(distance) and distance.min() < 0.7:
                ids.append(int(seen["diaObjectId"].iloc[int(np.argmin(distance))]))
        linked += len(ids) == 2
        assert len(set(ids)) <= 1, f"truth {truth_id} has two DiaObjects"
    assert linked > 20


def test_ids_are_deterministic_and_alerts_say_what_the_ppdb_says(night: Night):
    sources = night.field.table("DiaSource").set_index("diaSourceId")
    for (visit, detector), rows in sources.groupby(["visit", "detector"]):
        assert sorted(rows.index) == [source_id(int(visit), int(detector), n + 1) for n in range(len(rows))]
    alerts = list(read_night(night.field.config.alerts_url, day_obs_of(night.field.visits[0].visit)))
    assert sorted(a["diaSourceId"] for a in alerts) == sorted(sources.index)
    assert sum(bool(a["prvDiaSources"]) for a in alerts) > 20
    for alert in alerts[::25]:
        row = sources.loc[alert["diaSourceId"]]
        assert alert["diaSource"]["psfFlux"] == pytest.approx(float(row["psfFlux"]), rel=1e-6)
        assert alert["diaObject"]["diaObjectId"] == row["diaObjectId"]
        with fits.open(io.BytesIO(alert["cutoutDifference"])) as hdus:
            stamp = hdus[0]
            x, y = WCS(stamp.header).all_world2pix(row["ra"], row["dec"], 0)
            assert abs(x - (stamp.shape[1] - 1) / 2) < 1.0
            assert abs(y - (stamp.shape[0] - 1) / 2) < 1.0


def test_every_metric_of_a_done_detector_has_a_value(night: Night):
    # Nobody injects or predicts anything.
    not_asked = [*(metric.name for metric in STAGES["injection"]), "n_ss_predicted", "is_ss_service_down"]
    for outcome in night.of(0).values():
        assert tuple(outcome.metrics) == STAGE_METRICS
        assert [name for name, value in outcome.metrics.items() if not np.isfinite(value)] == not_asked


def test_metrics_in_the_butler_are_those_of_the_outcomes(night: Night):
    """D10: those that failed have all names, with null for what was not measured."""
    every = {stage: {metric.name for metric in metrics} for stage, metrics in STAGES.items()}
    with Butler.from_config(
        str(night.field.root), collections=["LSSTComCam/prompt"], instrument="LSSTComCam"
    ) as butler:
        for n in (0, 1):
            visit, rows = night.field.visits[n].visit, []
            for d, outcome in night.of(n).items():
                stages, delivered = (
                    values_of(butler.get(kind, visit=visit, detector=d))
                    for kind in ("ap_metrics", "ap_delivery_metrics")
                )
                assert stages == by_stage(outcome.metrics)
                assert {stage: set(found) for stage, found in stages.items()} == every
                assert delivered == delivery(outcome)
                assert delivered["delivery"][f"is_{outcome.state}"] == 1.0
                rows.append(known_values(stages | delivered))
            assert values_of(butler.get("ap_visit_metrics", visit=visit)) == over_visit(rows)
        failed = [values_of(butler.get("ap_metrics", visit=visit, detector=d)) for d in range(3)]
        seen = values_of(butler.get("ap_visit_metrics", visit=visit))["visit"]
    assert not any(known_values(values) for values in failed)  # no step of them measured anything
    assert (seen["n_detectors"], seen["n_done"], seen["n_bad_data"], seen["n_image_timeout"]) == (9.0, 6.0, 2.0, 1.0)
    fwhm = [night.of(1)[d].metrics["psf_fwhm_arcsec"] for d in range(3, 9)]
    assert [seen[f"{s}_psf_fwhm_arcsec"] for s in ("min", "median", "max")] == [min(fwhm), np.median(fwhm), max(fwhm)]


def test_readme_lists_exactly_the_columns_that_are_never_computed(night: Night):
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    # Fitted where there is such a source, which few fields have: tests/pixels/test_measure.py has one of each.
    kinds = set(re.findall(r"`(\w+)`", re.search(r"^Null in DiaSources that are no .*: (.*)$", readme, re.M)[1]))
    for name in ("DiaSource", "DiaObject", "DiaForcedSource"):
        table = night.field.table(name)
        null = {c for c in table if table[c].isna().all()}
        listed = set(re.findall(r"`(\w+)`", re.search(rf"^{name}: (.*)$", readme, re.M)[1]))
        # Of the six bands this field has one; the README says so once instead of naming each band's columns.
        other_bands = {c for c in null if re.match("[ugizy]_", c)}
        assert listed == null - other_bands - kinds, name


def test_products_are_in_the_butler(night: Night):
    visit = night.field.visits[0].visit
    butler = Butler.from_config(str(night.field.root), collections=["LSSTComCam/prompt"], instrument="LSSTComCam")
    try:
        difference = butler.get("difference_image", visit=visit, detector=4)
        table = butler.get("dia_source_detector", visit=visit, detector=4)
        for name, n in {"difference_image": 15, "dia_source_detector": 15, "ap_metrics": 18}.items():
            assert len(butler.query_datasets(name)) == n
    finally:
        butler.close()
    assert difference.unit == "nJy"
    good = difference.mask == 0
    snr = difference.image[good] / np.sqrt(difference.variance[good])
    assert 0.95 < 1.4826 * np.median(np.abs(snr - np.median(snr))) < 1.05
    assert len(table) == night.of(0)[4].n_sources


def test_the_same_seed_gives_the_same_products_here_and_on_dask(
    night: Night, tmp_path: Path, pool: ProcessPoolExecutor
):
    """One process in order, against two workers in whatever order; and nobody read the truth."""
    scenario = night.field.scenario
    first = dataclasses.replace(scenario, nvisits=1)
    field = make_field(tmp_path / "butler", first, pool)
    visit = field.visits[0]
    with open_ppdb(field.config.ppdb_url, create=True), Ingestor(field.config.butler, field.player.landing):
        land(field, visit)
        for d in reversed(scenario.detectors):
            arguments = (str(d), visit.ra_deg, visit.dec_deg, 30.0, "r", str(field.root), visit.images)
            outcome = process_detector(check_request(*arguments, timeout_s=20.0))
            assert outcome.state is State.DONE
        again = products(field)
        archived = {a["diaSourceId"]: a for a in read_night(field.config.alerts_url, day_obs_of(visit.visit))}
    whole = products(night.field)
    for name, table in again.items():
        if name == "DiaObject":
            before = whole[name][whole[name]["nDiaSources"] == 1]
            ids = set(whole["DiaSource"].loc[whole["DiaSource"]["visit"] == visit.visit, "diaObjectId"])
            before = before[before["diaObjectId"].isin(ids)]
        else:
            before = whole[name][whole[name]["visit"] == visit.visit]
        pd.testing.assert_frame_equal(table, before.reset_index(drop=True), check_exact=True)
    for alert in read_night(night.field.config.alerts_url, day_obs_of(visit.visit)):
        if alert["diaSource"]["visit"] == visit.visit:
            assert _timeless(archived[alert["diaSourceId"]]) == _timeless(alert)


def _timeless(value: object) -> object:
    """An alert without the times of its processing."""
    if isinstance(value, dict):
        times = ("timeProcessedMjdTai", "validityStartMjdTai", "validityEndMjdTai")
        return {k: _timeless(v) for k, v in value.items() if k not in times}
    if isinstance(value, list):
        return [_timeless(v) for v in value]
    return "nan" if isinstance(value, float) and value != value else value


def test_a_worker_killed_mid_visit_loses_nothing_and_doubles_nothing(
    tmp_path: Path, pool: ProcessPoolExecutor, client: Client
):
    scenario = Scenario(camera="comcam", seed=12, nvisits=1, cadence_s=0.0)
    field = make_field(tmp_path / "butler", scenario, pool)
    killed: list[int] = []

    def kill() -> None:
        pids = client.run(
            os.getpid, workers=[w for w in client.scheduler_info(n_workers=-1)["workers"] if _computes(client, w)]
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _running(client, "calibrate"):
            time.sleep(0.02)
        victim = next(iter(pids.values()))
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = play(field, client, field.visits)[field.visits[0].visit]
    killer.join()
    assert killed
    assert [o.state for o in outcomes] == [State.DONE] * 9
    sources = field.table("DiaSource")
    assert len(sources) == sum(o.n_sources for o in outcomes) == sources["diaSourceId"].nunique()
    outbox = field.table("outbox")
    assert sorted(outbox["alert_id"]) == sorted(sources["diaSourceId"])
    assert outbox["published_unix"].notna().all()


def _computes(client: Client, worker: str) -> bool:
    return "gather" not in client.scheduler_info(n_workers=-1)["workers"][worker]["resources"]


def _running(client: Client, prefix: str) -> bool:
    def count(dask_scheduler: object) -> int:
        found = dask_scheduler.task_prefixes.get(prefix)  # type: ignore[attr-defined]
        return found.states["processing"] + found.states["memory"] if found else 0

    return bool(client.run_on_scheduler(count))
