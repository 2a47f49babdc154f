"""Times: of a visit as a Gantt chart, and of the night as percentiles by step."""

from __future__ import annotations

import math
import statistics

import numpy as np
from bokeh.models import ColumnDataSource, CustomJSHover, Div, FactorRange, HoverTool, Select, Span
from bokeh.plotting import figure
from bokeh.transform import linear_cmap

from apflow.model.ap_metrics import STEPS
from apflow.operate.dashboard import colours
from apflow.operate.dashboard.feed import LIMIT_S, Feed, Visit
from apflow.operate.dashboard.rows import stage_percentiles

_DETECTOR, _WORKER = "detector", "worker"


class Gantt:
    """A bar for each step of each detector of a visit; numbers only, since there are some thousands."""

    def __init__(self) -> None:
        self.select = Select(title="A row for each", value=_DETECTOR, options=[_DETECTOR, _WORKER], width=120)
        self._source = ColumnDataSource({name: [] for name in ("y", "left", "right", "step", "detector")})
        self.figure = figure(
            height=330, sizing_mode="stretch_width", tools="xwheel_zoom,xpan,reset", active_scroll=None, name="gantt",
            toolbar_location="above", title="Steps of the visit, seconds from the end of readout",
            output_backend="webgl",
        )  # fmt: skip
        self.figure.toolbar.logo = None
        names = list(STEPS)
        palette = [colours.STEP[step] for step in names]
        fill = linear_cmap("step", palette, -0.5, len(names) - 0.5)
        bars = self.figure.hbar(
            y="y", left="left", right="right", height=0.9, source=self._source, fill_color=fill, line_color=None
        )
        step = CustomJSHover(args={"names": names}, code="return names[value]")
        self.figure.add_tools(
            HoverTool(
                renderers=[bars],
                tooltips="@step{custom} · detector @detector<br>@left{0.00} to @right{0.00} s",
                formatters={"@step": step},
            )
        )
        self.figure.add_layout(Span(location=0, dimension="height", line_color="#5d6878", line_dash="dashed"))
        self.figure.add_layout(Span(location=LIMIT_S, dimension="height", line_color="#c8414b", line_dash="dashed"))
        self.figure.ygrid.visible = False
        words = colours.legend((colour, step, "") for step, colour in colours.STEP.items())
        self.legend = Div(text=words, sizing_mode="stretch_width")

    def update(self, visit: Visit | None) -> None:
        """Show a visit with its steps."""
        detectors = visit.detectors if visit else {}
        bars = [(d, *step) for d, detector in sorted(detectors.items()) for step in detector.steps]
        arrived = [d.arrived_unix for d in detectors.values() if math.isfinite(d.arrived_unix)]
        arrived = arrived or [stop for _, step, _, stop, _ in bars if step == "await_science_images"]
        zero = statistics.median(arrived) if arrived else min((b[2] for b in bars), default=0.0)
        places = {worker: i for i, worker in enumerate(sorted({b[4] for b in bars}))}
        by_worker = self.select.value == _WORKER
        numbers = {step: i for i, step in enumerate(STEPS)}
        self.figure.yaxis.axis_label = "worker" if by_worker else "detector"
        self._source.data = {
            "y": np.array([places[b[4]] if by_worker else b[0] for b in bars], dtype=np.int32),
            "left": np.array([b[2] - zero for b in bars], dtype=np.float32),
            "right": np.array([b[3] - zero for b in bars], dtype=np.float32),
            "step": np.array([numbers.get(b[1], 0) for b in bars], dtype=np.int32),
            "detector": np.array([b[0] for b in bars], dtype=np.int32),
        }


class Stages:
    """Median and 98th percentile of the wall time of each step of the night."""

    def __init__(self) -> None:
        self._rows = FactorRange()
        self._source = ColumnDataSource({name: [] for name in ("step", "p50", "p98", "text")})
        self.figure = figure(
            height=380, sizing_mode="stretch_width", y_range=self._rows, x_axis_type="log", x_range=(0.0008, 200.0),
            tools="", toolbar_location=None, title="Time of each step, s: median, and 98 %", name="stages",
        )  # fmt: skip
        bars = {"y": "step", "left": 0.0005, "height": 0.75, "source": self._source, "line_color": None}
        wide = self.figure.hbar(right="p98", fill_color="#b9d8e2", **bars)
        self.figure.hbar(right="p50", fill_color="#1f6f8b", **bars)
        self.figure.text(
            "p98", "step", "text", source=self._source, x_offset=6, text_baseline="middle", text_font_size="11px",
            text_color="#1b2330",
        )  # fmt: skip
        self.figure.add_tools(HoverTool(renderers=[wide], tooltips="@step: @p50{0.000} s, 98 % @p98{0.000} s"))
        self.figure.add_layout(Span(location=LIMIT_S, dimension="height", line_color="#c8414b", line_dash="dashed"))
        self.figure.ygrid.visible = False

    def update(self, feed: Feed) -> None:
        """Show the night so far."""
        rows = stage_percentiles(feed)
        names = [name for name, *_ in rows][::-1]
        if names != self._rows.factors:
            self._rows.factors = names
        new = {
            "step": [name for name, *_ in rows],
            "p50": [p50 for _, p50, _ in rows],
            "p98": [p98 for *_, p98 in rows],
            "text": [f"{p50:.3g}  ·  {p98:.3g}" for _, p50, p98 in rows],
        }
        if new["text"] != self._source.data["text"] or new["step"] != self._source.data["step"]:
            self._source.data = new
