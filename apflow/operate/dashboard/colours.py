"""Colours of the dashboard: states as in the replay's report, steps in their order, verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from bokeh.palettes import Turbo256, Viridis256

from apflow.model.ap_metrics import STEPS
from apflow.model.ledger import State

STATE = {
    State.DONE: "#4fa387",
    State.NO_TEMPLATE: "#8fa3bf",
    State.NO_CALIB: "#b7a3d0",
    State.IMAGE_TIMEOUT: "#e3b341",
    State.BAD_DATA: "#dd7f45",
    State.FAILED: "#c8414b",
    State.CANCELLED: "#a9adb5",
}
#: From blue to yellow: the low end of Turbo is too dark to tell apart, the high one is red, as failures are.
STEP: dict[str, str] = {step: Turbo256[20 + 145 * i // (len(STEPS) - 1)] for i, step in enumerate(STEPS)}
#: Not of the visit; of it, and nothing known yet.
OFF, EXPECTED = "#c3c8d0", "#eef1f5"
_WORDS = STEP | {str(state): colour for state, colour in STATE.items()}
#: Behind text.
VERDICT = {"": "transparent", "acceptable": "#d9efe4", "warning": "#f8e3a8", "alert": "#f4b9ae"}
RAMP: tuple[str, ...] = Viridis256


def of_word(word: str) -> str:
    """The colour of a state or a step, or of what is not known yet."""
    return _WORDS.get(word, EXPECTED)


def ramp(value: float, low: float, high: float) -> str:
    """The colour of a value between the ends of the ramp."""
    part = (value - low) / ((high - low) or 1.0)
    return RAMP[int(min(max(part, 0.0), 1.0) * (len(RAMP) - 1))]


def legend(entries: Iterable[tuple[str, str, int | str]]) -> str:
    """(colour, text, count) as HTML."""
    return "".join(
        f'<span style="display:inline-block;margin:0 14px 4px 0;white-space:nowrap"><i style="display:inline-block;'
        f'width:11px;height:11px;border-radius:3px;margin-right:6px;background:{colour}"></i>{escape(text)} '
        f"<b>{n}</b></span>"
        for colour, text, n in entries
    )
