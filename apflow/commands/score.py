"""``apflow score``: completeness and purity of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apflow.commands.options import Ppdb, number


def score(
    run: Annotated[Path, typer.Argument(metavar="RUN|REPO", help="Folder of a replay's report, or a repository.")],
    against: Annotated[
        str, typer.Option(help="truth (of a simulation) or injections; default: the first that there is.")
    ] = "",
    min_reliability: Annotated[
        float,
        typer.Option(parser=number(float, 0, 1), metavar="R", help="Leave out DiaSources that are less reliable."),
    ] = 0.0,
    ppdb: Annotated[str, Ppdb] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Completeness and purity per S/N and magnitude, flux and position errors, attribution of movers.

    Errors are binomial, of one sigma; snr50 and mag50 are where half of the changes are found.

    Example: apflow score replay --min-reliability 0.5
    """
    import json

    from rich.console import Console

    from apflow.operate.score import score_run
    from apflow.operate.score_console import print_score
    from apflow.operate.summary import finite

    found = score_run(run, against, min_reliability, ppdb)
    if as_json:
        typer.echo(json.dumps(finite(found)))
        return
    console = Console(highlight=False)
    print_score(found, console if console.is_terminal else Console(width=160, highlight=False))
