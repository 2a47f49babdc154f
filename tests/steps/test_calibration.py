"""Raw calibration through its graph, over real repositories and simulated exposures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from lsst.daf.butler import Butler

from apflow.config_tables import Sasquatch
from apflow.errors import BadRequest
from apflow.graphs import raw_calibration
from apflow.io.butler import Repository
from apflow.io.butler.calibrations import find_plan
from apflow.io.butler.paths import CHECKS, checks_chain, checks_path
from apflow.io.fits import read_image
from apflow.io.metrics import values_of
from apflow.io.sasquatch import flush
from apflow.model.calibration import CalibrationExposure, Intent
from apflow.model.calibration_bundle import EXPOSURE, EXPOSURE_ACTION, catalogue
from apflow.model.calibration_metrics import AMPLIFIER_ACTION, DETECTOR_ACTION
from apflow.model.ledger import Failure, Outcome, State
from apflow.operate.picture import graph_markdown, raw_calibration_markdown
from apflow.operate.services import InfluxServer
from apflow.operate.services.sasquatch import SasquatchProxy
from apflow.run import EagerRunner
from apflow.simulate.calibration import Faults
from apflow.steps.calibration import calibration_report, fetch_masters
from tests.calibration_night import Night, make_night

CCD = 4


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    return make_night(tmp_path_factory.mktemp("calibrations"))


def run(night: Night, exposure: CalibrationExposure, detectors: tuple[int, ...] = (CCD,)) -> tuple[Outcome, ...]:
    outcomes: tuple[Outcome, ...] = EagerRunner().run(raw_calibration.exposure, exposure, detectors, night.config)
    return outcomes


def registered(night: Night, exposure: int) -> dict[str, int]:
    """How many datasets of each type an exposure has."""
    with Butler.from_config(str(night.root)) as butler:
        chain = checks_chain("LSSTComCam")
        return {
            kind: len(butler.query_datasets(kind, chain, instrument="LSSTComCam", exposure=exposure, explain=False))
            for kind in CHECKS
        }


@pytest.mark.parametrize(("intent", "sequence"), [(i, n) for n, i in enumerate(Intent, 10)])
def test_an_exposure_is_checked_registered_and_readable(night: Night, intent: Intent, sequence: int) -> None:
    raw = night.raw(intent, sequence, CCD)
    night.land(raw)
    exposure = night.exposure(raw)
    (outcome,) = run(night, exposure)
    assert (outcome.state, outcome.visit, outcome.detector) == (State.DONE, exposure.exposure, CCD)
    assert outcome.arrived_unix is not None and outcome.metrics["mjd_mid_tai"] == raw.info.mjd_mid_tai
    assert registered(night, exposure.exposure) == dict.fromkeys(CHECKS, 1)
    amplifiers = night.scenario.load_camera().detector(CCD).amplifiers
    with Butler.from_config(str(night.root), collections=checks_chain("LSSTComCam")) as butler:
        data_id = {"instrument": "LSSTComCam", "exposure": exposure.exposure}
        found = values_of(butler.get("calibration_metrics", data_id, detector=CCD))
        whole = values_of(butler.get("calibration_exposure_metrics", data_id))
        picture = butler.get("calibration_picture", data_id, detector=CCD)
    # The list is the same whatever the intent gives.
    wanted = catalogue(night.scenario.load_camera())
    assert {action: list(values) for action, values in found.items()} == {
        action: [m.name for m in metrics] for action, metrics in wanted.items()
    }
    assert list(whole[EXPOSURE_ACTION]) == [m.name for m in EXPOSURE]
    assert whole[EXPOSURE_ACTION]["n_detectors_done"] == 1
    noises = [found[AMPLIFIER_ACTION][f"read_noise_electron_{a.name}"] for a in amplifiers]
    assert noises == pytest.approx([a.read_noise for a in amplifiers], rel=0.1)
    assert whole[EXPOSURE_ACTION]["max_read_noise_electron"] == max(noises)
    assert found[DETECTOR_ACTION]["verdict"] == whole[EXPOSURE_ACTION]["verdict"] == 0
    assert (found[DETECTOR_ACTION]["median_dark_current_electron_per_s"] is None) is (intent is not Intent.DARK)
    assert picture.dtype == np.float32 and max(picture.shape) <= 128


def test_checked_again_gives_the_same_files_registered_once(night: Night) -> None:
    raw = night.raw(Intent.BIAS, 20, CCD)
    night.land(raw)
    exposure = night.exposure(raw)

    def files() -> dict[str, bytes]:
        where = {k: checks_path(night.root, k, exposure, None if "exposure" in k else CCD) for k in CHECKS}
        return {kind: Path(path).read_bytes() for kind, path in where.items()}

    first, before = run(night, exposure), files()
    second = run(night, exposure)
    assert files() == before
    assert [o.metrics for o in second] == [o.metrics for o in first]
    assert registered(night, exposure.exposure) == dict.fromkeys(CHECKS, 1)


def test_two_flats_make_photon_transfer(night: Night) -> None:
    first, second = (night.raw(Intent.FLAT, n, CCD, Faults(gain={"C03": 1.4})) for n in (1, 2))
    night.land(first)
    (alone,) = run(night, night.exposure(first))
    assert "median_ptc_gain_electron_per_adu" not in alone.metrics
    night.land(second)
    (paired,) = run(night, night.exposure(second))
    gain = np.median([a.gain for a in night.scenario.load_camera().detector(CCD).amplifiers])
    assert paired.metrics["median_ptc_gain_electron_per_adu"] == pytest.approx(gain, rel=0.1)
    assert paired.metrics["max_ptc_gain_ratio"] == pytest.approx(1.4, rel=0.12)
    assert "C03" in paired.cause


def test_the_partner_is_the_latest_earlier_flat_of_the_same_light(night: Night) -> None:
    repository = Repository.open(night.root)
    flats = [night.raw(Intent.FLAT, n, CCD) for n in (40, 42, 44)]
    dimmer = dataclasses.replace(
        night.raw(Intent.FLAT, 43, CCD),
        info=dataclasses.replace(night.raw(Intent.FLAT, 43, CCD).info, exposure_time_s=3.0),
        header={},
    )
    night.land(*flats[:2], dimmer, night.raw(Intent.BIAS, 41, CCD), night.raw(Intent.BIAS, 46, CCD))
    assert partners(repository, night.exposure(flats[1]))[:1] == [40]
    # Where 43 is of other light, 42 it is; after that 40, whose image a detector may have where 42 failed.
    assert partners(repository, night.exposure(flats[2]))[:2] == [42, 40]
    # The exposure right before may be on its way: what it is shows when it is read.
    after = dataclasses.replace(night.exposure(flats[2]), exposure=flats[2].info.exposure + 1)
    assert partners(repository, after)[:3] == [44, 42, 40]
    # The one that is named stands before all others; other intents have none.
    assert partners(repository, night.exposure(flats[2], partner="CC_O_20250420_000040")) == [40]
    assert partners(repository, night.exposure(night.raw(Intent.BIAS, 45, CCD))) == []


def partners(repository: Repository, exposure: CalibrationExposure) -> list[int]:
    """Sequence numbers of the flats that may be a partner."""
    return [int(Path(path).name.split("_")[3]) for path in find_plan(repository, exposure, [CCD]).partners[CCD]]


def test_a_flat_before_that_failed_gives_way_to_an_earlier_one(night: Night) -> None:
    earlier, flat = night.raw(Intent.FLAT, 53, CCD), night.raw(Intent.FLAT, 55, CCD)
    night.land(earlier, flat)  # of 54 there is nothing
    (outcome,) = run(night, night.exposure(flat))
    assert outcome.metrics["median_ptc_gain_ratio"] == pytest.approx(1.0, abs=0.05)


def test_a_partner_that_is_named_and_of_no_use_is_a_warning(night: Night) -> None:
    bias, flat = night.raw(Intent.BIAS, 50, CCD), night.raw(Intent.FLAT, 51, CCD)
    night.land(bias, flat)
    (outcome,) = run(night, night.exposure(flat, partner=night.exposure(bias).image))
    assert outcome.metrics["verdict"] == 1 and f"partner {night.exposure(bias).image}" in outcome.cause
    assert "median_ptc_gain_electron_per_adu" not in outcome.metrics


def test_a_flat_is_compared_with_the_master_of_the_filter_in_its_header(night: Night) -> None:
    raw = night.raw(Intent.FLAT, 60, CCD)
    plan = find_plan(Repository.open(night.root), night.exposure(raw), [CCD])
    assert {"bias", "dark", "flat r_03", "defects"} == set(plan.masters[CCD])
    assert fetch_masters(plan, CCD, night.config).flat is None
    known = find_plan(Repository.open(night.root), night.exposure(raw, physical_filter="r_03"), [CCD])
    flat = fetch_masters(known, CCD, night.config).flat
    assert flat is not None and np.array_equal(flat, read_image(plan.masters[CCD]["flat r_03"]))
    night.land(raw)
    (outcome,) = run(night, night.exposure(raw))
    assert outcome.metrics["median_gain_drift_ratio"] == pytest.approx(1.0, abs=0.01)


def test_without_masters_a_detector_is_checked_all_the_same(tmp_path: Path) -> None:
    night = make_night(tmp_path, kinds=("defects",))
    raw = night.raw(Intent.DARK, 1, CCD)
    night.land(raw)
    (outcome,) = run(night, night.exposure(raw))
    assert outcome.state is State.DONE and outcome.metrics["verdict"] == 1
    assert "no master bias is valid: Warning" in outcome.cause and "no master dark is valid" in outcome.cause
    assert "median_dark_residual_electron_per_s" not in outcome.metrics
    assert outcome.metrics["median_read_noise_ratio"] == pytest.approx(1.0, abs=0.1)


def test_a_repository_of_an_earlier_version_gets_what_it_lacks(tmp_path: Path) -> None:
    night = make_night(tmp_path)
    with Butler.from_config(str(night.root), writeable=True) as butler:
        for kind in CHECKS:
            butler.registry.removeDatasetType(kind)
    raw = night.raw(Intent.BIAS, 1, CCD)
    night.land(raw)
    assert [o.state for o in run(night, night.exposure(raw))] == [State.DONE]
    assert registered(night, raw.info.exposure) == dict.fromkeys(CHECKS, 1)


def test_what_is_not_what_was_announced_is_bad_data_and_keeps_nobody_else(night: Night) -> None:
    bias, flat = night.raw(Intent.BIAS, 70, CCD), night.raw(Intent.FLAT, 71, CCD)
    night.land(bias, flat)
    (other,) = run(night, night.exposure(bias, Intent.DARK))
    assert other.state is State.BAD_DATA and "is of type BIAS, it was announced as DARK" in other.cause
    (filtered,) = run(night, night.exposure(flat, physical_filter="g_01"))
    assert filtered.state is State.BAD_DATA and "is in filter r_03, it was announced in g_01" in filtered.cause
    assert registered(night, bias.info.exposure) == dict.fromkeys(CHECKS, 0)
    longer = dataclasses.replace(night.exposure(flat), exposure_time_s=3.0)
    (outcome,) = run(night, longer)
    assert outcome.state is State.DONE and "exposure time is 2.5 s, announced were 3 s" in outcome.cause


def test_images_that_never_come_or_cannot_be_read(night: Night) -> None:
    raw = night.raw(Intent.BIAS, 80, CCD)
    (missing,) = run(night, night.exposure(raw))
    assert missing.state is State.IMAGE_TIMEOUT and missing.step == "await_calibration_image"
    path = night.write(raw)
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size // 2)
    (ingested,) = Repository.open(night.root, writeable=True).ingest_raws([path])
    assert ingested.error
    night.land(raw)
    (late,) = run(night, night.exposure(raw))
    assert late.state is State.DONE  # a good one makes up for it


def test_the_metrics_arrive_in_influxdb(night: Night, sasquatch: SasquatchProxy, influxdb: InfluxServer) -> None:
    raw = night.raw(Intent.BIAS, 85, CCD, Faults(read_noise={"C05": 1.5}))
    night.land(raw)
    exposure = night.exposure(raw)
    (night.root / "token").write_text(f"{sasquatch.token}\n")
    to = Sasquatch(url=sasquatch.url, token_file=str(night.root / "token"))
    config = dataclasses.replace(night.config, sasquatch=to)
    (outcome,) = EagerRunner().run(raw_calibration.exposure, exposure, [CCD], config)
    assert outcome.state is State.DONE and flush(config, 20.0) == 0
    points = {}
    for action in (AMPLIFIER_ACTION, DETECTOR_ACTION, EXPOSURE_ACTION):
        (points[action],) = influxdb.query(sasquatch.database, f'SELECT * FROM "lsst.prompt.{action}"')
        assert points[action]["instrument"] == "LSSTComCam" and points[action]["day_obs"] == "20250420"
        assert points[action]["exposure"] == str(exposure.exposure)
    noise = points[AMPLIFIER_ACTION]["read_noise_ratio_C05"]
    assert noise == pytest.approx(1.5, rel=0.05) and points[AMPLIFIER_ACTION]["verdict_C05"] == 1
    assert points[EXPOSURE_ACTION]["max_read_noise_ratio"] == points[DETECTOR_ACTION]["max_read_noise_ratio"] == noise
    assert points[DETECTOR_ACTION]["detector"] == str(CCD)
    # What a bias does not give is nothing, not 0.
    assert points[AMPLIFIER_ACTION].get("flat_level_electron_C05") is None


def test_a_batch_that_cannot_be_registered_fails_its_detectors(night: Night) -> None:
    exposure = night.exposure(night.raw(Intent.BIAS, 90, CCD))
    late = Outcome("LSSTComCam", exposure.exposure, 5, State.IMAGE_TIMEOUT, "late")
    done = Outcome("LSSTComCam", exposure.exposure, 6, State.DONE)
    lost, unkept = (Failure(State.FAILED, step, f"{step} locked") for step in ("register_checks", "keep_exposure"))
    outcomes = calibration_report(exposure, [CCD, 5, 6], [lost, (late, done)], [unkept])
    assert [(o.detector, o.state, o.cause) for o in outcomes] == [
        (CCD, State.FAILED, "register_checks locked"),
        (5, State.IMAGE_TIMEOUT, "late"),
        (6, State.DONE, "metrics of the exposure were not kept: keep_exposure locked"),
    ]


def test_the_picture_of_the_graph_is_fresh() -> None:
    picture = Path(raw_calibration.__file__).with_suffix(".md")
    assert picture.read_text() == raw_calibration_markdown() + "\n", (
        "run: apflow graph show raw_calibration > graphs/raw_calibration.md"
    )
    assert graph_markdown("raw_calibration") == raw_calibration_markdown()
    with pytest.raises(BadRequest, match="graph 'calibration' is unknown; accepted: alert_production, raw_calibration"):
        graph_markdown("calibration")
