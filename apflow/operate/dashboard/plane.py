"""The focal plane of one visit, coloured by stage, outcome or a metric."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from bokeh.models import ColorBar, ColumnDataSource, CustomJS, Div, HoverTool, LinearColorMapper, Select, TapTool
from bokeh.plotting import figure

from apflow.model.ap_metrics import STEPS
from apflow.model.camera import Camera
from apflow.model.ledger import State
from apflow.operate.dashboard import colours
from apflow.operate.dashboard.feed import Detector, Visit
from apflow.operate.night.ranges import metric_choices
from apflow.operate.report_map import drawn_sizes, metric_label

_SIDE_PX = 560
_MAX_RAFT = 12  # detectors; DECam's halves are no rafts
STAGE, OUTCOME = "stage", "outcome"
_FIRST = ("psf_fwhm_arcsec", "zero_point_mag", "sky_mag_arcsec2", "n_sources", "n_alerts", "alert_latency_s")
_OPEN = """
const [i] = cb_data.source.selected.indices, [visit] = source.tags;
cb_data.source.selected.indices = [];
if (i !== undefined && visit) window.open(`apflow/detector?visit=${visit}&detector=${source.data.id[i]}`);
"""
_TIP = "<b>@name</b> · detector @id<br>@state<br>@text"


class Plane:
    """The map with its menu, legend and colour bar; `select` says what colours it."""

    def __init__(self) -> None:
        self.select = Select(title="Colour", value=STAGE, options=_options(), width=270)
        columns = ("x", "y", "w", "h", "id", "name", "colour", "state", "text")
        self._source = ColumnDataSource({name: [] for name in columns}, tags=[""])
        self._rafts = ColumnDataSource({name: [] for name in ("x", "y", "w", "h", "name")})
        self._mapper = LinearColorMapper(palette=colours.RAMP, low=0, high=1)
        self._bar = ColorBar(color_mapper=self._mapper, height=10, padding=4, visible=False)
        self.legend = Div(width=_SIDE_PX, height=66)
        self.figure = self._figure()
        self._camera: Camera | None = None

    @property
    def has_camera(self) -> bool:
        """Whether a camera is drawn."""
        return self._camera is not None

    def set_camera(self, camera: Camera) -> None:
        """Draw a camera."""
        self._camera = camera
        detectors = camera.detectors
        middle = np.array([(d.x_mm, d.y_mm) for d in detectors])
        sizes = drawn_sizes(camera, middle)
        self._source.data = {
            "x": middle[:, 0],
            "y": middle[:, 1],
            "w": sizes[:, 0],
            "h": sizes[:, 1],
            "id": [d.id for d in detectors],
            "name": [d.name for d in detectors],
            "colour": [colours.OFF] * len(detectors),
            "state": [""] * len(detectors),
            "text": [""] * len(detectors),
        }
        rafts = [d.raft for d in detectors]
        boxes = []
        for raft in dict.fromkeys(rafts):
            of_it = np.array([r == raft for r in rafts])
            if 2 <= of_it.sum() <= _MAX_RAFT and not of_it.all():
                low, high = (middle - sizes / 2)[of_it].min(0), (middle + sizes / 2)[of_it].max(0)
                boxes.append((*(low + high) / 2, *(high - low + 3), raft))
        self._rafts.data = dict(zip(("x", "y", "w", "h", "name"), map(list, zip(*boxes, strict=True)), strict=False))

    def update(self, visit: Visit | None, steps: Mapping[str, str]) -> None:
        """Show a visit.

        Parameters
        ----------
        visit : `Visit` or `None`
            With the metrics of its detectors.
        steps : mapping
            Step that each detector is in at the moment, by detector name.
        """
        if self._camera is None:
            return
        known = visit.detectors if visit else {}
        is_on = [d.id in known or d.name in steps for d in self._camera.detectors]
        if visit and not visit.ended:
            # Which detectors were announced is known by their number only.
            is_on = [on or d.purpose == "SCIENCE" for on, d in zip(is_on, self._camera.detectors, strict=True)]
        shown = [known.get(d.id, Detector()) for d in self._camera.detectors]
        now = [_now(s, steps.get(d.name, "")) for s, d in zip(shown, self._camera.detectors, strict=True)]
        choice = self.select.value
        self._bar.visible = choice not in (STAGE, OUTCOME)
        if self._bar.visible:
            colour, text = self._by_metric(choice, shown)
        else:
            words = now if choice == STAGE else [s.state for s in shown]
            colour = [colours.of_word(word) for word in words]
            text = [s.cause for s in shown]
            self._tell(words, is_on)
        new = {
            "colour": [c if on else colours.OFF for c, on in zip(colour, is_on, strict=True)],
            "state": [word if on else "off" for word, on in zip(now, is_on, strict=True)],
            "text": text,
        }
        changes = {name: list(_changes(self._source.data[name], values)) for name, values in new.items()}
        if any(changes.values()):
            self._source.patch({name: patch for name, patch in changes.items() if patch})
        self._source.tags = [str(visit.visit) if visit else ""]

    def _by_metric(self, metric: str, shown: list[Detector]) -> tuple[list[str], list[str]]:
        values = [s.numbers.get(metric, math.nan) for s in shown]
        known = [v for v in values if math.isfinite(v)]
        low, high = (float(f"{p:.4g}") for p in np.percentile(known, [2, 98])) if known else (0.0, 1.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        self._mapper.update(low=low, high=high)
        label, unit = metric_label(metric)
        median = (
            f"median {np.median(known):.4g} {unit} of {len(known)} detectors" if known else "no detector has it yet"
        )
        self.legend.text = f"<b>{label}</b>{', ' if unit else ''}{unit}: {median}"
        colour = [colours.ramp(v, low, high) if math.isfinite(v) else colours.EXPECTED for v in values]
        return colour, [f"{label} {v:.5g} {unit}" if math.isfinite(v) else f"no {label}" for v in values]

    def _tell(self, words: list[str], is_on: list[bool]) -> None:
        counts = Counter(word for word, on in zip(words, is_on, strict=True) if on)
        entries: list[tuple[str, str, int | str]] = [
            (c, str(s), counts[s]) for s, c in colours.STATE.items() if counts[s]
        ]
        entries += [(colours.STEP[s], s, counts[s]) for s in STEPS if counts[s]]
        entries += [(colours.EXPECTED, "expected", counts[""])] if counts[""] else []
        off = len(is_on) - sum(is_on)
        self.legend.text = colours.legend([*entries, *([(colours.OFF, "off", off)] if off else [])])

    def _figure(self) -> figure:
        plot = figure(
            width=_SIDE_PX, height=_SIDE_PX, match_aspect=True, tools="", toolbar_location=None, name="plane",
            outline_line_color=None, background_fill_color=None,
        )  # fmt: skip
        plot.axis.visible = False
        plot.grid.visible = False
        tiles = plot.rect(
            "x", "y", "w", "h", source=self._source, fill_color="colour", line_color="white", line_width=0.5,
            nonselection_fill_alpha=1, nonselection_line_alpha=1, hover_line_color="black",
        )  # fmt: skip
        plot.rect("x", "y", "w", "h", source=self._rafts, fill_color=None, line_color="#7a8494", line_width=1)
        plot.text(
            "x", "y", "name", source=self._rafts, text_align="center", text_baseline="middle", text_font_size="11px",
            text_color="#1b2330", background_fill_color="white", background_fill_alpha=0.7, padding=1,
            border_radius=3,
        )  # fmt: skip
        plot.add_tools(HoverTool(renderers=[tiles], tooltips=_TIP))
        opened = CustomJS(args={"source": self._source}, code=_OPEN)
        plot.add_tools(TapTool(renderers=[tiles], callback=opened))
        plot.add_layout(self._bar, "below")
        return plot


def _now(detector: Detector, tracked: str) -> str:
    """Its end, or the step it is in, or else the last one that is known to have run."""
    return detector.state or tracked or (detector.steps[-1][0] if detector.steps else "")


def _changes(old: list[str], new: list[str]) -> Iterator[tuple[int, str]]:
    return ((i, b) for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)


def _options() -> dict[str, list[tuple[str, str]]]:
    """What the menu offers: the most asked for, then every metric by what measures it."""
    options: dict[str, list[tuple[str, str]]] = {
        "now": [(STAGE, "stage"), (OUTCOME, "outcome")],
        "of most interest": [_entry(n) for n in _FIRST],
    }
    for choice in metric_choices():
        if choice.name not in _FIRST and not choice.name.startswith("is_") and choice.name not in State:
            options.setdefault(choice.action, []).append(_entry(choice.name))
    return options


def _entry(metric: str) -> tuple[str, str]:
    label, unit = metric_label(metric)
    return metric, f"{label}, {unit}" if unit else label
