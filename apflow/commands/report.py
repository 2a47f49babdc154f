"""``apflow report``: the report of a night."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apflow.commands.options import Ppdb


def report(
    night: Annotated[str, typer.Argument(metavar="NIGHT", help="Day of observation (YYYYMMDD), or latest.")],
    butler: Annotated[str, typer.Option(help="Butler repository.")],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the report; default: report in the night's folder.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the JSON there instead.")
    ] = None,
    ppdb: Annotated[str, Ppdb] = "",
) -> None:
    """Report on a night: quality, performance and calibration (LSE-61), as JSON and as one HTML page.

    Exit codes: 0 every expected detector-visit came to one end, 1 they do not add up.

    Example: apflow report latest --butler replay/butler
    """
    from apflow.operate.night.report import write_night_report

    written = write_night_report(butler, night, output, json_file, ppdb)
    performance = written.report["performance"]
    states = ", ".join(f"{n} {state}" for state, n in performance["states"].items() if n)
    typer.echo(f"{performance['expected']['detector_visits']} detector-visits expected: {states or 'none ended'}")
    for v in performance["verdict"]:
        value = "-" if v["value"] is None else f"{v['value']:.4g}"
        typer.echo(f"{v['verdict'] or 'no verdict':<11} {v['metric']} {value}: {v['text']}")
    typer.echo(f"report: {written.page}")
    if not written.adds_up:
        for text in performance["differences"][:5]:
            typer.echo(f"does not add up: {text}", err=True)
        raise typer.Exit(1)
