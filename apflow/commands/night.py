"""``apflow night``: everything about a night."""

from __future__ import annotations

import typer

from apflow.commands import doctor

night_app = typer.Typer(help="A night: before it, during it and after it.", no_args_is_help=True)
night_app.command()(doctor.doctor)
