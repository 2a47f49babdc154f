"""``apflow metrics``: what is measured, what was, and sending it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from apflow.operate.metric_list import Value

app = typer.Typer(help="Metrics: list, show, send to Sasquatch.", no_args_is_help=True)

_Action = Annotated[str, typer.Option("--action", help="Only this action: calibrate, delivery, visit...")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
_Butler = Annotated[str, typer.Option("--butler", metavar="REPO", help="Butler repository.")]
_COLOURS = {"Acceptable": "green", "Warning": "yellow", "Alert": "red"}


@app.command("ls")
def ls(action: _Action = "", as_json: _Json = False) -> None:
    """List what is measured, by action, with units. An action is a topic of Sasquatch.

    Example: apflow metrics ls --action calibrate
    """
    from apflow.operate.metric_list import metrics_of

    for name, metrics in metrics_of(action).items():
        if not as_json:
            typer.echo(name)
        for metric in metrics:
            if as_json:
                row = {"action": name, "metric": metric.name, "unit": metric.unit, "description": metric.description}
                typer.echo(json.dumps(row))
            else:
                typer.echo(f"  {metric.name:<44} {metric.unit:<16} {metric.description}".rstrip())


@app.command("show")
def show(
    visit: Annotated[str, typer.Argument(metavar="VISIT|EXPOSURE", help="Its number, or the name of an image.")],
    butler: _Butler,
    detector: Annotated[str, typer.Option(help="CCD name or id; none: the whole, or all CCDs with --action.")] = "",
    action: _Action = "",
    as_json: _Json = False,
) -> None:
    """Show the metrics of a visit or of a calibration exposure, and whether they are acceptable.

    Limits are those of configuration calibration.ranges. A dash is a metric without a value.

    Example: apflow metrics show MC_O_20250420_000001 --detector R22_S11 --butler replay/butler
    """
    from apflow.operate.metric_list import measured
    from apflow.operate.repository import repository_config

    values = measured(repository_config(butler), visit, detector, action)
    if not as_json:
        _print(values)
        return
    for value in values:
        verdict = None if value.verdict is None else str(value.verdict)
        row = {"detector": value.detector, "action": value.action, "metric": value.metric, "value": value.value}
        typer.echo(json.dumps(row | {"unit": value.unit, "verdict": verdict}))


def _print(values: Sequence[Value]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="grey62")
    for name in ("det", "action", "metric", "value", "unit", "verdict"):
        table.add_column(name, justify="right" if name in ("det", "value") else "left", no_wrap=True)
    for v in values:
        verdict = "" if v.verdict is None else str(v.verdict)
        number = "-" if v.value is None else f"{v.value:.{15 if v.metric.startswith('mjd') else 5}g}"
        place = "" if v.detector is None else str(v.detector)
        table.add_row(place, v.action, v.metric, number, v.unit, Text(verdict, _COLOURS.get(verdict, "")))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


@app.command("send")
def send(butler: _Butler) -> None:
    """Send what waits in the spool to Sasquatch, the service of configuration sasquatch.url.

    Runs do so themselves, in the background; this is for what they left when the service was away.

    Example: apflow metrics send --butler replay/butler
    """
    from apflow.io.sasquatch import drain
    from apflow.operate.repository import repository_config

    config = repository_config(butler)
    if not config.sasquatch.url:
        typer.echo("nothing is sent: the configuration has no sasquatch.url")
        return
    counts = drain(config)
    typer.echo(f"{counts.sent} records with {counts.metrics} values sent, {counts.refused} refused")
