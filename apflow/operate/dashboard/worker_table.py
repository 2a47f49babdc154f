"""The workers of a scheduler and their memory."""

from __future__ import annotations

from typing import Any

from bokeh.models import ColumnDataSource, DataTable, HTMLTemplateFormatter, TableColumn

_MIB = 1 << 20
#: Memory is told to this many MiB, so that a worker at rest is no change.
_STEP_MIB = 16
_BAR = """
<div style="position:relative"><div style="position:absolute;top:3px;bottom:3px;width:<%= value %>%;background:#b9d8e2">
</div><span style="position:relative;padding-left:4px"><%= memory %></span></div>
"""


class WorkerTable:
    """Workers, the fullest first."""

    def __init__(self) -> None:
        columns = ("name", "role", "tasks", "memory", "part")
        self._source = ColumnDataSource({name: [] for name in columns})
        self.table = DataTable(
            source=self._source,
            columns=[
                TableColumn(field="name", title="worker", width=150),
                TableColumn(field="role", title="for", width=60),
                TableColumn(field="tasks", title="tasks", width=45),
                TableColumn(
                    field="part", title="memory", width=170, formatter=HTMLTemplateFormatter(template=_BAR)
                ),
            ],
            index_position=None, height=330, row_height=22, sizing_mode="stretch_width", name="workers",
        )  # fmt: skip

    def update(self, scheduler: Any) -> None:
        """Look at the workers; nothing is sent where nothing changed."""
        rows = sorted((worker_row(w) for w in scheduler.workers.values()), key=lambda r: (-r["part"], r["name"]))
        new = {name: [row[name] for row in rows] for name in self._source.data}
        if new != self._source.data:
            self._source.data = new


def worker_row(worker: Any) -> dict[str, Any]:
    """What is shown of a worker of Dask's scheduler."""
    used = int(worker.memory.process / _MIB) // _STEP_MIB * _STEP_MIB
    limit = worker.memory_limit / _MIB
    return {
        "name": str(worker.name),
        "role": "gather" if "gather" in worker.resources else "pixels",
        "tasks": len(worker.processing),
        "memory": f"{used:,} of {limit:,.0f} MiB" if limit else f"{used:,} MiB",
        "part": round(100 * used / limit) if limit else 0,
    }
