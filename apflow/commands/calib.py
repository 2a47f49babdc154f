"""``apflow calib``: master calibs made of raws, certified, and what is valid when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from apflow.operate.calib_build import Result

app = typer.Typer(help="Master calibs: bias, dark, flat, defects.", no_args_is_help=True)

_Kind = typer.Argument(metavar="bias|dark|flat|defects", help="Kind of calib.")
_Butler = typer.Option(metavar="REPO", help="Butler repository.")
_From = typer.Option(
    "--valid-from",
    metavar="TIME",
    help="When they begin to be valid, TAI: YYYYMMDD (noon), MJD, or YYYY-MM-DDThh:mm:ss; default: the beginning of "
    "the day of the images.",
)
_To = typer.Option("--valid-to", metavar="TIME", help="And cease to be; default: when the next calib begins.")
_Replace = typer.Option("--replace", help="Shorten the validity of calibs that overlap.")


@app.command()
def build(
    kind: Annotated[str, _Kind],
    butler: Annotated[str, _Butler],
    image: Annotated[
        list[str] | None, typer.Option(help="Name of an image, MC_O_YYYYMMDD_NNNNNN; may be repeated.")
    ] = None,
    first: Annotated[str, typer.Option("--from", metavar="IMAGE", help="All of the kind from this image...")] = "",
    last: Annotated[str, typer.Option("--to", metavar="IMAGE", help="... to this one.")] = "",
    day_obs: Annotated[
        int | None, typer.Option(metavar="YYYYMMDD", help="All of a day of observation; default: the latest.")
    ] = None,
    detector: Annotated[
        str, typer.Option(help="CCD name or id; also science, all, or a comma list; default: all with raws.")
    ] = "",
    physical_filter: Annotated[str, typer.Option("--filter", help="Of flats: physical filter or band.")] = "",
    valid_from: Annotated[str, _From] = "",
    valid_to: Annotated[str, _To] = "",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the files there.")] = None,
    certify: Annotated[bool, typer.Option("--certify", help="Certify them: all detectors, or none.")] = False,
    replace: Annotated[bool, _Replace] = False,
    workers: Annotated[int, typer.Option(metavar="N", min=0, max=1000, help="Processes; 0 for one a core.")] = 0,
) -> None:
    """Combine calibration exposures into master calibs, with the masters that are valid when they begin to be.

    Exposures on which apflow calibration gave the verdict Alert for a detector are left out of its master. Defects
    are what the valid dark and flats show, and take no images.

    Example: apflow calib build bias --butler replay/butler --certify --replace
    """
    from apflow.operate.calib_build import Request
    from apflow.operate.calib_build import build as run
    from apflow.operate.calib_jobs import Built
    from apflow.operate.calib_request import Chosen, parse_time
    from apflow.operate.interrupts import interruptible

    def made(one: Built) -> None:
        alerts = f"; left out for their verdict, Alert: {', '.join(one.left_out)}" if one.left_out else ""
        typer.echo(f"{kind} {one.name}: {one.summary}{alerts}")

    request = Request(
        kind=kind,
        butler=butler,
        chosen=Chosen(tuple(image or ()), first, last, day_obs, physical_filter),
        detectors=detector,
        begin=parse_time(valid_from) if valid_from else None,
        end=parse_time(valid_to) if valid_to else None,
        out=out,
        certify=certify,
        replace=replace,
        workers=workers,
    )
    with interruptible():
        result = run(request, made)
    if out is not None:
        typer.echo(f"{len(result.built)} files in {out}")
    if result.run:
        _say(kind, result)


@app.command()
def certify(
    kind: Annotated[str, _Kind],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of apflow calib build --out.")],
    butler: Annotated[str, _Butler],
    valid_from: Annotated[str, _From] = "",
    valid_to: Annotated[str, _To] = "",
    replace: Annotated[bool, _Replace] = False,
) -> None:
    """Certify masters that were built before: those of all detectors in the folder, or none.

    Example: apflow calib certify bias masters --butler replay/butler --valid-from 20250421 --replace
    """
    from apflow.operate.calib_build import certify_folder
    from apflow.operate.calib_request import parse_time

    begin, end = (parse_time(text) if text else None for text in (valid_from, valid_to))
    _say(kind, certify_folder(kind, folder, butler, begin, end, replace=replace))


@app.command("ls")
def show(
    butler: Annotated[str, _Butler],
    kind: Annotated[str, typer.Option(metavar="bias|dark|flat|defects", help="Nothing but this kind.")] = "",
    detector: Annotated[str, typer.Option(help="Nothing but these: names, ids, rafts, science or all.")] = "",
    at: Annotated[str, typer.Option(metavar="TIME", help="Nothing but what is valid then; as --valid-from.")] = "",
) -> None:
    """List master calibs and when they are valid (TAI).

    Example: apflow calib ls --butler replay/butler --at 20250420
    """
    from apflow.errors import BadRequest
    from apflow.io.butler import Repository
    from apflow.io.butler.certify import certified, spoken
    from apflow.io.butler.ingest import CALIBS
    from apflow.operate.calib_request import parse_time

    if kind and kind not in CALIBS:
        raise BadRequest(f"calib {kind!r} is unknown; accepted: {', '.join(CALIBS)}")
    time = parse_time(at) if at else None
    with Repository(butler) as repository:
        camera = repository.camera
        wanted = set(camera.select(detector)) if detector else {d.id for d in camera.detectors}
        detectors: dict[tuple[str, str, str, str], list[str]] = {}
        for one in certified(repository, [kind] if kind else CALIBS):
            if one.detector in wanted and (time is None or one.span.overlaps(time)):
                key = one.kind, one.physical_filter, spoken(one.span), one.run
                detectors.setdefault(key, []).append(camera.detector(one.detector).name)
    for (name, physical_filter, span, run), of in detectors.items():
        typer.echo(f"{name:8}{physical_filter:8}{span}  {_names(of)}  {run}")


def _say(kind: str, result: Result) -> None:
    from apflow.io.butler.certify import spoken

    what = f"{kind} {result.physical_filter}".strip()
    names = _names([one.name for one in result.built])
    typer.echo(f"certified {what} of {names} {spoken(result.valid)}, {result.run}")


def _names(detectors: Sequence[str]) -> str:
    return ", ".join(detectors) if len(detectors) <= 3 else f"{len(detectors)} detectors"
