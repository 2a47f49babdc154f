"""``apflow replay``: simulated visits, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apflow.commands.options import Alerts, Filter, Ppdb, number, parse_size
from apflow.errors import BadRequest


def parse_cadence(text: str) -> float:
    """Seconds between visits; 0 for ``burst``."""
    if text == "burst":
        return 0.0
    try:
        cadence = float(text)
    except ValueError:
        cadence = -1.0
    if not 0 <= cadence < 86_400:
        raise BadRequest(f"--cadence {text!r} is not accepted: seconds (0 to 86400) or burst")
    return cadence


def replay(
    camera: Annotated[
        str, typer.Option(help="lsstcam, comcam, decam, or the path of a camera's YAML file.")
    ] = "lsstcam",
    detectors: Annotated[
        str, typer.Option(help="science, all, or a comma list of rafts (R22), names (R22_S11) and ids (94).")
    ] = "science",
    size: Annotated[str, typer.Option(help="small (512 px cut-outs), full, or a number of pixels.")] = "small",
    visits: Annotated[
        int, typer.Option(parser=number(int, 1, 1000), metavar="N", help="Number of visits, 1 to 1000.")
    ] = 3,
    cadence: Annotated[str, typer.Option(help="Seconds between visits, or burst.")] = "burst",
    snaps: Annotated[
        int, typer.Option(parser=number(int, 1, 2), metavar="1|2", help="Images of each visit, combined into one.")
    ] = 1,
    workers: Annotated[
        int, typer.Option(parser=number(int, 0, 1000), metavar="N", help="Worker processes; 0 for one a core.")
    ] = 0,
    seed: Annotated[
        int,
        typer.Option(parser=number(int, 0, 10**9), metavar="S", help="Seed of the sky and of everything simulated."),
    ] = 1,
    physical_filter: Annotated[str, Filter] = "r",
    butler: Annotated[str, typer.Option(help="Repository to make or continue; default: in the report's folder.")] = "",
    ppdb: Annotated[str, Ppdb] = "",
    alerts: Annotated[str, Alerts] = "",
    report: Annotated[Path, typer.Option(help="Folder of the report and its tables.")] = Path("replay"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the summary there as JSON.")] = None,
    image_timeout: Annotated[
        float, typer.Option(parser=number(float, 0.1, 86_400), metavar="SECONDS", help="How long to wait for an image.")
    ] = 120.0,
    rafts_at_a_time: Annotated[
        int,
        typer.Option(
            parser=number(int, 0, 1000),
            metavar="N",
            help="Simulate and process one visit N rafts at a time, removing the pixels of each; 0: all at once.",
        ),
    ] = 0,
    inject: Annotated[
        int,
        typer.Option(
            parser=number(int, 0, 10_000), metavar="N", help="Fakes put into each science image; see apflow score."
        ),
    ] = 0,
) -> None:
    """Simulate visits of a whole focal plane and process them end to end, with no server.

    A replay that was interrupted continues when the same command is given again. Without --butler a replay that is
    finished, or another, makes room for the new one; with --butler more --visits may follow those that are done.

    Example: apflow replay --camera comcam --visits 2 --report my-replay
    """
    from rich.console import Console

    from apflow.cli import EXIT_INTERRUPTED, fail
    from apflow.operate.interrupts import interruptible
    from apflow.operate.replay import Request, run_replay

    request = Request(
        camera=camera,
        detectors=detectors,
        size=parse_size(size),
        visits=visits,
        cadence_s=parse_cadence(cadence),
        snaps=snaps,
        workers=workers,
        seed=seed,
        physical_filter=physical_filter,
        butler=butler,
        ppdb=ppdb,
        alerts=alerts,
        report=report,
        json_file=json_file,
        image_timeout_s=image_timeout,
        rafts_at_a_time=rafts_at_a_time,
        inject=inject,
    )
    try:
        with interruptible():
            run_replay(request, Console())
    except KeyboardInterrupt:
        fail("interrupted; what was stored is consistent, and the same command continues", EXIT_INTERRUPTED)
