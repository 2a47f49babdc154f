"""The Dask settings of apflow, from dask.yaml beside this file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import yaml


def settings() -> dict[str, Any]:
    """Settings for `dask.config.set`, by dotted path; nothing is read from the environment."""
    tree = yaml.safe_load((resources.files(__package__) / "dask.yaml").read_text())
    return dict(_flat(tree, ""))


def _flat(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    # `dask.config.set` replaces a table that it is given: only leaves keep what the file does not name.
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield path + key, value
