"""Header cards of FITS files (standard 4.0, section 4): text from values and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

CARD = 80


def parse_cards(cards: bytes) -> dict[str, Any]:
    """Header values by keyword; comments and blank cards are left out."""
    text = cards.decode("ascii", "replace")
    if "CONTINUE" in text:
        from astropy.io import fits

        return {k: plain(v) for k, v in fits.Header.fromstring(text).items() if k not in ("", "COMMENT", "HISTORY")}
    header: dict[str, Any] = {}
    for i in range(0, len(text), CARD):
        key, value = text[i : i + 8].rstrip(), text[i + 8 : i + CARD]
        if key == "HIERARCH" and "=" in value:
            key, value = value.split("=", 1)
            header[key.strip()] = _value(value)
        elif value[:1] == "=":
            header[key] = _value(value[1:])
    return header


def _value(text: str) -> Any:
    text = text.strip()
    if text.startswith("'"):
        end = text.find("'", 1)
        while end >= 0 and text[end + 1 : end + 2] == "'":
            end = text.find("'", end + 2)
        return text[1:end].replace("''", "'").rstrip()
    word = text.split("/", 1)[0].strip()
    if word in ("T", "F"):
        return word == "T"
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word.replace("D", "E"))
    except ValueError:
        return word or None


def plain(value: Any) -> Any:
    """A header value of astropy as a Python one; None for what is undefined."""
    return value if isinstance(value, str | bool | int | float) else None


def card(key: str, value: Any) -> str:
    """One keyword as a card of 80 characters, or several where a string is long.

    Keywords longer than eight characters follow the HIERARCH convention;
    values that are not finite are undefined.
    """
    if isinstance(value, str):
        word = "'" + value.replace("'", "''").ljust(8) + "'"
    elif isinstance(value, bool | np.bool_):
        word = f"{'T' if value else 'F':>20}"
    elif value is None or not math.isfinite(value):
        word = ""
    elif isinstance(value, int | np.integer):
        word = f"{int(value):>20}"
    else:
        word = f"{repr(float(value)).upper():>20}"
    text = f"{key:<8}= {word}" if len(key) <= 8 else f"HIERARCH {key} = {word.strip()}"
    if len(text) <= CARD:
        return text.ljust(CARD)
    from astropy.io import fits

    return str(fits.Card(key, value))  # CONTINUE cards
