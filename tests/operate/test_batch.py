"""What `apflow submit` takes and refuses; no batch system is needed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from apflow.cli import main
from apflow.errors import BadRequest
from apflow.io.butler import create_repository
from apflow.model.camera import load_camera
from apflow.model.next_visit import NextVisit, StartIntegration
from apflow.operate.batch import Limits, Submission, VisitArguments, load, plan
from apflow.operate.batch.announced import from_next_visit, images_of
from apflow.operate.batch.slurm import parse
from apflow.operate.batch.system import Phase, expand, ranges
from tests.operate.command import apflow

CAMERA = load_camera("lsstcam")
GROUP = "2026-11-23T02:11:33.123"
NEXT_VISIT: dict[str, Any] = {
    "groupId": GROUP,
    "coordinateSystem": 2,
    "position": [150.1, -2.25],
    "rotationSystem": 2,
    "cameraAngle": 25.0,
    "filters": "r_57",
    "nimages": 2,
    "instrument": "LSSTCam",
    "survey": "SURVEY",
}
START: dict[str, Any] = {
    "imageName": "MC_O_20261122_000007",
    "exposureTime": 15.0,
    "imagesInSequence": 2,
    "imageIndex": 1,
    "additionalKeys": "imageType:groupId",
    "additionalValues": f"OBJECT:{GROUP.replace(':', chr(92) + ':')}",
}
POINTING = ("--ra", "150.1", "--dec", "-2.25", "--exptime", "30", "--image", "MC_O_20261122_000007")


def exit_code(*words: str) -> int:
    """Of the command, run in this process."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(scope="module")
def butler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("submit") / "butler"
    create_repository(root, "lsstcam", 256)
    return root


@pytest.mark.parametrize(("which", "number"), [("science", 189), ("all", 205), ("R22", 9), ("R22_S11,3,R01_S00", 3)])
def test_any_detectors(butler: Path, which: str, number: int):
    arguments = VisitArguments(GROUP, 150.1, -2.25, "r_57", 30.0, ("MC_O_20261122_000007",))
    planned = plan(arguments, str(butler), which, "slurm")
    assert len(planned.detectors) == number
    for index, (detector, name) in enumerate(planned.detectors):
        assert CAMERA.detector(detector).name == name
        assert planned.line(index)[:6] == [name, "150.1", "-2.25", "r_57", "30.0", str(butler)]
    assert planned.folder == butler / "batch" / "2026-11-23T02-11-33.123"


def test_arguments_are_those_of_the_events():
    event, start = NextVisit.from_record(NEXT_VISIT), StartIntegration.from_record(START)
    assert from_next_visit(event, CAMERA) == VisitArguments(GROUP, 150.1, -2.25, "r_57", None, ())
    images = ("MC_O_20261122_000007", "MC_O_20261122_000008")
    assert images_of(start, GROUP, CAMERA) == images
    second = StartIntegration.from_record(START | {"imageName": images[1], "imageIndex": 2})
    assert images_of(second, GROUP, CAMERA) == images
    alone = StartIntegration.from_record(START | {"imagesInSequence": 0, "imageIndex": 0})
    assert images_of(alone, GROUP, CAMERA, event.nimages) == images
    with pytest.raises(BadRequest, match="is not the visit's"):
        images_of(start, "another", CAMERA)
    flat = StartIntegration.from_record(START | {"additionalKeys": "imageType", "additionalValues": "FLAT"})
    with pytest.raises(BadRequest, match=rf"image {images[0]} is a flat, which is no visit; .*apflow calibration"):
        images_of(flat, GROUP, CAMERA)
    with pytest.raises(BadRequest, match="OBSERVED, not ICRS"):
        from_next_visit(NextVisit.from_record(NEXT_VISIT | {"coordinateSystem": 3}), CAMERA)
    several = NextVisit.from_record(NEXT_VISIT | {"filters": "r_57,i_39"})
    assert from_next_visit(several, CAMERA).physical_filter == ""


def test_a_record_is_read_as_it_was_written(tmp_path: Path):
    made = Submission(
        tmp_path / "s",
        "slurm",
        "/b",
        VisitArguments("g", 1.5, -2.25),
        ((94, "R22_S11"),),
        "/c",
        ("--x",),
        "duckdb:///p",
        Limits(3),
    ).next_attempt((0,))
    made.save()
    assert load(made.folder) == made
    assert not (made.folder / "manifest.tsv").exists()
    told = VisitArguments("g", 1.5, -2.25, "", 30.0, ("MC_O_20261122_000007",))
    made.completed(told).save()
    words = ["R22_S11", "1.5", "-2.25", "none", "30.0", "/b", "MC_O_20261122_000007", "--ppdb", "duckdb:///p", "--x"]
    assert (made.folder / "manifest.tsv").read_text() == "\t".join(words) + "\n"


@pytest.mark.parametrize("indices", [(0,), (0, 1, 2), (3, 5, 6, 7, 188)])
def test_lists_of_tasks(indices: tuple[int, ...]):
    assert expand(ranges(indices)) == indices


def test_tasks_that_wait_share_a_line():
    """As SLURM 22.05 prints an array of which one task runs."""
    lines = (
        "JobId=2 ArrayJobId=1 ArrayTaskId=0 JobName=wrap JobState=RUNNING Reason=None ExitCode=0:0 BatchHost=node00 \n"
        "JobId=1 ArrayJobId=1 ArrayTaskId=1,4-6%2 JobName=wrap JobState=PENDING Reason=JobArrayTaskLimit ExitCode=0:0\n"
    )
    states = parse(lines)
    assert {index: state.phase for index, state in states.items()} == {
        0: Phase.RUNNING,
        **dict.fromkeys((1, 4, 5, 6), Phase.WAITING),
    }
    assert states[5].told == "PENDING (JobArrayTaskLimit)" and states[0].host == "node00"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--system", "pbs", *POINTING), "--system 'pbs' is not accepted: slurm, htcondor"),
        (("--detectors", "R22_S99", *POINTING), "LSSTCam has no detector 'R22_S99'"),
        ((*POINTING[2:],), "say which visit: VISIT, or --ra, --dec, --exptime and --image"),
        (("--ra", "361", *POINTING[2:]), "RA 361.0 is out of range: 0 to 360"),
        ((*POINTING, "--filter", "x_1"), "LSSTCam has no filter 'x_1'"),
        ((*POINTING, *POINTING[-2:]), "one, or the two snaps of a visit"),
        ((*POINTING, "--image", "nonsense"), "image 'nonsense' is not accepted for LSSTCam: MC_O_YYYYMMDD_NNNNNN"),
        (("2026112200007",), "neither a JSON file of nextVisit nor registered"),
        (("9" * 30,), "neither a JSON file of nextVisit nor registered"),
        (("no.json",), "event no.json: No such file or directory"),
        ((*POINTING, "--throttle", "-1"), "--throttle"),
        ((*POINTING, "--folder", "/proc/nowhere"), "folder /proc/nowhere: "),
    ],
)
def test_bad_requests(butler: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]):
    assert exit_code("submit", *words, "--butler", str(butler)) == 2
    assert told in capsys.readouterr().err
    assert not (butler / "batch").exists()


@pytest.mark.parametrize(("system", "program"), [("slurm", "squeue"), ("htcondor", "condor_q")])
def test_no_batch_system_on_this_machine(butler: Path, tmp_path: Path, system: str, program: str):
    nothing = dict(os.environ) | {"PATH": str(tmp_path)}
    where = ("--butler", str(butler), "--folder", str(tmp_path / "s"))
    ended = apflow("submit", *POINTING, *where, "--system", system, environment=nothing)
    assert ended.returncode == 69
    assert f"{program} is not on the PATH" in ended.stderr


def test_events_in_files_that_are_no_events(butler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "event.json"
    for text, told in (
        ("{", "is no JSON"),
        ("[]", "a JSON object with the event's fields"),
        (json.dumps(NEXT_VISIT | {"position": [400, 0]}), "nextVisit.position [400, 0] is not accepted"),
        (json.dumps(NEXT_VISIT | {"instrument": "LSSTComCam"}), "nextVisit.instrument 'LSSTComCam' is not accepted"),
    ):
        path.write_text(text)
        assert exit_code("submit", str(path), "--butler", str(butler)) == 2
        assert told in capsys.readouterr().err


def test_no_submission_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for command in ("status", "cancel"):
        assert exit_code("submit", command, str(tmp_path)) == 2
        assert f"no submission in {tmp_path}" in capsys.readouterr().err


def test_only_the_images_may_come_later(tmp_path: Path):
    early = Submission(tmp_path, "slurm", "/b", VisitArguments("g", 1.5, -2.25), ((94, "R22_S11"),), "/c")
    late = early.completed(VisitArguments("g", 1.5, -2.25, "", 30.0, ("MC_O_20261122_000007",)))
    assert early.same_request(late) and late.same_request(early)
    other = late.completed(VisitArguments("g", 1.5, -2.25, "", 30.0, ("MC_O_20261122_000008",)))
    assert not late.same_request(other)
    assert not early.same_request(dataclasses.replace(early, arguments=VisitArguments("g", 1.5, -2.5)))
