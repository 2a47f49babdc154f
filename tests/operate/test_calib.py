"""Master calibs from simulated exposures, certified and used: ``apflow simulate`` and ``apflow calib``."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.time import Time
from lsst.daf.butler import Timespan

from apflow.errors import BadRequest
from apflow.graphs import alert_production, raw_calibration
from apflow.io.arrivals import Ingestor
from apflow.io.butler import Repository, create_repository
from apflow.io.butler.certify import certified, certify
from apflow.io.butler.inputs import find_calibs
from apflow.io.fits import read_image
from apflow.io.ppdb import open_ppdb
from apflow.model.calibration import CalibrationExposure, Intent
from apflow.model.ids import parse_image_name
from apflow.model.ledger import State
from apflow.operate import simulate_calibrations
from apflow.operate.calib_build import Request, Result, build, certify_folder
from apflow.operate.calib_request import Chosen, begin_of_day, parse_time
from apflow.operate.prepare import simulation_pool
from apflow.run import EagerRunner
from apflow.simulate.calibs import gain_ratio, response
from apflow.simulate.scenario import Scenario
from tests.field import Field, land, make_field
from tests.operate.command import APFLOW, apflow

SCENARIO = Scenario(camera="comcam", seed=5, nvisits=1, detectors=(4, 5), size=256)
KINDS = ("bias", "dark", "flat", "defects")
#: Calibrations are taken the day before the visit, and their masters hold from its day on.
TAKEN, NIGHT = 20250419, 20250420


def simulate(
    root: Path, intent: str, count: int, day: int, *faults: str, exposure_time_s: float | None = None
) -> list[str]:
    request = simulate_calibrations.check_request(
        str(root), intent, count, day=day, faults=faults, exposure_time_s=exposure_time_s
    )
    simulate_calibrations.simulate(str(root), request, workers=1)
    return request.images


def request(root: Path, kind: str, chosen: Chosen | None = None, begin: int | None = NIGHT, **more: object) -> Request:
    time_ = begin_of_day(begin) if begin else None
    options = {"certify": True, "workers": 1, **more}
    return Request(kind, str(root), chosen or Chosen(), begin=time_, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with simulation_pool(2) as pool:
        yield make_field(tmp_path_factory.mktemp("calib") / "butler", SCENARIO, pool)


@pytest.fixture(scope="module")
def images(field: Field) -> dict[str, list[str]]:
    return {kind: simulate(field.root, kind, 5, TAKEN) for kind in KINDS[:3]}


@pytest.fixture(scope="module")
def built(field: Field, images: dict[str, list[str]]) -> dict[str, Result]:
    """Masters of the day of calibrations, certified from the night on."""
    return {kind: build(request(field.root, kind, replace=True)) for kind in KINDS}


def master(result: Result, repository: Repository, kind: str, detector: int) -> tuple[np.ndarray, fits.Header]:
    name = repository.camera.detector(detector).name
    path = repository.root / result.run / f"{kind}_{name}.fits"
    return read_image(path), fits.getheader(path)


def errors(header: fits.Header, detector: int) -> np.ndarray:
    """Predicted errors by amplifier, on the CCD's grid."""
    plane = np.empty(SCENARIO.load_camera().detector(detector).shape)
    for amp in SCENARIO.load_camera().detector(detector).amplifiers:
        plane[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx] = header[f"APFLOW NOISE {amp.name}"]
    return plane


@pytest.mark.parametrize("detector", SCENARIO.detectors)
def test_masters_agree_with_the_truth_within_their_errors(
    field: Field, built: dict[str, Result], images: dict[str, list[str]], detector: int
) -> None:
    truth, ratio = response(SCENARIO, detector), gain_ratio(SCENARIO, detector)
    with Repository(field.root) as repository:
        made = {kind: master(built[kind], repository, kind, detector) for kind in KINDS}
    good = ~truth.defects & ~made["defects"][0].astype(bool)
    bias, dark, flat = (made[kind] for kind in KINDS[:3])
    assert bias[1]["NFRAMES"] == 5 and bias[1]["APFLOW IMAGE 1"] == images["bias"][0]
    assert dark[1]["EXPTIME"] == 300 and dark[1]["BUNIT"] == "electron/s"
    assert flat[1]["FILTER"] == SCENARIO.load_filter().physical_filter and "APFLOW VERSION apflow" in flat[1]
    bias_error = errors(bias[1], detector)
    pull = (bias[0] - truth.bias) / bias_error
    assert pull[good].std() == pytest.approx(1, abs=0.04)
    gain = SCENARIO.load_camera().detector(detector).amplifiers[0].gain
    pull = (dark[0] - truth.dark * ratio) / np.hypot(errors(dark[1], detector), bias_error * gain / 300)
    assert pull[good].std() == pytest.approx(1, abs=0.06)  # the register's glow is brighter at an edge
    level = np.median((flat[0] / (truth.flat * ratio))[good])
    pull = (flat[0] / level - truth.flat * ratio) / errors(flat[1], detector)
    assert pull[good].std() == pytest.approx(1, abs=0.04)
    assert made["defects"][0].astype(bool)[truth.defects].all()


def test_flats_of_detectors_are_of_one_light(field: Field, built: dict[str, Result]) -> None:
    with Repository(field.root) as repository:
        flats = {d: master(built["flat"], repository, "flat", d)[0] for d in SCENARIO.detectors}
    levels = [np.median(flats[d] / (response(SCENARIO, d).flat * gain_ratio(SCENARIO, d))) for d in SCENARIO.detectors]
    assert levels[0] == pytest.approx(levels[1], rel=2e-4)
    own = [np.median(response(SCENARIO, d).flat) for d in SCENARIO.detectors]
    assert abs(own[0] / own[1] - 1) > 1e-3  # which they would not be, each relative to itself


def test_visits_from_that_day_on_are_processed_with_them(field: Field, built: dict[str, Result]) -> None:
    (visit,) = field.visits
    with Repository(field.root) as repository:
        inputs = repository.find_inputs(visit, SCENARIO.detectors)
        runs = {kind: f"/{built[kind].run}/" for kind in KINDS}
        assert all(runs[kind] in str(getattr(one, kind)) for one in inputs.values() for kind in KINDS)
        before = find_calibs(repository, "bias", parse_time("2025-04-20T11:59:59"), "")
        assert before.keys() == set(SCENARIO.detectors)
        assert not any(ref.run == built["bias"].run for ref in before.values())
    land(field, visit)
    with open_ppdb(field.config.ppdb_url, create=True), Ingestor(field.config.butler, field.player.landing):
        (outcome,) = EagerRunner().run(alert_production.visit, visit, [4], field.config)
    assert outcome.state is State.DONE, outcome.cause
    assert outcome.n_sources > 0


def test_exposures_with_an_alert_are_left_out(field: Field, images: dict[str, list[str]]) -> None:
    names = simulate(field.root, "bias", 4, 20250410, "R22_S11:C00:read_noise=30", "R22_S11:C00:bias_adu=200")[:1]
    names += simulate(field.root, "bias", 3, 20250410)
    for name in names:
        number = parse_image_name(name).exposure
        exposure = CalibrationExposure("LSSTComCam", number, "", Intent.BIAS, "", 0.0, name)
        EagerRunner().run(raw_calibration.exposure, exposure, [4, 5], field.config)
    chosen = Chosen(images=tuple(names))
    bad, good = build(request(field.root, "bias", chosen, begin=20260101, replace=True)).built
    assert (bad.left_out, bad.images) == (tuple(names[:1]), tuple(names[1:]))
    assert not good.left_out and len(good.images) == 4
    with pytest.raises(BadRequest, match=f"R22_S11 has 2 bias.*{names[0]} are Alert"):
        build(request(field.root, "bias", Chosen(images=tuple(names[:3])), begin=20270101, replace=True))


def ranges(root: Path, kind: str, detector: int = 4) -> list[tuple[str, str]]:
    with Repository(root) as repository:
        spans = [c.span for c in certified(repository, [kind]) if c.detector == detector]
    return [tuple("" if t is None else t.isot[:10] for t in (s.begin, s.end)) for s in spans]  # type: ignore[misc]


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A repository without calibs."""
    create_repository(tmp_path / "repo", "comcam", 128)
    return tmp_path / "repo"


def biases(root: Path, count: int = 3) -> list[str]:
    asked = simulate_calibrations.check_request(str(root), "bias", count, detectors="4,5")
    simulate_calibrations.simulate(str(root), asked, workers=1)
    return asked.images


def test_what_overlaps_is_shortened_when_asked_for_and_named_else(empty: Path) -> None:
    biases(empty)
    first = build(request(empty, "bias", begin=None))
    assert ranges(empty, "bias") == [("2025-04-20", "")]
    with pytest.raises(
        BadRequest, match=f"bias of R22_S11 .and 1 more. is valid from 2025-04-20.*{first.run}.*--replace"
    ):
        build(request(empty, "bias", begin=20250501))
    assert ranges(empty, "bias") == [("2025-04-20", "")]
    build(request(empty, "bias", begin=20250501, replace=True))
    build(request(empty, "bias", begin=20250401))  # until the next one begins
    assert ranges(empty, "bias") == [("2025-04-01", "2025-04-20"), ("2025-04-20", "2025-05-01"), ("2025-05-01", "")]
    shown = apflow("calib", "ls", "--butler", str(empty), "--at", "20250421")
    assert shown.returncode == 0 and shown.stdout.count("\n") == 1
    assert "bias" in shown.stdout and "R22_S11, R22_S12" in shown.stdout and first.run in shown.stdout


def test_files_that_were_kept_are_certified_later(empty: Path, tmp_path: Path) -> None:
    biases(empty)
    out = tmp_path / "masters"
    made = build(request(empty, "bias", begin=None, certify=False, out=out))
    assert not made.run and sorted(p.name for p in out.iterdir()) == ["bias_R22_S11.fits", "bias_R22_S12.fits"]
    assert ranges(empty, "bias") == []
    result = certify_folder("bias", out, str(empty), None, parse_time("20250430"), replace=False)
    assert ranges(empty, "bias", 5) == [("2025-04-20", "2025-04-30")]
    assert (empty / result.run / "bias_R22_S11.fits").is_file() and (out / "bias_R22_S11.fits").is_file()
    (out / "bias_R22_S11.fits").rename(out / "dark_R22_S11.fits")
    with pytest.raises(BadRequest, match="is a bias of LSSTComCam; accepted: dark"):
        certify_folder("dark", out, str(empty), None, None, replace=False)
    with pytest.raises(BadRequest, match=r"no flat_\*.fits"):
        certify_folder("flat", out, str(empty), None, None, replace=False)


def test_all_detectors_are_certified_or_none(empty: Path, tmp_path: Path) -> None:
    biases(empty)
    out = tmp_path / "masters"
    build(request(empty, "bias", certify=False, out=out))
    files = {4: out / "bias_R22_S11.fits", 5: out / "bias_R22_S12.fits"}
    with Repository(empty, writeable=True) as repository:
        certify(repository, "bias", {5: files[5]}, "", Timespan(begin_of_day(NIGHT), None))
        with pytest.raises(BadRequest, match="R22_S12"):
            certify(repository, "bias", files, "", Timespan(begin_of_day(20250501), None))
    assert ranges(empty, "bias", 4) == [] and len(ranges(empty, "bias", 5)) == 1


def test_a_killed_build_leaves_nothing_by_halves(empty: Path) -> None:
    biases(empty)
    command = [APFLOW, "calib", "build", "bias", "--butler", str(empty), "--certify", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    runs = empty / "LSSTComCam" / "calib" / "bias"
    deadline = time.monotonic() + 60
    while not (runs.is_dir() and any(runs.glob("*/*.fits"))):  # files are there, and nobody knows them yet
        assert process.poll() is None and time.monotonic() < deadline
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(ranges(empty, "bias", 4)) == len(ranges(empty, "bias", 5))
    build(request(empty, "bias", replace=True))
    assert len(ranges(empty, "bias", 4)) == len(ranges(empty, "bias", 5)) >= 1


def test_bad_requests_are_named(empty: Path) -> None:
    with pytest.raises(BadRequest, match="calib 'light' is unknown"):
        build(request(empty, "light"))
    with pytest.raises(BadRequest, match=r"0 bias exposures \(none\) are too few"):
        build(request(empty, "bias"))
    names = biases(empty, 2)
    with pytest.raises(BadRequest, match=r"2 bias exposures .* are too few; accepted: 3"):
        build(request(empty, "bias"))
    names += biases(empty, 1)
    with pytest.raises(BadRequest, match="nothing would be kept"):
        build(request(empty, "bias", certify=False))
    with pytest.raises(BadRequest, match="R22_S21 has 0 raws of 3 exposures"):
        build(request(empty, "bias", detectors="R22_S11,R22_S21"))
    with pytest.raises(BadRequest, match="each once"):
        build(request(empty, "bias", Chosen(images=(names[0], names[0], names[1]))))
    with pytest.raises(BadRequest, match="000099 is not registered"):
        build(request(empty, "bias", Chosen(images=("CC_O_20250420_000099", *names))))
    with pytest.raises(BadRequest, match="is of type bias; accepted: dark"):
        build(request(empty, "dark", Chosen(images=tuple(names))))
    with pytest.raises(BadRequest, match="give both"):
        build(request(empty, "bias", Chosen(first=names[0])))
    with pytest.raises(BadRequest, match="is empty"):
        build(request(empty, "bias", end=begin_of_day(NIGHT)))
    with pytest.raises(BadRequest, match="accepted: no images"):
        build(request(empty, "defects", Chosen(images=tuple(names))))
    with pytest.raises(BadRequest, match="no dark or flat of any detector is valid"):
        build(request(empty, "defects"))
    with pytest.raises(BadRequest, match="time 'soon' is not accepted"):
        parse_time("soon")
    assert len(build(request(empty, "bias", Chosen(first=names[0], last=names[-1]))).built[0].images) == 3


def test_exposures_must_be_alike(empty: Path) -> None:
    darks = [("dark", 20.0, ""), ("dark", 20.0, ""), ("dark", 30.0, "")]
    flats = [("flat", 5.0, "r"), ("flat", 5.0, "r"), ("flat", 5.0, "i")]
    for intent, time_s, name in (*darks, *flats):
        asked = simulate_calibrations.check_request(
            str(empty), intent, 1, exposure_time_s=time_s, physical_filter=name, detectors="4"
        )
        simulate_calibrations.simulate(str(empty), asked, workers=1)
    with pytest.raises(BadRequest, match="exposed for 20 s, CC_O_20250420_000003 for 30 s"):
        build(request(empty, "dark"))
    with pytest.raises(BadRequest, match="is in filter r_03, CC_O_20250420_000006 in i_06"):
        build(request(empty, "flat"))
    with pytest.raises(BadRequest, match="2 flat exposures"):
        build(request(empty, "flat", Chosen(physical_filter="r")))
    simulate_calibrations.simulate(
        str(empty), simulate_calibrations.check_request(str(empty), "flat", 1, detectors="4"), workers=1
    )
    with pytest.raises(BadRequest, match=r"no bias of R22_S11 is valid at 2025-04-20.*apflow calib build bias"):
        build(request(empty, "flat", Chosen(physical_filter="r")))


def test_times_are_days_of_observation_dates_or_numbers() -> None:
    noon = Time("2025-04-20T12:00:00", scale="tai")
    assert all(parse_time(text) == noon for text in ("20250420", "60785.5", "2025-04-20T12:00:00"))
