"""The picture of the graph: what ``apflow graph show`` prints and graphs/alert_production.md holds."""

from __future__ import annotations

from apflow.graph_draw import mermaid, trace
from apflow.graphs import alert_production

_HEAD = """# Alert production

Drawn from `alert_production.py` by `apflow graph show`; a test keeps it fresh. Boxes compute, stadiums wait on the
outside world and hold no compute slot, boxes with double sides gather over detectors.

"""
_PREPARE = """## Preparation

At nextVisit, before anybody knows the exposure: calibs, template cells and reference stars go into the memory of the
worker that will use them.

"""


def alert_production_markdown() -> str:
    """The graph of alert production as Markdown with a Mermaid diagram."""
    visit, prepare = (mermaid(trace(graph)) for graph in (alert_production.visit, alert_production.prepare))
    return f"{_HEAD}```mermaid\n{visit}```\n\n{_PREPARE}```mermaid\n{prepare}```"
