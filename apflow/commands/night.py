"""``apflow night``: everything about a night."""

from __future__ import annotations

import typer

from apflow.commands import doctor, night_logs, night_run

night_app = typer.Typer(help="A night: before it, during it and after it.", no_args_is_help=True)
night_app.command()(doctor.doctor)
for command in (night_run.start, night_run.status, night_run.stop, night_run.reprocess, night_run.catchup):
    night_app.command()(command)
night_app.command()(night_logs.logs)
