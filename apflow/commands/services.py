"""``apflow services``: PostgreSQL, Kafka, a schema registry and Sasquatch's stand-in on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="PostgreSQL and Kafka on this machine, to develop with.", no_args_is_help=True)

_Folder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of their data and state; default: the user's state folder.")
]
_Postgres = Annotated[bool, typer.Option("--postgres", help="PostgreSQL.")]
_Kafka = Annotated[bool, typer.Option("--kafka", help="Kafka.")]
_Registry = Annotated[bool, typer.Option("--registry", help="The schema registry.")]
_Sasquatch = Annotated[
    bool, typer.Option("--sasquatch", help="InfluxDB, with a stand-in of Sasquatch's REST API in front of it.")
]


@app.command()
def up(
    postgres: _Postgres = False,
    kafka: _Kafka = False,
    registry: _Registry = False,
    sasquatch: _Sasquatch = False,
    folder: _Folder = None,
) -> None:
    """Start services and print the lines of a configuration that point to them.

    Without an option that names one: PostgreSQL and Kafka. One that runs is left as it is; what was stored before
    is there again. All listen on this machine alone, and run until `apflow services down`.

    Example: apflow services up --kafka
    """
    from apflow.operate.services import developer

    where = folder or developer.default_folder()
    names = _names(postgres, kafka, registry, sasquatch) or ["postgresql", "kafka"]
    developer.up(where, names, lambda line: typer.echo(line, err=True))
    typer.echo(developer.configuration(where))


@app.command()
def down(
    postgres: _Postgres = False,
    kafka: _Kafka = False,
    registry: _Registry = False,
    sasquatch: _Sasquatch = False,
    folder: _Folder = None,
) -> None:
    """Stop services; their data stay in the folder.

    Without an option that names one: all of them.

    Example: apflow services down
    """
    from apflow.operate.services import developer

    names = _names(postgres, kafka, registry, sasquatch) or list(developer.KINDS)
    developer.down(folder or developer.default_folder(), names, lambda line: typer.echo(line, err=True))


@app.command()
def status(folder: _Folder = None) -> None:
    """Say which services run, and print the lines of a configuration that point to them.

    Example: apflow services status
    """
    from apflow.operate.services import developer

    where = folder or developer.default_folder()
    for line in developer.status(where):
        typer.echo(line)
    if lines := developer.configuration(where):
        typer.echo(f"\n{lines}")


def _names(postgres: bool, kafka: bool, registry: bool, sasquatch: bool) -> list[str]:
    """Names of the services that options ask for."""
    wanted = {"postgresql": postgres, "kafka": kafka, "registry": registry, "sasquatch": sasquatch}
    return [name for name, is_wanted in wanted.items() if is_wanted]
