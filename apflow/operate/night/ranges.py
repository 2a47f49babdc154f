"""Acceptable, Warning, Alert of every metric of the night: for the dashboard, the report and ``apflow watch``."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from apflow.errors import BadRequest
from apflow.model.ap_metrics import DELIVERY, STAGES, VISIT
from apflow.model.calibration_bundle import EXPOSURE, EXPOSURE_ACTION
from apflow.model.calibration_metrics import AMPLIFIER, AMPLIFIER_ACTION, DETECTOR, DETECTOR_ACTION
from apflow.model.metrics import Metric
from apflow.model.verdict import Range, parse_ranges

BANDS = ("u", "g", "r", "i", "z", "y")
#: What is known of a night only when its visits are taken together (LSE-61).
NIGHT: Mapping[str, tuple[Metric, ...]] = {
    "night": (
        Metric("on_time_fraction", "", "Part of the alerts that were published within 60 s of the end of readout."),
        Metric("late_visit_fraction", "", "Part of the visits of which fewer than 98 % of the alerts were in time."),
        Metric("lost_visit_fraction", "", "Part of the visits that came to no alerts and should have."),
        Metric("missed_detector_fraction", "", "Part of the detector-visits that should have been done and are not."),
        Metric("n_unsent_alerts", "ct", "Alerts that are stored and wait to be published."),
        Metric("unsent_age_s", "s", "Time since the oldest of them was stored."),
    )
}
#: Actions whose metrics are known by their names alone: no two of them share one.
PLAIN: Mapping[str, tuple[Metric, ...]] = {**STAGES, **DELIVERY, **VISIT, **NIGHT}
#: Actions whose metrics are named with their action (``calibration_detector.n_hot_pixels``).
CALIBRATION: Mapping[str, tuple[Metric, ...]] = {
    AMPLIFIER_ACTION: AMPLIFIER,
    DETECTOR_ACTION: DETECTOR,
    EXPOSURE_ACTION: EXPOSURE,
}
_ACTION = {metric.name: action for action, metrics in PLAIN.items() for metric in metrics}
_STATISTICS = ("min_", "median_", "max_")

#: Ranges of all bands and of single ones, by action and metric.
_Table = Mapping[str, Mapping[str, Range]]


@dataclass(frozen=True)
class Choice:
    """A metric that a map or a table can show."""

    name: str
    unit: str
    description: str
    action: str


@dataclass(frozen=True, eq=False)
class Ranges:
    """Ranges of metrics.

    Attributes
    ----------
    by_action : mapping
        Ranges by action and metric.
    by_band : mapping
        The same of what differs from band to band, by band.
    """

    by_action: _Table
    by_band: Mapping[str, _Table]

    def limits(self, metric: str, band: str = "") -> Range | None:
        """The range of a metric, None where it has none.

        Parameters
        ----------
        metric : `str`
            Its name; that of a calibration after its action and a dot. One of
            minimum, median and maximum over a visit (``median_psf_fwhm_arcsec``)
            has the range of what it is of, unless it has its own.
        band : `str`, optional
            ``u`` to ``y``; a metric whose range is by band has none without it.
        """
        action, _, name = metric.rpartition(".")
        action = action or _ACTION.get(name, "")
        own = self.by_band.get(band, {}).get(action, {}).get(name) or self.by_action.get(action, {}).get(name)
        statistic = next((s for s in _STATISTICS if name.startswith(s)), "")
        if own is None and statistic and name.removeprefix(statistic) in _ACTION:
            return self.limits(name.removeprefix(statistic), band)
        return own

    def verdict(self, metric: str, value: float | None, band: str = "") -> str:
        """``acceptable``, ``warning`` or ``alert``; empty without a range, or a value (None, NaN)."""
        found = self.limits(metric, band)
        if found is None or value is None or math.isnan(value):
            return ""
        return str(found.verdict(value)).lower()


def load_ranges(path: str | Path = "") -> Ranges:
    """The ranges that come with apflow, and before them those of a file of one's own.

    Parameters
    ----------
    path : `str` or `pathlib.Path`, optional
        TOML file of the form of ``ranges.toml`` beside this module, which says
        why its limits are so.

    Raises
    ------
    BadRequest
        The file is missing or not TOML, an entry is not of that form, or an
        action, band or metric is unknown; the message names its full path.
    """
    with resources.as_file(resources.files("apflow.operate.night") / "ranges.toml") as default:
        ranges = _read(default)
    if not path:
        return ranges
    own = _read(Path(path))
    bands = {b: _over(ranges.by_band.get(b, {}), own.by_band.get(b, {})) for b in BANDS}
    # Who gives one range for all bands means all of them.
    bands = {b: {a: _without(t, own.by_action.get(a, {}), own.by_band.get(b, {}).get(a, {})) for a, t in tables.items()}
             for b, tables in bands.items()}  # fmt: skip
    return Ranges(_over(ranges.by_action, own.by_action), bands)


def metric_choices() -> tuple[Choice, ...]:
    """Every metric of a detector-visit, in the order of its making: what a map of the focal plane can show."""
    return tuple(
        Choice(m.name, m.unit, m.description, action)
        for action, metrics in (*STAGES.items(), *DELIVERY.items())
        for m in metrics
    )


def _over(below: _Table, above: _Table) -> dict[str, Mapping[str, Range]]:
    return {action: {**below.get(action, {}), **above.get(action, {})} for action in {**below, **above}}


def _without(table: Mapping[str, Range], general: Mapping[str, Range], banded: Mapping[str, Range]) -> dict[str, Range]:
    return {name: r for name, r in table.items() if name not in general or name in banded}


def _read(path: Path) -> Ranges:
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadRequest(f"ranges {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"ranges {path}: {error}") from error
    known = {**PLAIN, **CALIBRATION}
    plain: dict[str, Any] = {}
    banded: dict[str, dict[str, Any]] = {band: {} for band in BANDS}
    for action, table in tree.items():
        if action not in known:
            raise BadRequest(f"ranges {path}: {action} is no action; accepted: {', '.join(known)}")
        plain[action] = table
        if isinstance(table, Mapping):
            plain[action] = {k: v for k, v in table.items() if k not in BANDS}
            for band in BANDS:
                if band in table:
                    banded[band][action] = table[band]
    ranges = Ranges(parse_ranges(plain), {b: parse_ranges(tables, f".{b}") for b, tables in banded.items()})
    for suffix, tables in (("", ranges.by_action), *((f".{b}", t) for b, t in ranges.by_band.items())):
        for key, name in _unknown(tables, known):
            accepted = ", ".join(m.name for m in known[key])
            bands = "" if suffix else f", and the bands {', '.join(BANDS)}"
            raise BadRequest(f"ranges {path}: {key}{suffix}.{name} is no metric; accepted: {accepted}{bands}")
    return ranges


def _unknown(tables: _Table, known: Mapping[str, tuple[Metric, ...]]) -> Iterator[tuple[str, str]]:
    for action, table in tables.items():
        names = {m.name for m in known[action]}
        yield from ((action, name) for name in table if name not in names)
