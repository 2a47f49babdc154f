"""The visits of a night as a table of the page."""

from __future__ import annotations

from bokeh.models import ColumnDataSource, DataTable, HTMLTemplateFormatter, InlineStyleSheet, TableColumn

from apflow.operate.dashboard import colours
from apflow.operate.dashboard.feed import Feed, Visit
from apflow.operate.dashboard.rows import HEADS, JUDGED, visit_row
from apflow.operate.night.ranges import Ranges

#: Visits in the table of the page, two hours of them.
SHOWN = 200
_WIDTHS = {"visit": 112, "utc": 66, "band": 42, "not_done": 150, "on_time": 66, "latency_p50": 58, "latency_p98": 58}


class VisitTable:
    """Newest first; only rows that changed are sent."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        names = [*HEADS, *(f"{name}_verdict" for name in JUDGED)]
        self.source = ColumnDataSource({name: [] for name in names})
        style = "".join(f".v-{name or 'none'}{{background:{colour}}}" for name, colour in colours.VERDICT.items())
        style += ".slick-cell{padding:0!important}.cell{padding:2px 5px;height:100%}"
        self.table = DataTable(
            source=self.source, columns=[_column(name, head) for name, head in HEADS.items()], index_position=None,
            autosize_mode="none", sizing_mode="stretch_width", height=290, row_height=24, name="visits",
            stylesheets=[InlineStyleSheet(css=style)],
        )  # fmt: skip
        self._versions: dict[int, int] = {}

    def update(self, feed: Feed) -> None:
        """Take what is new."""
        visits = list(feed.visits.values())[: -SHOWN - 1 : -1]
        if [v.visit for v in visits] != list(self._versions):
            old = {int(v): i for i, v in enumerate(self.source.data["visit"])}
            kept = {name: list(values) for name, values in self.source.data.items()}
            rows = []
            for v in visits:
                if v.visit in old and self._versions[v.visit] == v.version:
                    rows.append({name: kept[name][old[v.visit]] for name in kept})
                else:
                    rows.append(self._row(v))
            self.source.data = {name: [row[name] for row in rows] for name in kept}
        else:
            patches: dict[str, list[tuple[int, str]]] = {}
            for i, v in enumerate(visits):
                if self._versions[v.visit] != v.version:
                    for name, value in self._row(v).items():
                        if self.source.data[name][i] != value:
                            patches.setdefault(name, []).append((i, value))
            if patches:
                self.source.patch(patches)
        self._versions = {v.visit: v.version for v in visits}

    def mark(self, visit: int | None) -> None:
        """Show which one the other panes are about."""
        shown = list(self._versions)
        wanted = [shown.index(visit)] if visit in self._versions else []
        if self.source.selected.indices != wanted:
            self.source.selected.indices = wanted

    def visit_at(self, row: int) -> int:
        """The visit of a row."""
        return list(self._versions)[row]

    def _row(self, visit: Visit) -> dict[str, str]:
        row = visit_row(visit, self._ranges)
        return {n: text for n, (text, _) in row.items()} | {f"{n}_verdict": row[n][1] or "none" for n in JUDGED}


def _column(name: str, head: str) -> TableColumn:
    verdict = f"v-<%= {name}_verdict %>" if name in JUDGED else ""
    right = "" if name in ("visit", "utc", "band", "not_done") else "text-align:right"
    template = f'<div class="cell {verdict}" style="{right}" title="<%= value %>"><%= value %></div>'
    return TableColumn(
        field=name, title=head, width=_WIDTHS.get(name, 74), formatter=HTMLTemplateFormatter(template=template),
        sortable=False,
    )  # fmt: skip
