"""``apflow submit``: a visit as batch jobs."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from apflow.errors import BadRequest

if TYPE_CHECKING:
    from apflow.operate.batch import TaskReport, VisitArguments


class _SendFirst(TyperGroup):
    """A group in which words that name none of its commands are those of ``send``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["send", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_SendFirst,
    no_args_is_help=True,
    help="A visit as batch jobs, one per detector: `apflow submit VISIT ...` is `apflow submit send VISIT ...`.\n\n"
    "Example: apflow submit MC_O_20250420_000001 --butler replay/butler --detectors R22_S11",
)

_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the submission, as `send` printed it.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object a detector and line.")]


@app.command()
def send(
    visit: Annotated[
        str,
        typer.Argument(
            metavar="[VISIT]",
            help="JSON file with the fields of nextVisit; or, of a visit whose raws are registered, its id, its group "
            "or the name of an image. Without: --ra, --dec, --exptime and --image.",
        ),
    ] = "",
    butler: Annotated[str, typer.Option(help="Butler repository.")] = "",
    system: Annotated[str, typer.Option(help="slurm or htcondor.")] = "slurm",
    detectors: Annotated[
        str, typer.Option(help="science, all, or a comma list of rafts (R22), names (R22_S11) and ids (94).")
    ] = "science",
    start: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file with the fields of startIntegration.")
    ] = None,
    ra: Annotated[float | None, typer.Option(metavar="DEG", help="Boresight right ascension, ICRS degrees.")] = None,
    dec: Annotated[float | None, typer.Option(metavar="DEG", help="Boresight declination, ICRS degrees.")] = None,
    physical_filter: Annotated[str, typer.Option("--filter", help="Physical filter or band.")] = "",
    exptime: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Expected exposure time of an image.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="Name of the image, MC_O_YYYYMMDD_NNNNNN; twice for two snaps.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="How long a job waits for its images; default: 120.")
    ] = None,
    ppdb: Annotated[str, typer.Option(help="URL of the PPDB; default: the repository's.")] = "",
    alerts: Annotated[str, typer.Option(help="Where alerts go, as for `apflow detector`.")] = "",
    throttle: Annotated[int, typer.Option(min=0, metavar="K", help="Jobs that run at one time; 0 for no limit.")] = 0,
    memory: Annotated[int, typer.Option(min=1, metavar="MB", help="Memory of each job.")] = 4096,
    minutes: Annotated[int, typer.Option(min=1, metavar="N", help="Time limit of each job.")] = 15,
    partition: Annotated[str, typer.Option(help="SLURM's partition; default: the cluster's.")] = "",
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the submission, which all nodes see; default: in the repository."),
    ] = None,
    command: Annotated[
        Path | None,
        typer.Option(
            metavar="SCRIPT", help="What each job runs instead of visit.sh, with its arguments: a site's own set-up."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the jobs to their end.")] = True,
    as_json: _Json = False,
) -> None:
    """Send one job per detector, as one array, and follow them (DMTN-092 section 2.1).

    At nextVisit the images have no names yet: the jobs are sent all the same and wait for them, until the same
    command is given again with --start or --image. What was sent is never sent twice: the same command goes on
    with it. A job whose node failed, or that was killed, is sent once more.

    Exit codes: 0 no detector failed, 1 one did or its image did not come, 2 bad request, 69 the batch system is
    not there.

    Example: apflow submit MC_O_20250420_000001 --butler replay/butler --detectors R22_S11 --system slurm
    """
    from apflow.operate import batch

    if not butler:
        raise BadRequest("no Butler repository is given; give --butler")
    arguments = _arguments(visit, butler, start, ra, dec, physical_filter, exptime, tuple(image or ()))
    limits = batch.Limits(throttle=throttle, memory_mb=memory, minutes=minutes, partition=partition)
    planned = batch.plan(
        arguments,
        butler,
        detectors,
        system,
        folder=folder,
        limits=limits,
        timeout_s=timeout,
        ppdb=ppdb,
        alerts=alerts,
        command=command,
    )
    door = batch.open_system(system)
    sent = batch.submit(planned, door)
    jobs = ", ".join(attempt.job for attempt in sent.attempts)
    typer.echo(f"{len(sent.detectors)} detectors, {system} job {jobs}, folder {sent.folder}", err=as_json)
    if wait:
        _end(batch.wait(sent.folder, door, _tell), as_json)


@app.command()
def status(
    folder: _Folder,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the jobs to their end.")] = False,
    as_json: _Json = False,
) -> None:
    """Say how each detector of a submission stands.

    Example: apflow submit status replay/butler/batch/2025-04-21T02-24-00.000
    """
    from apflow.operate import batch

    door = batch.open_system(batch.load(folder).system)
    _end(batch.wait(folder, door, _tell) if wait else batch.refresh(folder, door), as_json)


@app.command()
def cancel(folder: _Folder) -> None:
    """End all jobs of a submission.

    Example: apflow submit cancel replay/butler/batch/2025-04-21T02-24-00.000
    """
    from apflow.operate import batch

    batch.cancel(folder, batch.open_system(batch.load(folder).system))
    typer.echo(f"cancelled what was left of {folder}")


def _arguments(
    visit: str,
    butler: str,
    start: Path | None,
    ra: float | None,
    dec: float | None,
    physical_filter: str,
    exptime: float | None,
    images: tuple[str, ...],
) -> VisitArguments:
    """What the events, the repository and the options say, the options last."""
    from apflow.model.camera import load_camera
    from apflow.model.next_visit import NextVisit, StartIntegration
    from apflow.operate.batch import VisitArguments, announced
    from apflow.operate.repository import repository_config

    config = repository_config(butler)
    camera = load_camera(config.camera, config.size)
    nimages = 0
    if not visit:
        if ra is None or dec is None or not images:
            raise BadRequest("say which visit: VISIT, or --ra, --dec, --exptime and --image")
        arguments = VisitArguments(images[0], ra, dec, "", exptime, images)
    elif Path(visit).suffix == ".json":
        event = NextVisit.from_record(announced.read_event(Path(visit)))
        nimages = event.nimages
        arguments = announced.from_next_visit(event, camera, exptime)
    else:
        arguments = announced.from_repository(visit, butler)
    if start:
        opened = StartIntegration.from_record(announced.read_event(start))
        images = images or announced.images_of(opened, arguments.group, camera, nimages)
        exptime = opened.exposure_time_s if exptime is None else exptime
    named = camera.filter(physical_filter).physical_filter if physical_filter else ""
    return dataclasses.replace(
        arguments,
        ra_deg=arguments.ra_deg if ra is None else ra,
        dec_deg=arguments.dec_deg if dec is None else dec,
        physical_filter=named or arguments.physical_filter,
        exposure_time_s=arguments.exposure_time_s if exptime is None else exptime,
        images=images or arguments.images,
    )


def _tell(reports: tuple[TaskReport, ...]) -> None:
    counts = Counter(one.state or one.phase for one in reports)
    again = sum(one.attempts > 1 for one in reports)
    line = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
    typer.echo(line + (f" ({again} sent again)" if again else ""), err=True)


def _end(reports: tuple[TaskReport, ...], as_json: bool) -> None:
    """Print a line for each detector and leave with an exit code."""
    from apflow.model.ledger import State

    for one in reports:
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(one)))
            continue
        parts = [f"{one.name:<8} {one.state or one.phase:<13} {one.told}"]
        parts += [f"exit {one.exit_code}"] if one.exit_code is not None else []
        parts += [f"on {one.host}"] if one.host else []
        parts += [f"ledger: {one.ledger}"] if one.ledger else []
        parts += [f"sent {one.attempts} times"] if one.attempts > 1 else []
        typer.echo(", ".join(parts) + (f": {one.cause}" if one.cause else ""))
    fine = {None, State.DONE, State.NO_TEMPLATE, State.CANCELLED}
    raise typer.Exit(0 if all(one.state in fine for one in reports) else 1)
