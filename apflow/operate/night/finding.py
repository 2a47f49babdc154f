"""What a check of the doctor found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, FAILURE = "ok", "warning", "failure"


@dataclass(frozen=True)
class Finding:
    """The end of one check.

    Attributes
    ----------
    check : `str`
    level : `str`
        ``ok``, ``warning`` or ``failure``.
    found : `str`
        What there is.
    remedy : `str`
        What to do about it; empty where all is well.
    """

    check: str
    level: str
    found: str
    remedy: str = ""


def fine(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, OK, found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """A night can begin, and will be worse for it."""
    return Finding(check, WARNING, found, remedy)


def failure(check: str, found: str, remedy: str) -> Finding:
    """A night should not begin like this."""
    return Finding(check, FAILURE, found, remedy)
