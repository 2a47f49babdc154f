"""``apflow explain``: where a DiaSource, an alert or a dataset came from."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.tree import Tree


def explain(
    name: Annotated[str, typer.Argument(metavar="ID", help="diaSourceId (an alert's id too), or UUID of a dataset.")],
    butler: Annotated[str, typer.Option(help="Butler repository.")],
    ppdb: Annotated[str, typer.Option(help="URL of the PPDB; default: the repository's.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what made a DiaSource, an alert or a dataset: images, calibs, templates, configuration, versions, worker.

    Example: apflow explain $(apflow alerts ls --butler replay/butler --ids | head -1) --butler replay/butler
    """
    from apflow.operate.explain import explain as run
    from apflow.operate.repository import repository_config

    told = run(name, repository_config(butler, ppdb))
    if as_json:
        typer.echo(json.dumps(told, indent=1, default=str))
        return
    tree = Tree(told.pop("what"))
    _grow(tree, told)
    Console(highlight=False, soft_wrap=True).print(tree)


def _grow(tree: Tree, value: Any) -> None:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in pairs:
        if isinstance(one, dict) and set(one) >= {"dataset_type"}:
            tree.add(" ".join(f"{k}={v}" for k, v in one.items() if v is not None))
        elif isinstance(one, dict | list) and one:
            _grow(tree.add(str(key)), one)
        elif one not in (None, "", [], {}):
            tree.add(f"{key}: {one}" if isinstance(value, dict) else str(one))
