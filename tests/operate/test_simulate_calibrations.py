"""``apflow simulate`` (issue 6): raws of calibrations in a repository, after what is there."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from apflow.errors import BadRequest
from apflow.io.butler import Repository, create_repository, paths
from apflow.io.fits import read_raw
from apflow.model.camera import load_camera
from apflow.operate.prepare import Record
from apflow.operate.simulate_calibrations import check_request, read_faults, simulate
from apflow.simulate.scenario import Scenario
from tests.operate.command import apflow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    create_repository(tmp_path / "repo", "comcam", 128)
    return tmp_path / "repo"


def raw(root: Path, image: str, detector: str = "R22_S11"):
    with Repository(root) as repository:
        number = int(image[5:13]) * 100_000 + int(image[-6:])
        return read_raw(paths.raw_path(repository.root, "LSSTComCam", number, "CC_O", detector))


def test_images_follow_what_is_there_and_are_registered(root: Path) -> None:
    first = check_request(str(root), "bias", 2, detectors="R22_S11")
    simulate(str(root), first, workers=1)
    ran = apflow("simulate", str(root), "--intent", "flat", "--filter", "i", "--detectors", "4,5", "--workers", "2")
    assert ran.returncode == 0, ran.stderr
    assert [*first.images, *ran.stdout.split()] == [f"CC_O_20250420_00000{n}" for n in (1, 2, 3)]
    with Repository(root) as repository:
        refs = repository.butler.query_datasets("raw", paths.raw_run("LSSTComCam"))
        records = repository.butler.query_dimension_records("exposure", instrument="LSSTComCam")
    assert len(refs) == 4
    of = {r.id % 100: (r.observation_type, r.physical_filter) for r in records}
    assert of == {1: ("bias", "unknown"), 2: ("bias", "unknown"), 3: ("flat", "i_06")}
    spans = [r.timespan for r in sorted(records, key=lambda r: r.id)]
    assert all(a.end <= b.begin for a, b in itertools.pairwise(spans))
    assert {p.name for p in root.iterdir() if p.name.startswith(".simulated")} == set()


def test_a_replays_seed_detectors_and_filter_are_taken(root: Path) -> None:
    scenario = Scenario(camera="comcam", size=128, seed=9, detectors=(3,), physical_filter="g")
    Record.of(scenario).write(root)
    asked = check_request(str(root), "flat", 1)
    assert (asked.scenario.seed, asked.scenario.detectors) == (9, (3,)) and asked.physical_filter.startswith("g")
    assert check_request(str(root), "flat", 1, seed=2).scenario.seed == 2


def test_faults_are_those_asked_for(root: Path) -> None:
    asked = check_request(str(root), "bias", 1, detectors="4,5", faults=["R22_S11:C03:dead", "R22_S11:C04:bias_adu=90"])
    simulate(str(root), asked, workers=1)
    (image,) = asked.images
    assert np.ptp(raw(root, image).segments["Segment03"]) == 0
    assert np.ptp(raw(root, image, "R22_S12").segments["Segment03"]) > 0
    amp = next(a for a in load_camera("comcam", 128).detector(4).amplifiers if a.name == "C04")
    segment = raw(root, image).segments[amp.segment].astype(float)
    step = (
        segment[: amp.ny, amp.prescan : amp.prescan + amp.nx].mean() - segment[: amp.ny, amp.prescan + amp.nx :].mean()
    )
    assert step == pytest.approx(90, abs=12)  # and the structure that every bias has


def test_a_day_without_exposures_begins_in_its_afternoon(root: Path) -> None:
    asked = check_request(str(root), "dark", 3, exposure_time_s=30.0, day=20250102)
    assert asked.images[0] == "CC_O_20250102_000001"
    assert asked.scenario.start_mjd_tai == pytest.approx(60677.7)


@pytest.mark.parametrize(
    ("intent", "count", "options", "told"),
    [
        ("light", 1, {}, "intent 'light' is unknown"),
        ("dark", 1, {"exposure_time_s": 0.0}, "exposure time 0 s of a dark"),
        ("bias", 1, {"exposure_time_s": 1.0}, "exposure time 1 s of a bias"),
        ("bias", 1, {"physical_filter": "r"}, "filter 'r' of a bias"),
        ("flat", 1, {"physical_filter": "x"}, "'x'"),
        ("bias", 1, {"detectors": "R99_S99"}, "R99_S99"),
        ("bias", 1, {"day": 20250230}, "day of observation 20250230"),
        ("dark", 1000, {"exposure_time_s": 300.0}, "do not fit into what is left of day 20250420"),
    ],
)
def test_bad_requests_are_named(root: Path, intent: str, count: int, options: dict[str, object], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        check_request(str(root), intent, count, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fault", ["C00:gain=2", "R22_S11:C00:gain", "R22_S11:C00:dead=1", "R22_S11:hot_pixels=0.5", "lamp_tilt=2", "x=y"]
)
def test_faults_of_other_forms_are_refused(fault: str) -> None:
    with pytest.raises(BadRequest, match=r"fault|no detector"):
        read_faults([fault], load_camera("comcam", 128), (4, 5))


def test_faults_elsewhere_are_refused() -> None:
    camera = load_camera("comcam", 128)
    with pytest.raises(BadRequest, match="not among those to simulate"):
        read_faults(["R22_S00:hot_pixels=3"], camera, (4, 5))
    with pytest.raises(BadRequest, match="R22_S11 has amplifiers C00"):
        read_faults(["R22_S11:C99:dead"], camera, (4, 5))
