"""``apflow calibration`` (D5): its arguments, verdicts, exit codes, report, and a cluster that loses a worker."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from lsst.daf.butler import Butler
from PIL import Image

from apflow.cluster.local import local_cluster
from apflow.config_tables import Sasquatch
from apflow.errors import BadRequest
from apflow.graphs import raw_calibration
from apflow.io.butler.paths import checks_chain, checks_path
from apflow.model.calibration import Intent
from apflow.model.calibration_metrics import AMPLIFIER
from apflow.model.camera import load_camera
from apflow.model.exposure import Raw
from apflow.model.ids import image_name
from apflow.model.ledger import State
from apflow.operate.calibration.command import Output, check_output
from apflow.operate.calibration.pictures import mosaic, rows_of
from apflow.operate.calibration.request import check_request
from apflow.operate.calibration.run import WARM_UP, run_calibration
from apflow.operate.services import InfluxServer
from apflow.operate.services.sasquatch import SasquatchProxy
from apflow.run import ChainEnded, EagerRunner
from apflow.run.on_dask import DaskRunner
from apflow.simulate.calibration import Faults
from tests.calibration_night import EXPTIME_S, Night, make_night
from tests.operate.command import apflow

CCDS = (3, 4, 5)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    return make_night(tmp_path_factory.mktemp("by hand"), CCDS)


def words(night: Night, raw: Raw, detector: str = "4", **more: str) -> list[str]:
    """The command line for a raw's exposure."""
    given = {"intent": raw.info.image_type.lower(), "detector": detector, "butler": str(night.root)}
    given |= {
        "image": image_name(raw.info.exposure, "CC_O"),
        "exptime": f"{raw.info.exposure_time_s:g}",
        "timeout": "0.5",
        **more,
    }
    return ["calibration", *(word for name, value in given.items() for word in (f"--{name}", value))]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"intent": "twilight"}, "intent 'twilight' is unknown; accepted: bias, dark, flat, cbp"),
        ({"detectors": "R99_S11"}, "no detector 'R99_S11'"),
        ({"exposure_time_s": 0.0}, "exposure time 0 s of a flat is not accepted: more than 0"),
        ({"exposure_time_s": 4000.0}, "exposure time 4000.0 of .* is out of range: 0 to 3600 s"),
        ({"exposure_time_s": float("nan")}, "exposure time nan"),
        ({"intent": "bias"}, "exposure time 5 s of a bias is not accepted: 0"),
        ({"physical_filter": "q"}, "no filter 'q'; accepted: u_05"),
        ({"butler": "nowhere"}, "no Butler repository of apflow in 'nowhere'"),
        ({"images": ["flat1"]}, "image name 'flat1' is not of the form"),
        ({"images": ["MC_O_20250420_000001"]}, "is not one of LSSTComCam; accepted: CC_O_YYYYMMDD_NNNNNN"),
        ({"images": ["CC_O_20250420_000001_R22_S00"]}, "is of one detector, and not of those asked for"),
        ({"images": []}, "accepted: one, or two flats"),
        ({"images": ["CC_O_20250420_000001"] * 2}, "accepted: one, or two flats"),
        ({"intent": "dark", "images": ["CC_O_20250420_000001", "CC_O_20250420_000002"]}, "one, or two flats"),
        ({"timeout_s": -1.0}, "timeout -1.0 s is not accepted: 0 or more"),
        ({"workers": 100_000, "detectors": "3,4"}, "workers 100000 are not accepted"),
    ],
)  # fmt: skip
def test_each_bad_argument_is_refused_by_name(night: Night, wrong: dict[str, object], message: str) -> None:
    given = {"intent": "flat", "detectors": "4", "exposure_time_s": 5.0, "physical_filter": ""}
    given |= {"butler": str(night.root), "images": ["CC_O_20250420_000001"]}
    with pytest.raises(BadRequest, match=message):
        check_request(**(given | wrong))  # type: ignore[arg-type]


def test_what_is_accepted(night: Night) -> None:
    given = ["CC_O_20250420_000002", "CC_O_20250420_000001_R22_S11"]
    request = check_request("FLAT", "R22_S11", 5.0, "r", str(night.root), given)
    first, second = request.exposures
    assert request.detectors == (4,) and (first.physical_filter, first.intent) == ("r_03", Intent.FLAT)
    assert (first.exposure, first.partner) == (2025042000001, "")
    assert (second.exposure, second.partner) == (2025042000002, "CC_O_20250420_000001")
    assert request.config.timing.image_timeout_s == 125.0  # the exposure has only begun
    bias = check_request("bias", "R22", 0.0, "none", str(night.root), ["CC_O_20250420_000001"])
    assert len(bias.detectors) == 9 and bias.exposures[0].physical_filter == ""


def test_ranges_of_the_configuration_are_checked_and_used(tmp_path: Path) -> None:
    night = make_night(tmp_path, (4,))
    settings = night.root / "apflow.toml"
    settings.write_text(settings.read_text().replace('ranges = ""', f'ranges = "{tmp_path}/ranges.toml"'))
    given = ("bias", "4", 0.0, "", str(night.root))
    with pytest.raises(BadRequest, match=r"ranges\.toml: No such file"):
        check_request(*given, ["CC_O_20250420_000001"])
    (tmp_path / "ranges.toml").write_text("[calibration_amplifier]\nread_noise_electron = {alert = [0, 1]}")
    raw = night.raw(Intent.BIAS, 1, 4)
    night.land(raw)
    request = check_request(*given, [image_name(raw.info.exposure, "CC_O")], timeout_s=0.5)
    ((_, (outcome,)),) = run_calibration(request)
    assert outcome.metrics["n_alert"] == 16 and "read_noise_electron" in outcome.cause


def test_outputs_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadRequest, match=r"--report .*file is not accepted"):
        check_output(Output(tmp_path / "file", None))
    for file in (tmp_path, tmp_path / "none" / "x.json"):
        with pytest.raises(BadRequest, match=r"--json .* is not accepted: a file in a folder that exists"):
            check_output(Output(None, file))


def test_the_command_prints_a_verdict_and_leaves_a_report(night: Night, tmp_path: Path) -> None:
    raw = night.raw(Intent.BIAS, 1, 4, Faults(read_noise={"C03": 2.5}))
    night.land(raw)
    image = image_name(raw.info.exposure, "CC_O")
    run = apflow(*words(night, raw, report=str(tmp_path / "page"), json=str(tmp_path / "out.json")), "--strict")
    assert run.returncode == 1, run.stderr  # strict: there is an Alert
    assert f"{image} bias: Alert (1 Alert)" in run.stdout
    assert re.search(r"R22_S11 +Alert +C03 read_noise_ratio 2\.\d+: Alert", run.stdout)
    (summary,) = json.loads((tmp_path / "out.json").read_text())
    assert summary == json.loads((tmp_path / "page" / f"{image}.json").read_text())
    (detector,) = summary["detectors"]
    (row,) = [row for row in detector["out_of_range"] if row["metric"] == "read_noise_ratio"]
    assert row["amplifier"] == "C03" and row["value"] == pytest.approx(2.5, rel=0.05) and row["alert"][1] < 2.5
    assert set(detector["amplifiers"]["C03"]) == {"verdict", *(metric.name for metric in AMPLIFIER)}
    assert detector["amplifiers"]["C03"]["flat_level_electron"] is None
    page = (tmp_path / "page" / f"{image}.html").read_text()
    assert "{{" not in page and "R22_S11 C03" in page and page.count("data:image/png;base64,") > 5
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing but itself


def test_exit_codes_say_what_happened(night: Night) -> None:
    bias = night.raw(Intent.BIAS, 10, 4)
    never = apflow(*words(night, bias))
    assert never.returncode == 75
    assert "image_timeout await_calibration_image: ImageTimeout" in " ".join(never.stdout.split())
    night.land(bias)
    other = apflow(*words(night, bias, intent="dark", exptime="30"))
    assert other.returncode == 65
    assert "is of type BIAS, it was announced as DARK" in " ".join(other.stdout.split())


def test_an_image_of_nan_is_an_alert(night: Night) -> None:
    raw = night.raw(Intent.BIAS, 20, 4)
    nan = {name: np.full(data.shape, np.nan, np.float32) for name, data in raw.segments.items()}
    night.land(dataclasses.replace(raw, segments=nan))
    request = check_request(
        "bias", "4", 0.0, "", str(night.root), [image_name(raw.info.exposure, "CC_O")], timeout_s=0.5
    )
    ((_, (outcome,)),) = run_calibration(request)
    assert (outcome.metrics["verdict"], outcome.metrics["n_dead_amplifiers"]) == (2, 16)
    assert all(value == value for value in outcome.metrics.values())


def test_a_worker_killed_loses_nothing_and_registers_once(night: Night) -> None:
    raws = {d: night.raw(Intent.DARK, 30, d) for d in CCDS}
    exposure, config = night.exposure(raws[4]), night.config
    config = dataclasses.replace(config, timing=dataclasses.replace(config.timing, image_timeout_s=30.0))
    ended, first = threading.Event(), threading.Event()

    def on_event(event: object) -> None:
        if isinstance(event, ChainEnded):
            first.set()

    def kill(client: Client) -> None:
        """The workers that compute, when one of three detectors has ended: its result is gone with them."""
        assert first.wait(60)
        resources = {w: v["resources"] for w, v in client.scheduler_info(n_workers=-1)["workers"].items()}
        for pid in client.run(os.getpid, workers=[w for w, r in resources.items() if "gather" not in r]).values():
            os.kill(pid, signal.SIGKILL)
        night.land(raws[4], raws[5])
        ended.set()

    night.land(raws[3])
    with local_cluster(1, warm_up=WARM_UP) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        with DaskRunner(client, gather_after_s=30.0, on_event=on_event) as runner:
            killer = threading.Thread(target=kill, args=(client,))
            killer.start()
            outcomes = runner.start(raw_calibration.exposure, exposure, list(CCDS), config).result(timeout_s=120)
            killer.join()
    assert ended.is_set() and [(o.detector, o.state) for o in outcomes] == [(d, State.DONE) for d in CCDS]
    with Butler.from_config(str(night.root)) as butler:
        where = {"instrument": "LSSTComCam", "exposure": exposure.exposure}
        refs = butler.query_datasets("calibration_metrics", checks_chain("LSSTComCam"), **where)
        assert sorted(int(ref.dataId["detector"]) for ref in refs) == list(CCDS)
        assert len(butler.query_datasets("calibration_exposure_metrics", checks_chain("LSSTComCam"), **where)) == 1
    # Once more, without Dask: the same files.
    paths = [Path(checks_path(night.root, "calibration_metrics", exposure, d)) for d in CCDS]
    before = [path.read_bytes() for path in paths]
    again = EagerRunner().run(raw_calibration.exposure, exposure, CCDS, config)
    assert [path.read_bytes() for path in paths] == before
    assert [o.metrics for o in again] == [o.metrics for o in outcomes]


def test_two_flats_on_several_detectors(
    night: Night, influxdb: InfluxServer, sasquatch: SasquatchProxy, tmp_path: Path
) -> None:
    flats = [night.raw(Intent.FLAT, n, d) for n in (40, 41) for d in CCDS]
    night.land(*flats)
    images = [image_name(flat.info.exposure, "CC_O") for flat in (flats[0], flats[-1])]
    request = check_request("flat", "3,4,5", EXPTIME_S[Intent.FLAT], "r", str(night.root), images, workers=1)
    (tmp_path / "token").write_text(sasquatch.token)
    config = dataclasses.replace(
        request.config, sasquatch=Sasquatch(url=sasquatch.url, token_file=str(tmp_path / "token"))
    )
    (_, first), (second, outcomes) = run_calibration(dataclasses.replace(request, config=config))
    points = influxdb.query(sasquatch.database, 'SELECT * FROM "lsst.prompt.calibration_detector"')
    assert len(points) == 2 * len(CCDS)  # sent before the workers went
    assert second.partner == images[0]
    assert all(o.state is State.DONE for o in (*first, *outcomes))
    assert not any("median_ptc_gain_ratio" in o.metrics for o in first)
    assert [o.metrics["median_ptc_gain_ratio"] for o in outcomes] == pytest.approx([1.0] * 3, abs=0.05)


def test_the_mosaic_has_the_detectors_in_their_places() -> None:
    camera = load_camera("comcam", 512)
    upper = np.zeros((128, 128), np.float32)
    upper[64:] = 1.0  # the half further from the origin is bright
    uri, low, high = mosaic(camera, {d.id: upper + (10.0 if d.name == "R22_S00" else 0.0) for d in camera.detectors})
    assert (low, high) == (0.0, 11.0)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))[..., 0]
    ny, nx = pixels.shape
    # S00 is at the lower left: +Y is up, +X to the right.
    assert pixels[ny - ny // 6 :, : nx // 6].mean() > 200 > 50 > pixels[: ny // 6, nx - nx // 6 :].mean()
    assert pixels[ny // 2 - 20, nx // 2] > pixels[ny // 2 + 20, nx // 2] == 0


def test_strips_hold_detectors_of_any_number_of_amplifiers() -> None:
    few = rows_of([[1.0, None], [2.0]])
    assert few.shape == (1, 4) and np.isnan(few).sum() == 2
    many = rows_of([[float(d), float(d)] for d in range(20)])
    assert many.shape == (2, 20) and many[1, 7] == 7.0
