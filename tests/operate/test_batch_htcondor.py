"""Submit descriptions for HTCondor, as HTCondor's own bindings read them; no pool runs here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from apflow.model.camera import load_camera
from apflow.operate.batch.htcondor import HTCondor, describe, parse
from apflow.operate.batch.submission import Limits, Submission, VisitArguments
from apflow.operate.batch.system import Phase, TaskState

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that no pool is configured
    if sys.platform != "linux":
        pytest.skip("HTCondor's bindings are Linux's", allow_module_level=True)
    import classad
    import htcondor

CAMERA = load_camera("lsstcam")
IMAGES = ("MC_O_20261122_000001", "MC_O_20261122_000002")


def submission(folder: Path, **more: Any) -> Submission:
    """All science detectors of LSSTCam; each job prints its words."""
    command = folder / "it's a command.sh"
    command.write_text('printf "%s\\n" "$@"\n')
    made = Submission(
        folder=folder,
        system="htcondor",
        butler="/a repository",
        arguments=VisitArguments("2026-11-23T02:11:33.123", 150.1, -2.25, "r_57", 15.0, IMAGES),
        detectors=tuple((d, CAMERA.detector(d).name) for d in CAMERA.select("science")),
        command=str(command),
        **more,
    )
    return made.next_attempt(tuple(range(len(made.detectors))))


def job_ads(made: Submission) -> list[Any]:
    return list(htcondor.Submit(describe(made, made.attempts[-1])).jobs(clusterid=7))


def test_each_of_189_ads_runs_its_detector(tmp_path: Path):
    folder = tmp_path / 'a "folder"'
    folder.mkdir()
    made = submission(folder)
    made.save()
    ads = job_ads(made)
    assert len(ads) == len(made.detectors) == 189
    assert [ad["ApflowIndex"] for ad in ads] == list(range(189))
    for ad in (ads[0], ads[94], ads[188]):
        # HTCondor starts a job from these two and from nothing else.
        words = [ad["Cmd"], *classad.ExprTree("ArgsToList(Arguments, 2)").eval(ad)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ad["Iwd"], env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        name = made.detectors[ad["ProcId"]][1]
        assert done.stdout.split("\n")[:-1] == [name, "150.1", "-2.25", "r_57", "15.0", "/a repository", *IMAGES]
        assert (folder / "ended" / f"1.{ad['ProcId']}").read_text().startswith("0 ")
    assert {ad["Out"] for ad in ads} == {f"logs/{index}.1.log" for index in range(189)}


def test_what_a_job_asks_for(tmp_path: Path):
    ads = job_ads(submission(tmp_path, limits=Limits(memory_mb=3072, minutes=4)))
    for ad in ads:
        assert (ad["RequestMemory"], ad["RequestCpus"], ad["JobUniverse"]) == (3072, 1, 5)
        assert ad["ShouldTransferFiles"] == "NO" and ad["JobBatchName"].startswith("apflow-")
        assert not {"MaxRetries", "JobMaxRetries", "OnExitRemove", "OnExitHold"} & set(ad)  # ended is ended


def test_htcondor_runs_no_job_twice_and_none_too_long(tmp_path: Path):
    """The policy of the ads, evaluated by HTCondor's own library."""
    ad = job_ads(submission(tmp_path, limits=Limits(minutes=4)))[0]

    def removed(**now: int) -> bool:
        job = classad.ClassAd(dict(ad) | now)
        return bool(job.eval("PeriodicRemove"))

    began = int(ad["QDate"])
    assert not removed(JobStatus=1, NumJobStarts=0)
    assert not removed(JobStatus=2, NumJobStarts=1, EnteredCurrentStatus=began)
    assert removed(JobStatus=2, NumJobStarts=1, EnteredCurrentStatus=began - 300)
    assert removed(JobStatus=1, NumJobStarts=1)
    assert removed(JobStatus=5, NumJobStarts=0)


def test_only_the_tasks_of_an_attempt(tmp_path: Path):
    made = submission(tmp_path, limits=Limits(throttle=3)).next_attempt((4, 17, 188))
    assert [ad["ApflowIndex"] for ad in job_ads(made)] == [4, 17, 188]
    assert htcondor.Submit(describe(made, made.attempts[-1]))["max_materialize"] == "3"


def test_states_from_ads(tmp_path: Path):
    """Ads in the JSON that HTCondor's own library writes; attributes by its manual, from no pool."""
    ads = job_ads(submission(tmp_path))
    now: list[dict[str, Any]] = [
        {"JobStatus": 1},
        {"JobStatus": 2, "NumJobStarts": 1, "RemoteHost": "slot1_3@node7.example.org"},
        {"JobStatus": 4, "ExitBySignal": False, "ExitCode": 75, "LastRemoteHost": "slot1@node8"},
        {"JobStatus": 4, "ExitBySignal": True, "ExitSignal": 9, "LastRemoteHost": "slot1@node8"},
        {"JobStatus": 3, "LastJobStatus": 1, "NumJobStarts": 1},
        {"JobStatus": 3, "LastJobStatus": 2, "NumJobStarts": 1},
        {"JobStatus": 5, "HoldReason": "no disk"},
    ]
    written = [json.loads(classad.ClassAd(dict(ad) | told).printJson()) for ad, told in zip(ads, now, strict=False)]
    assert parse(written) == {
        0: TaskState(Phase.WAITING, "IDLE"),
        1: TaskState(Phase.RUNNING, "RUNNING", host="node7.example.org"),
        2: TaskState(Phase.ENDED, "COMPLETED", 75, host="node8"),
        3: TaskState(Phase.ENDED, "COMPLETED", None, 9, "node8", died=True),
        4: TaskState(Phase.ENDED, "REMOVED", died=True),
        5: TaskState(Phase.ENDED, "REMOVED"),
        6: TaskState(Phase.WAITING, "HELD (no disk)"),
    }
    assert HTCondor.name == "htcondor"
