"""Rules by survey: which graph an exposure is for, or none. The first that matches wins.

A file of rules is TOML::

    [[rule]]                      # engineering blocks are not processed
    survey = "BLOCK-T*"
    graph = "ignore"

    [[rule]]
    image_type = ["OBJECT", "ACQ"]
    filters = ["g", "r", "i", "z"]
    graph = "alert_production"

    [[rule]]
    image_type = ["BIAS", "FLAT"]
    graph = "raw_calibration"

Each condition is a pattern (``*``, ``?``, ``[...]``) or a list of them, one of
which must match; what is not named is not asked for. Filters go by physical
filter or band; an exposure without any meets every condition on them.

Whatever a rule says, ``raw_calibration`` takes no image but BIAS, DARK, FLAT
and CBP, and no other graph takes these. They come with no survey.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apflow.errors import BadRequest
from apflow.model.calibration import Intent, is_calibration
from apflow.model.camera import Camera

IGNORE = "ignore"
RAW_CALIBRATION = "raw_calibration"
_CONDITIONS = ("survey", "instrument", "image_type", "filters")


@dataclass(frozen=True)
class Subject:
    """What is known of a visit or a calibration.

    `survey` and `image_type` are empty where nobody told them. `filters` holds
    those that may be used; empty for any of the camera's.
    """

    survey: str
    instrument: str
    image_type: str
    filters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One rule; empty conditions are not asked for."""

    graph: str
    survey: tuple[str, ...] = ()
    instrument: tuple[str, ...] = ()
    image_type: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()

    def matches(self, subject: Subject, camera: Camera) -> bool:
        """Whether every condition holds.

        Where the filter is open, the visit may be of any of those filters, and one is enough.
        """
        named = [camera.filter(name) for name in subject.filters] or camera.filters
        filters = [name for one in named for name in (one.physical_filter, one.band)]
        for_calibrations = self.graph == RAW_CALIBRATION
        return (
            (self.graph == IGNORE or for_calibrations == is_calibration(subject.image_type))
            and _any(self.survey, [subject.survey])
            and _any(self.instrument, [subject.instrument])
            and _any(self.image_type, [subject.image_type])
            and _any(self.filters, filters)
        )


#: Images of the sky are processed, whatever the survey, and so are calibrations.
DEFAULT = (
    Rule("alert_production", image_type=("OBJECT", "SCIENCE")),
    Rule(RAW_CALIBRATION, image_type=tuple(intent.image_type for intent in Intent)),
)


def first_match(rules: Sequence[Rule], subject: Subject, camera: Camera) -> str:
    """Graph of the first rule that matches; `IGNORE` where none does."""
    return next((rule.graph for rule in rules if rule.matches(subject, camera)), IGNORE)


def load_rules(path: str | Path, graphs: Collection[str]) -> tuple[Rule, ...]:
    """Read a file of rules; `DEFAULT` where the path is empty.

    Raises
    ------
    BadRequest
        The file is missing or not TOML, a key is unknown or of a wrong type,
        or a graph does not exist; the message names the key by its full path.
    """
    if not str(path):
        return DEFAULT
    try:
        tree = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise BadRequest(f"rules {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"rules {path}: {error}") from error
    return rules_from(tree, graphs)


def rules_from(tree: Mapping[str, Any], graphs: Collection[str]) -> tuple[Rule, ...]:
    """Rules of a parsed file; see `load_rules` for errors."""
    for key in tree:
        if key != "rule":
            raise BadRequest(f"unknown key {key} in the rules; accepted: rule")
    rules = tree.get("rule")
    if not isinstance(rules, list) or not rules:
        raise BadRequest("the rules hold none; accepted: one [[rule]] or more")
    return tuple(_rule(rule, f"rule[{n}]", graphs) for n, rule in enumerate(rules))


def _rule(rule: Any, path: str, graphs: Collection[str]) -> Rule:
    if not isinstance(rule, Mapping):
        raise BadRequest(f"{path} is {rule!r}; accepted: a table")
    accepted = ("graph", *_CONDITIONS)
    for key in rule:
        if key not in accepted:
            raise BadRequest(f"unknown key {path}.{key}; accepted: {', '.join(accepted)}")
    names = (*sorted(graphs), IGNORE)
    if rule.get("graph") not in names:
        raise BadRequest(f"{path}.graph is {rule.get('graph')!r}; accepted: {', '.join(names)}")
    return Rule(rule["graph"], **{key: _patterns(rule[key], f"{path}.{key}") for key in _CONDITIONS if key in rule})


def _patterns(value: Any, path: str) -> tuple[str, ...]:
    patterns = value if isinstance(value, list) else [value]
    if not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise BadRequest(f"{path} is {value!r}; accepted: a pattern, or a list of them")
    return tuple(patterns)


def _any(patterns: Sequence[str], values: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(value, pattern) for value in values for pattern in patterns)
