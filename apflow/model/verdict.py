"""Acceptable, Warning, Alert: what a metric means to whoever is on duty."""

from __future__ import annotations

import enum
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apflow.errors import BadRequest


class Verdict(enum.IntEnum):
    """From good to bad, so that the worst of several is their maximum."""

    ACCEPTABLE = 0
    WARNING = 1
    ALERT = 2

    def __str__(self) -> str:
        return self.name.capitalize()


@dataclass(frozen=True)
class Range:
    """Limits of one metric, each (low, high) inclusive; infinite where there is none."""

    warning: tuple[float, float] = (-math.inf, math.inf)
    alert: tuple[float, float] = (-math.inf, math.inf)

    def verdict(self, value: float) -> Verdict:
        """Alert outside `alert`, else Warning outside `warning`, else Acceptable."""
        if not self.alert[0] <= value <= self.alert[1]:
            return Verdict.ALERT
        return Verdict.ACCEPTABLE if self.warning[0] <= value <= self.warning[1] else Verdict.WARNING


def worst(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    """The worst of those that are known; None where none is."""
    return max((v for v in verdicts if v is not None), default=None)


def judge(values: Mapping[str, float | None], ranges: Mapping[str, Range]) -> dict[str, Verdict | None]:
    """Verdict of each metric that has a range; None where there is no value."""
    found = {name: values.get(name) for name in ranges}
    return {
        name: ranges[name].verdict(value) if value is not None and math.isfinite(value) else None
        for name, value in found.items()
    }


def load_ranges(path: str | Path) -> dict[str, dict[str, Range]]:
    """Ranges by action and metric, from a TOML file::

        [calibration_amplifier]
        read_noise_ratio = {warning = [0.8, 1.2], alert = [0.5, 2.0]}
        n_dead_pixels = {warning = [0, 10]}

    Raises
    ------
    BadRequest
        The file is missing or not TOML, or an entry is not of that form; the
        message names it.
    """
    try:
        tree = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise BadRequest(f"ranges {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"ranges {path}: {error}") from error
    return parse_ranges(tree)


def parse_ranges(tree: Mapping[str, Any], suffix: str = "") -> dict[str, dict[str, Range]]:
    """Ranges by action and metric from the tables of a TOML file.

    Parameters
    ----------
    tree : mapping
        Tables by action.
    suffix : `str`, optional
        What follows the action in the full path of an entry.

    Raises
    ------
    BadRequest
        An entry is not of the form that `load_ranges` reads; the message names it.
    """
    return {action: _table(table, action + suffix) for action, table in tree.items()}


def _table(table: Any, action: str) -> dict[str, Range]:
    if not isinstance(table, Mapping):
        raise BadRequest(f"ranges: {action} is {table!r}; accepted: a table of metrics")
    return {name: _range(entry, f"{action}.{name}") for name, entry in table.items()}


def _range(entry: Any, key: str) -> Range:
    accepted = "{warning = [low, high], alert = [low, high]}, one of them or both, low <= high"
    if not isinstance(entry, Mapping) or not entry or set(entry) - {"warning", "alert"}:
        raise BadRequest(f"ranges: {key} is {entry!r}; accepted: {accepted}")
    limits = {}
    for name, pair in entry.items():
        numbers = isinstance(pair, list) and len(pair) == 2 and all(type(v) in (int, float) for v in pair)
        if not numbers or not pair[0] <= pair[1]:
            raise BadRequest(f"ranges: {key}.{name} is {pair!r}; accepted: {accepted}")
        limits[name] = (float(pair[0]), float(pair[1]))
    return Range(**limits)
