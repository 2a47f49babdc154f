"""``apflow night logs``: what the processes of a night said."""

from __future__ import annotations

import logging
import time
from typing import Annotated

import typer

from apflow.errors import BadRequest

_PAUSE_S = 0.3


def logs(
    butler: Annotated[str, typer.Option(metavar="REPO", help="Butler repository.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    visit: Annotated[int | None, typer.Option(metavar="N", help="Lines about this visit.")] = None,
    detector: Annotated[str, typer.Option(metavar="NAME", help="About this detector: R22_S11, or its number.")] = "",
    level: Annotated[str, typer.Option(help="debug, info, warning or error: lines of this level and above.")] = "debug",
    night: Annotated[str, typer.Option(metavar="YYYYMMDD", help="Day of observation; default: the newest night.")] = "",
) -> None:
    """Show the logs of a night, those of all its processes in one, by time.

    Example: apflow night logs -f --detector R22_S11 --butler replay/butler
    """
    from apflow.logs import Reader
    from apflow.model.camera import load_camera
    from apflow.operate.night.folder import LOGS, chosen_night
    from apflow.operate.repository import repository_config

    folder = chosen_night(butler, night)
    levels = logging.getLevelNamesMapping()
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise BadRequest(f"--level {level!r} is not accepted: debug, info, warning or error")
    wanted = load_camera(repository_config(butler).camera).select(detector) if detector else ()
    if len(wanted) > 1:
        raise BadRequest(f"--detector {detector!r} is not accepted: one detector, such as R22_S11 or 94")
    reader = Reader(folder / LOGS)
    try:
        while True:
            for line in reader.new():
                if (
                    (visit is None or line.visit == visit)
                    and (not wanted or line.detector == wanted[0])
                    and levels.get(line.level, 0) >= levels[level.upper()]
                ):
                    typer.echo(str(line))
            if not follow:
                return
            time.sleep(_PAUSE_S)
    except KeyboardInterrupt:
        return
