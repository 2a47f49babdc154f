"""``apflow explain``: where a DiaSource, an alert or a dataset came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer


def explain(
    name: Annotated[str, typer.Argument(metavar="ID", help="diaSourceId (an alert's id too), or UUID of a dataset.")],
    butler: Annotated[str, typer.Option(help="Butler repository.")],
    ppdb: Annotated[str, typer.Option(help="URL of the PPDB; default: the repository's.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what made a DiaSource, an alert or a dataset: images, calibs, templates, configuration, versions, worker.

    Example: apflow explain 168691472163405825 --butler replay/butler
    """
    from apflow.operate.explain import explain as run
    from apflow.operate.repository import repository_config

    told = run(name, repository_config(butler, ppdb))
    if as_json:
        typer.echo(json.dumps(told, indent=1, default=str))
        return
    typer.echo(told.pop("what"))
    for line in _lines(told):
        typer.echo(line)


def _lines(value: Any, indent: str = "  ") -> Iterator[str]:
    """A tree as indented lines; what belongs to one dataset, or one cell, on one."""
    pairs = value.items() if isinstance(value, dict) else (("-", one) for one in value)
    for key, one in pairs:
        if isinstance(one, dict) and key == "-":
            yield f"{indent}- " + " ".join(f"{k}={v}" for k, v in one.items() if v is not None)
        elif isinstance(one, dict | list) and one:
            yield f"{indent}{key}:"
            yield from _lines(one, indent + "  ")
        elif one not in (None, "", [], {}):
            yield f"{indent}{key}: {one}"
