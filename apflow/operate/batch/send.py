"""Send a visit's jobs, go on with what was sent, wait for it, cancel it.

Whatever moment a process dies at, the same call again goes on from the
record: a job is looked for by its name before it is sent a second time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from apflow.errors import BadRequest
from apflow.model.camera import load_camera
from apflow.model.ids import parse_image_name
from apflow.operate.alone import alone
from apflow.operate.batch.submission import RECORD, Limits, Submission, VisitArguments, load
from apflow.operate.batch.system import BatchSystem, Phase, open_system
from apflow.operate.batch.track import TaskReport, died, look, read_ledger, report
from apflow.operate.repository import repository_config

_POLL_S = 1.0


def plan(
    arguments: VisitArguments,
    butler: str,
    detectors: str | Sequence[int | str],
    system: str,
    *,
    folder: Path | None = None,
    limits: Limits | None = None,
    timeout_s: float | None = None,
    ppdb: str = "",
    alerts: str = "",
    command: Path | None = None,
    images_wait_s: int = 300,
) -> Submission:
    """What would be sent; nothing is yet.

    Parameters
    ----------
    arguments : `VisitArguments`
    butler : `str`
        Root of the repository.
    detectors : `str` or sequence
        As `apflow.model.camera.Camera.select` accepts them.
    system : `str`
        ``slurm`` or ``htcondor``.
    folder : `pathlib.Path`, optional
        Default: in the repository, by the visit's group.
    limits, command, images_wait_s
        See `Submission`; the default command is ``visit.sh``.
    timeout_s : `float`, optional
        How long a job waits for its images; default: the command's.
    ppdb, alerts : `str`, optional
        URLs; default: the repository's.

    Raises
    ------
    BadRequest
        An argument is not acceptable.
    """
    open_system(system)
    config = repository_config(butler, ppdb, alerts)
    camera = load_camera(config.camera, config.size)
    for image in arguments.images:
        if not image.startswith(camera.image_prefix) or parse_image_name(image).detector is not None:
            form = f"{camera.image_prefix}_YYYYMMDD_NNNNNN"
            raise BadRequest(f"image {image!r} is not accepted for {camera.instrument}: {form}")
    chosen = tuple((number, camera.detector(number).name) for number in camera.select(detectors))
    script = Path(str(command or resources.files("apflow.cluster") / "visit.sh")).absolute()
    if not script.is_file():
        raise BadRequest(f"command {script} is not there; accepted: a script on a file system that all nodes share")
    timeout = () if timeout_s is None else ("--timeout", f"{timeout_s:g}")
    sent_to = ("--alerts", alerts) if alerts else ()
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in arguments.group)
    return Submission(
        folder=(folder or Path(config.butler) / "batch" / name).absolute(),
        system=system,
        butler=config.butler,
        arguments=arguments,
        detectors=chosen,
        command=str(script),
        options=(*timeout, *sent_to),
        ppdb=ppdb,
        limits=limits or Limits(),
        images_wait_s=images_wait_s,
    )


def submit(planned: Submission, system: BatchSystem) -> Submission:
    """Send all detectors as one array; what was sent before is not sent again.

    A submission that went without the names of the images is completed by a
    plan that has them.

    Parameters
    ----------
    planned : `Submission`
        See `plan`.
    system : `BatchSystem`

    Raises
    ------
    BadRequest
        The batch system refuses, the folder can't be written to, or is
        another submission's.
    ServiceError
        The batch system can't be reached; the same call again goes on.
    """
    with alone(planned.folder):
        submission = planned.next_attempt(tuple(range(len(planned.detectors))))
        if (planned.folder / RECORD).exists():
            submission = load(planned.folder)
            if not submission.same_request(planned):
                raise BadRequest(f"folder {planned.folder} holds another submission; give another --folder")
            if planned.arguments.images:
                submission = submission.completed(planned.arguments)
        submission.save()
        return _send(submission, system)


def refresh(folder: Path, system: BatchSystem, *, resubmit: bool = False) -> tuple[TaskReport, ...]:
    """How each detector stands now.

    Parameters
    ----------
    folder : `pathlib.Path`
        Of the submission.
    system : `BatchSystem`
    resubmit : `bool`, optional
        Send jobs that died once more.

    Raises
    ------
    ServiceError
        The batch system can't be reached.
    """
    with alone(folder):
        submission = load(folder)
        told = look(submission, system)
        reports = report(submission, told, {})
        again = died(reports) if resubmit else ()
        if again:
            submission = submission.next_attempt(again)
            submission.save()
            reports = report(_send(submission, system), told, {})
    if all(one.phase is Phase.ENDED for one in reports):
        # Only now: whoever opens an embedded PPDB while jobs come and go is in their way.
        return report(submission, told, read_ledger(submission, repository_config(submission.butler, submission.ppdb)))
    return reports


def wait(folder: Path, system: BatchSystem, tell: Callable[[tuple[TaskReport, ...]], None]) -> tuple[TaskReport, ...]:
    """Follow a submission to its end, sending jobs that died once more.

    Parameters
    ----------
    folder : `pathlib.Path`
        Of the submission.
    system : `BatchSystem`
    tell : callable
        Called with all reports whenever they have changed.
    """
    before: tuple[TaskReport, ...] = ()
    while True:
        reports = refresh(folder, system, resubmit=True)
        if reports != before:
            tell(reports)
        if all(one.phase is Phase.ENDED for one in reports):
            return reports
        before = reports
        time.sleep(_POLL_S)


def cancel(folder: Path, system: BatchSystem) -> None:
    """End all jobs of a submission.

    Raises
    ------
    ServiceError
        The batch system can't be reached.
    """
    with alone(folder):
        for attempt in load(folder).attempts:
            if job := attempt.job or system.find(attempt.name):
                system.cancel(job)


def _send(submission: Submission, system: BatchSystem) -> Submission:
    """Send the attempts that are not known to be sent."""
    for attempt in submission.attempts:
        if attempt.job:
            continue
        try:
            job = system.find(attempt.name) or system.submit(submission, attempt)
        except BadRequest:
            if attempt.number == 1:
                (submission.folder / RECORD).unlink()  # so that another request may take its place
            raise
        submission = submission.with_job(attempt.number, job)
        submission.save()
    return submission
