"""``apflow night doctor``: whether a night can begin."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from apflow.commands.options import Ppdb, number
from apflow.errors import BadRequest

_COLOURS = {"ok": "green", "warning": "yellow", "failure": "red"}


def doctor(
    butler: Annotated[str, typer.Option(help="Butler repository.")],
    ppdb: Annotated[str, Ppdb] = "",
    kafka: Annotated[str, typer.Option(metavar="HOST:PORT[/TOPIC]", help="Broker; default: as configured.")] = "",
    cluster: Annotated[
        str, typer.Option(help="local, slurm, htcondor, kubernetes, ssh, or tcp://host:port of a scheduler.")
    ] = "local",
    cadence: Annotated[
        float, typer.Option(parser=number(float, 0.1, 86_400), metavar="SECONDS", help="Time between visits.")
    ] = 37.0,
    ra: Annotated[float | None, typer.Option(help="Of a field of tonight, ICRS, degrees.")] = None,
    dec: Annotated[float | None, typer.Option(help="Its declination.")] = None,
    visits: Annotated[
        Path | None, typer.Option(help="File of tonight's fields: nextVisit events or ra, dec, filter; JSON lines.")
    ] = None,
    night: Annotated[str, typer.Option(metavar="YYYYMMDD", help="When calibs must be valid; default: now.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Look at everything that a night needs, and say what to do where something is wrong.

    Exit codes: 0 a night can begin, with warnings or without, 1 there is a failure.

    Example: apflow night doctor --butler replay/butler --ra 150 --dec -32
    """
    from rich.console import Console
    from rich.text import Text

    from apflow.operate.night.doctor import Patient, diagnose
    from apflow.operate.night.doctor_repository import Field

    if (ra is None) != (dec is None):
        raise BadRequest("--ra without --dec is not accepted: both, or neither")
    fields = [] if ra is None or dec is None else [Field(ra, dec)]
    console, failed = Console(highlight=False, soft_wrap=True), False
    for finding in diagnose(Patient(butler, ppdb, kafka, cluster, cadence, fields, visits, night)):
        failed |= finding.level == "failure"
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(finding)))
            continue
        level = Text(f"{finding.level:<8}", _COLOURS[finding.level])
        console.print(level + Text(f"{finding.check}: {finding.found}"))
        if finding.remedy:
            console.print(Text(f"         -> {finding.remedy}"))
    if failed:
        raise typer.Exit(1)
