"""Batch jobs on a real SLURM; small commands in place of visit.sh, which test_batch_visit.py runs."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from apflow.errors import BadRequest, ServiceError
from apflow.io.butler import create_repository
from apflow.model.ledger import State
from apflow.operate.batch import (
    Limits,
    Phase,
    Submission,
    TaskReport,
    VisitArguments,
    cancel,
    load,
    refresh,
    submit,
    wait,
)
from apflow.operate.batch.slurm import Slurm
from apflow.operate.services.slurm import SlurmCluster
from tests.operate.command import apflow

IMAGE = "MC_O_20261122_000001"
#: A job that says that it has begun, and runs until it is told that it may end.
UNTIL_TOLD = 'touch "../began.$1"; until [[ -e ../go ]]; do sleep 0.05; done; echo "$@"'


@pytest.fixture
def system(slurm: SlurmCluster) -> Iterator[Slurm]:
    """The batch system; a test that fails leaves no jobs in the way of the next."""
    yield Slurm(slurm.environment)
    slurm.run("scancel", "--user", getpass.getuser())
    deadline = time.monotonic() + 30
    while slurm.run("squeue", "--noheader"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty: the jobs here don't open it, but its PPDB has the ledger."""
    root = tmp_path_factory.mktemp("batch") / "butler"
    create_repository(root, "lsstcam", 256)
    return root


@pytest.fixture
def planned(tmp_path: Path, repository: Path) -> Callable[..., Submission]:
    """Plans of jobs that run a line of shell."""

    def plan(line: str, detectors: Sequence[int] = range(9), images: tuple[str, ...] = (IMAGE,), **limits: int):
        folder = tmp_path / "sub mission"
        command = tmp_path / "command.sh"
        command.write_text(line)
        return Submission(
            folder=folder,
            system="slurm",
            butler=str(repository),
            arguments=VisitArguments("a group", 150.1, -2.25, "r_03", 30.0 if images else None, images),
            detectors=tuple((d, f"CCD{d}") for d in detectors),
            command=str(command),
            limits=Limits(**{"memory_mb": 100} | limits),
        )

    return plan


def until(system: Slurm, folder: Path, reached: Callable[[tuple[TaskReport, ...]], bool]) -> tuple[TaskReport, ...]:
    """Look until the reports have something to say."""
    deadline = time.monotonic() + 30
    while not reached(reports := refresh(folder, system)):
        assert time.monotonic() < deadline, reports
        time.sleep(0.1)
    return reports


def end(system: Slurm, folder: Path) -> tuple[TaskReport, ...]:
    return wait(folder, system, lambda reports: None)


def test_any_list_of_detectors_and_each_ones_arguments(system: Slurm, planned: Callable[..., Submission]):
    """Ids with gaps; what a job prints and how it ends is that detector's."""
    sent = submit(planned('echo "$@"; [[ $1 != CCD40 ]] || exit 75', (3, 40, 7, 188)), system)
    reports = end(system, sent.folder)
    assert [(one.detector, one.state, one.exit_code, one.attempts) for one in reports] == [
        (3, State.DONE, 0, 1),
        (40, State.IMAGE_TIMEOUT, 75, 1),
        (7, State.DONE, 0, 1),
        (188, State.DONE, 0, 1),
    ]
    for index, one in enumerate(reports):
        printed = (sent.folder / "logs" / f"{index}.1.log").read_text()
        assert printed == f"CCD{one.detector} 150.1 -2.25 r_03 30.0 {sent.butler} {IMAGE}\n"


def test_exit_codes_are_outcomes(system: Slurm, planned: Callable[..., Submission]):
    expected = {
        1: (State.FAILED, "so it was"),
        2: (State.FAILED, "a bad request; so it was"),
        20: (State.NO_TEMPLATE, "so it was"),
        65: (State.BAD_DATA, "so it was"),
        69: (State.FAILED, "a service is not there; so it was"),
        3: (State.FAILED, "exit code 3; so it was"),
    }
    sent = submit(planned("echo so it was >&2; exit ${1#CCD}", tuple(expected)), system)
    reports = end(system, sent.folder)
    assert {one.exit_code: (one.state, one.cause) for one in reports} == expected
    assert {one.attempts for one in reports} == {1}


def test_no_more_than_the_throttle_run_at_one_time(system: Slurm, planned: Callable[..., Submission]):
    sent = submit(planned("sleep 0.3", range(5), throttle=2), system)
    times = [(one.began_unix or 0.0, one.ended_unix or 0.0) for one in end(system, sent.folder)]
    most = max(sum(began <= at < ended for began, ended in times) for at, _ in times)
    assert most == 2


def test_a_killed_job_is_told_and_sent_again(
    system: Slurm, slurm: SlurmCluster, planned: Callable[..., Submission], tmp_path: Path
):
    sent = submit(planned(UNTIL_TOLD, range(3)), system)
    # SLURM calls a job running before its shell does, and a signal that comes earlier is lost.
    until(system, sent.folder, lambda reports: len(list(tmp_path.glob("began.*"))) == 3)
    slurm.run("scancel", "--batch", "--signal=KILL", f"{sent.attempts[0].job}_1")
    told = until(system, sent.folder, lambda reports: reports[1].phase is Phase.ENDED)
    assert told[1].died and told[1].state is None and told[0].phase is Phase.RUNNING
    assert "sends it once more" in told[1].cause
    (tmp_path / "go").touch()
    reports = end(system, sent.folder)
    assert [(one.state, one.attempts) for one in reports] == [(State.DONE, 1), (State.DONE, 2), (State.DONE, 1)]
    assert [attempt.indices for attempt in load(sent.folder).attempts] == [(0, 1, 2), (1,)]
    # Nothing more is owed: looking again sends nothing.
    assert end(system, sent.folder) == reports
    assert len(load(sent.folder).attempts) == 2


def test_a_job_that_is_killed_twice_has_failed(system: Slurm, planned: Callable[..., Submission]):
    sent = submit(planned("kill -KILL $$", [0]), system)
    (report,) = end(system, sent.folder)
    assert (report.state, report.attempts, report.exit_code, report.died) == (State.FAILED, 2, 137, True)
    assert report.cause.startswith("the job died: ")


def test_jobs_of_a_node_that_goes_down_run_elsewhere(
    system: Slurm, slurm: SlurmCluster, planned: Callable[..., Submission], tmp_path: Path
):
    sent = submit(planned(UNTIL_TOLD, range(6)), system)
    before = until(system, sent.folder, lambda reports: all(one.phase is Phase.RUNNING for one in reports))
    lost = [index for index, one in enumerate(before) if one.host == "node01"]
    assert 0 < len(lost) < 6
    try:
        slurm.run("scontrol", "update", "nodename=node01", "state=down", "reason=test")
        told = until(system, sent.folder, lambda reports: sum(one.died for one in reports) == len(lost))
        assert {told[index].told for index in lost} == {"NODE_FAIL"}
        (tmp_path / "go").touch()
        reports = end(system, sent.folder)
    finally:
        if "down" in slurm.run("sinfo", "--noheader", "--nodes=node01", "--format=%T"):
            slurm.run("scontrol", "update", "nodename=node01", "state=resume")
    assert all(one.state is State.DONE for one in reports)
    assert [index for index, one in enumerate(reports) if one.attempts == 2] == lost


def test_a_cancelled_job_is_not_sent_again(system: Slurm, planned: Callable[..., Submission]):
    sent = submit(planned("sleep 600", [0]), system)
    until(system, sent.folder, lambda reports: reports[0].phase is Phase.RUNNING)
    cancel(sent.folder, system)
    (report,) = end(system, sent.folder)
    assert (report.state, report.attempts, report.told) == (State.CANCELLED, 1, "CANCELLED")


def test_sent_before_the_images_have_names(system: Slurm, planned: Callable[..., Submission]):
    """At nextVisit; the names come with startIntegration."""
    early = submit(planned('echo "$@"', range(2), images=()), system)
    until(system, early.folder, lambda reports: all(one.phase is Phase.RUNNING for one in reports))
    complete = submit(planned('echo "$@"', range(2), images=(IMAGE, "MC_O_20261122_000002")), system)
    assert complete.attempts == early.attempts
    assert all(one.state is State.DONE for one in end(system, early.folder))
    printed = (early.folder / "logs" / "1.1.log").read_text()
    assert printed.endswith(f" 30.0 {early.butler} {IMAGE} MC_O_20261122_000002\n")


def test_the_names_never_come(system: Slurm, planned: Callable[..., Submission]):
    sent = submit(replace(planned("exit 1", [0], images=()), images_wait_s=1), system)
    (report,) = end(system, sent.folder)
    assert report.state is State.IMAGE_TIMEOUT and "names of the images were not known within 1 s" in report.cause


def test_a_submission_is_sent_once(system: Slurm, planned: Callable[..., Submission]):
    """Again, and from a record whose writer died before it could note the job."""
    plan = planned("exit 0", range(2))
    sent = submit(plan, system)
    assert submit(plan, system) == sent
    sent.with_job(1, "").save()
    assert submit(plan, system) == sent
    with pytest.raises(BadRequest, match="holds another submission"):
        submit(planned("exit 0", range(3)), system)


def test_what_slurm_has_forgotten_is_known_from_the_folder(system: Slurm, planned: Callable[..., Submission]):
    sent = submit(planned("exit 65", range(2)), system)
    before = end(system, sent.folder)
    (sent.folder / "states.json").unlink()
    lost = sent.with_job(1, "99999999")
    lost.save()
    after = refresh(sent.folder, system)
    assert [(one.state, one.exit_code) for one in after] == [(one.state, one.exit_code) for one in before]


def test_refused_by_the_cluster(system: Slurm, planned: Callable[..., Submission]):
    """It leaves the folder to a better request."""
    plan = planned("exit 0", [0])
    with pytest.raises(BadRequest, match=r"sbatch was refused.*invalid partition"):
        submit(replace(plan, limits=replace(plan.limits, partition="nowhere")), system)
    with pytest.raises(BadRequest, match="sbatch was refused"):
        submit(replace(plan, limits=replace(plan.limits, memory_mb=10**9)), system)
    assert end(system, submit(plan, system).folder)[0].state is State.DONE


def test_a_cluster_that_is_not_there(planned: Callable[..., Submission], slurm: SlurmCluster, tmp_path: Path):
    """Nothing is sent, and the record stays for the same call again."""
    text = slurm.configuration.read_text()
    port = next(line for line in text.splitlines() if line.startswith("SlurmctldPort="))
    (tmp_path / "slurm.conf").write_text(text.replace(port, "SlurmctldPort=1\nMessageTimeout=1"))
    nowhere = Slurm(slurm.environment | {"SLURM_CONF": str(tmp_path / "slurm.conf")})
    plan = planned("exit 0", [0])
    with pytest.raises(ServiceError, match="cannot reach the batch system"):
        submit(plan, nowhere)
    assert end(Slurm(slurm.environment), submit(plan, Slurm(slurm.environment)).folder)[0].state is State.DONE


def test_from_next_visit_to_start_integration_by_the_command(slurm: SlurmCluster, repository: Path, tmp_path: Path):
    """The same command twice; the second time it has the event that names the images, and follows the jobs."""
    group, snaps = "2026-11-23T02:11:33.123", ["MC_O_20261122_000007", "MC_O_20261122_000008"]
    announced = {"groupId": group, "coordinateSystem": 2, "position": [150.1, -2.25], "rotationSystem": 2}
    announced |= {"cameraAngle": 25.0, "filters": "r_57", "nimages": 2, "instrument": "LSSTCam"}
    (tmp_path / "next.json").write_text(json.dumps(announced))
    (tmp_path / "start.json").write_text(json.dumps({"imageName": snaps[0], "exposureTime": 15.0}))
    (tmp_path / "command.sh").write_text('echo "$@"; [[ $1 != R22_S11 ]] || exit 20\n')
    words = ["submit", str(tmp_path / "next.json"), "--butler", str(repository), "--detectors", "R22", "--memory", "99"]
    words += ["--command", str(tmp_path / "command.sh"), "--timeout", "30"]
    early = apflow(*words, "--no-wait", environment=slurm.environment)
    assert early.returncode == 0, early.stderr
    folder = repository / "batch" / group.replace(":", "-")
    assert not (folder / "manifest.tsv").exists()
    ended = apflow(*words, "--start", str(tmp_path / "start.json"), environment=slurm.environment)
    assert ended.returncode == 0, ended.stderr
    assert "R22_S11  no_template   FAILED, exit 20" in ended.stdout
    printed = (folder / "logs" / "0.1.log").read_text()
    assert printed == f"R22_S00 150.1 -2.25 r_57 15.0 {repository} {' '.join(snaps)} --timeout 30\n"
    gone = apflow("submit", "cancel", str(folder), environment=slurm.environment)
    assert gone.returncode == 0 and f"cancelled what was left of {folder}" in gone.stdout
