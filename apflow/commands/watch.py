"""``apflow watch``: a night in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apflow.errors import BadRequest


def watch(
    folder: Annotated[
        Path | None, typer.Argument(metavar="NIGHT_FOLDER", help="REPO/nights/YYYYMMDD; or give --butler.")
    ] = None,
    butler: Annotated[str, typer.Option(metavar="REPO", help="Butler repository.")] = "",
    night: Annotated[str, typer.Option(metavar="YYYYMMDD", help="Day of observation; default: the newest night.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Print what is there now, and end.")] = False,
) -> None:
    """Show the visits of a night, its verdict and the times of its steps, from its records.

    Example: apflow watch --butler replay/butler
    """
    from apflow.io.records import night_folder, nights
    from apflow.operate.dashboard.console import watch_night

    if (folder is None) == (not butler):
        raise BadRequest("apflow watch takes either the folder of a night or --butler")
    if folder is None:
        known = nights(butler)
        day = night or (str(known[-1]) if known else "")
        if not day.isdigit():
            raise BadRequest(
                f"{butler} has no night {day!r} with records; known: {', '.join(map(str, known)) or 'none'}"
            )
        folder = night_folder(butler, int(day))
    if not folder.is_dir():
        raise BadRequest(f"{folder} is no folder of a night; accepted: REPO/nights/YYYYMMDD")
    watch_night(folder, once=once)
