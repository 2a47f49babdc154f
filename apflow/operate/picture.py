"""The pictures of the graphs: what ``apflow graph show`` prints and graphs/*.md hold."""

from __future__ import annotations

from apflow.errors import BadRequest
from apflow.graph_draw import mermaid, trace

_HEAD = """# {title}

Drawn from `{name}.py` by `apflow graph show{argument}`; a test keeps it fresh. Boxes compute, stadiums wait on the
outside world and hold no compute slot, boxes with double sides gather over detectors.

"""
_PREPARE = """## Preparation

At nextVisit, before anybody knows the exposure: calibs, template cells and reference stars go into the memory of the
worker that will use them.

"""


def graph_markdown(name: str) -> str:
    """A graph as Markdown with a Mermaid diagram.

    Raises
    ------
    BadRequest
        There is no such graph.
    """
    pictures = {"alert_production": alert_production_markdown, "raw_calibration": raw_calibration_markdown}
    if name not in pictures:
        raise BadRequest(f"graph {name!r} is unknown; accepted: {', '.join(pictures)}")
    return pictures[name]()


def alert_production_markdown() -> str:
    """The graph of alert production as Markdown with a Mermaid diagram."""
    from apflow.graphs import alert_production

    visit, prepare = (mermaid(trace(graph)) for graph in (alert_production.visit, alert_production.prepare))
    head = _HEAD.format(title="Alert production", name="alert_production", argument="")
    return f"{head}```mermaid\n{visit}```\n\n{_PREPARE}```mermaid\n{prepare}```"


def raw_calibration_markdown() -> str:
    """The graph of raw calibration, as that of alert production."""
    from apflow.graphs import raw_calibration

    head = _HEAD.format(title="Raw calibration", name="raw_calibration", argument=" raw_calibration")
    return f"{head}```mermaid\n{mermaid(trace(raw_calibration.exposure))}```"
