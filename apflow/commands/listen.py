"""``apflow listen``: the service that runs the graphs as visits and calibrations are announced."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def listen(
    butler: Annotated[Path, typer.Option(metavar="REPO", help="Butler repository, as apflow init makes it.")],
    kafka: Annotated[
        bool,
        typer.Option("--kafka", help="Take events from the topics of table invocation at the broker of table kafka."),
    ] = False,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Take events from a file of JSON lines.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for lines that are added to --file.")] = False,
    stdin: Annotated[bool, typer.Option("--stdin", help="Take events from standard input, JSON lines.")] = False,
    http: Annotated[
        str,
        typer.Option(
            metavar="[HOST]:PORT",
            help="Take events by POST /nextVisit, /nextVisitCanceled, /startIntegration; without a host on this "
            "machine alone. There is no authentication.",
        ),
    ] = "",
    landing: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder in which raw images land; default: REPO/landing.")
    ] = None,
    detectors: Annotated[
        str, typer.Option(help="science, all, or a comma list of rafts (R22), names (R22_S11) and ids (94).")
    ] = "science",
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Worker processes; 0 for one a core.")] = 0,
    ppdb: Annotated[str, typer.Option(help="As in apflow replay; default: in the repository.")] = "",
    alerts: Annotated[str, typer.Option(help="As in apflow replay; default: as configured.")] = "",
    rules: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rules: which graph for which images, TOML; default: invocation.rules."),
    ] = None,
    image_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0.1, max=86_400, help="How long to wait for an image; default: 120."),
    ] = None,
) -> None:
    """Process visits as they are announced by nextVisit, and images that nobody announced.

    Calibrations (BIAS, DARK, FLAT, CBP) are checked as startIntegration announces them, or as their images come; a
    visit goes before them where both want the same worker.

    It serves until Ctrl-C or SIGTERM; a file that is not followed, or standard input, ends it when all that was
    announced has ended. What was told is written down before it is acted upon: the same command goes on where an
    earlier one was, however that ended.

    Example: echo '{"event": "nextVisitCanceled", "groupId": "none"}' | apflow listen --butler replay/butler --stdin
    """
    from apflow.operate.interrupts import interruptible
    from apflow.operate.listen.start import Request
    from apflow.operate.listen.start import listen as run

    request = Request(
        butler=str(butler),
        kafka=kafka,
        file=str(file or ""),
        follow=follow,
        stdin=stdin,
        http=http,
        landing=str(landing or ""),
        detectors=detectors,
        workers=workers,
        ppdb=ppdb,
        alerts=alerts,
        rules=str(rules or ""),
        image_timeout_s=image_timeout,
    )
    try:
        with interruptible():
            run(request, lambda line: typer.echo(line))
    except KeyboardInterrupt:
        typer.echo("ended as asked; visits under way go on when the same command is given again", err=True)
