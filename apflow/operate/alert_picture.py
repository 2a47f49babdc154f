"""An alert as a picture: its stamps, its light curve and what it says of the source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from apflow.io.atomic import atomic
from apflow.model.wcs import Wcs
from apflow.operate.alert_curve import BAND_COLOURS, OTHER_COLOUR, Curve, labels, light_curve, span, ticks, time_unit
from apflow.operate.alert_facts import facts, title
from apflow.operate.alert_stamps import STAMPS, greys, read_stamp

#: All sizes are in pixels of the finished picture; it is drawn larger and then reduced, for smooth lines.
_FINE = 2
_SIDE, _GAP, _MARGIN, _LINE = 270, 14, 22, 19
_PLOT_HEIGHT, _LEFT, _BOTTOM = 290, 78, 40
_WIDTH = 2 * _MARGIN + 3 * _SIDE + 2 * _GAP
_INK, _PALE, _RULE = "#1b1f24", "#6a737d", "#d5dae0"
_COLUMNS = 3
_ARROW = 34


class _Pen:
    """Drawing in pixels of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * _FINE, height * _FINE), "white")
        self._draw = ImageDraw.Draw(self.image)
        self._fonts = {size: ImageFont.load_default(size * _FINE) for size in (13, 18)}

    def text(self, x: float, y: float, words: str, colour: str = _INK, size: int = 13, anchor: str = "la") -> None:
        self._draw.text((x * _FINE, y * _FINE), words, colour, self._fonts[size], anchor)

    def line(self, *points: tuple[float, float], colour: str = _INK, width: float = 1) -> None:
        self._draw.line([(x * _FINE, y * _FINE) for x, y in points], colour, max(1, round(width * _FINE)))

    def circle(self, x: float, y: float, radius: float, fill: str | None, outline: str, width: float = 1.4) -> None:
        box = [(v + d) * _FINE for d in (-radius, radius) for v in (x, y)]
        self._draw.ellipse(box, fill, outline, max(1, round(width * _FINE)))

    def paste(self, tile: Image.Image, x: int, y: int) -> None:
        size = (_SIDE * _FINE, _SIDE * _FINE)
        self.image.paste(tile.resize(size, Image.Resampling.NEAREST).convert("RGB"), (x * _FINE, y * _FINE))


def write_picture(path: Path, alert: Mapping[str, Any]) -> None:
    """Write a PNG of an alert.

    Parameters
    ----------
    path : `~pathlib.Path`
    alert : mapping
        A decoded packet.

    Raises
    ------
    DataError
        A stamp is no FITS file.
    ServiceError
        The file cannot be written.
    """
    known = facts(alert)
    rows = -(-len(known) // _COLUMNS)
    stamps_top = _MARGIN + 2 * _LINE + 12
    plot_top = stamps_top + _LINE + _SIDE + _GAP
    facts_top = plot_top + _PLOT_HEIGHT + _GAP
    pen = _Pen(_WIDTH, facts_top + rows * _LINE + _MARGIN)
    pen.text(_MARGIN, _MARGIN - 4, title(alert), size=18)
    pen.text(_MARGIN, _MARGIN + _LINE + 4, _where(alert), _PALE)
    _draw_stamps(pen, alert, stamps_top)
    _draw_curve(pen, light_curve(alert), plot_top)
    _draw_facts(pen, known, facts_top)
    with atomic(path) as file:
        pen.image.reduce(_FINE).save(file, "PNG")


def _where(alert: Mapping[str, Any]) -> str:
    source = alert["diaSource"]
    return (
        f"RA {source['ra']:.6f}°  Dec {source['dec']:+.6f}°   visit {source['visit']}  detector {source['detector']}"
        f"   MJD {source['midpointMjdTai']:.5f} TAI"
    )


def _draw_stamps(pen: _Pen, alert: Mapping[str, Any], top: int) -> None:
    pictures = greys(alert)
    for k, (name, field) in enumerate(STAMPS.items()):
        left = _MARGIN + k * (_SIDE + _GAP)
        note = "   -8 to +8 sigma" if name == "difference" else ""
        pen.text(left, top, f"{name}{note}", _PALE)
        y = top + _LINE
        if name not in pictures:
            corners = (left, y), (left + _SIDE, y), (left + _SIDE, y + _SIDE), (left, y + _SIDE), (left, y)
            pen.line(*corners, colour=_RULE)
            pen.text(left + _SIDE / 2, y + _SIDE / 2, "no stamp", _PALE, anchor="mm")
            continue
        stamp = read_stamp(alert[field])
        pen.paste(Image.fromarray(pictures[name][::-1]), left, y)
        if stamp.wcs is not None:
            _mark_source(pen, alert, stamp.wcs, stamp.image.shape, (left, y))
        if stamp.wcs is not None and name == "science":
            _draw_compass(pen, stamp.wcs, stamp.image.shape, (left, y))


def _mark_source(
    pen: _Pen, alert: Mapping[str, Any], wcs: Wcs, shape: tuple[int, ...], corner: tuple[int, int]
) -> None:
    """Two marks that point at the source and leave it free."""
    x, y = (float(v) for v in wcs.sky_to_pixel(alert["diaSource"]["ra"], alert["diaSource"]["dec"]))
    zoom = _SIDE / shape[1]
    cx, cy = corner[0] + (x + 0.5) * zoom, corner[1] + _SIDE - (y + 0.5) * _SIDE / shape[0]
    near, far = 36, 60
    for ends in (((cx - far, cy), (cx - near, cy)), ((cx, cy + near), (cx, cy + far))):
        if all(corner[0] < px < corner[0] + _SIDE and corner[1] < py < corner[1] + _SIDE for px, py in ends):
            pen.line(*ends, colour="#000000", width=3)
            pen.line(*ends, colour="#ffe14d", width=1.5)


def _draw_compass(pen: _Pen, wcs: Wcs, shape: tuple[int, ...], corner: tuple[int, int]) -> None:
    """North and East, and the length of some arcseconds."""
    inverse = np.linalg.inv(wcs.cd)
    foot = corner[0] + _SIDE - 52, corner[1] + 52
    for letter, direction in (("N", inverse[:, 1]), ("E", inverse[:, 0])):
        dx, dy = direction / np.hypot(*direction)
        tip = foot[0] + _ARROW * dx, foot[1] - _ARROW * dy
        pen.line(foot, tip, colour="#000000", width=3)
        pen.line(foot, tip, colour="#ffffff", width=1.5)
        pen.text(foot[0] + 1.28 * _ARROW * dx, foot[1] - 1.28 * _ARROW * dy, letter, "#ffe14d", anchor="mm")
    scale = 3600 * math.sqrt(abs(float(np.linalg.det(wcs.cd))))
    arcsec = max((a for a in (1, 2, 5, 10) if a / scale < shape[1] / 3), default=1)
    length = arcsec / scale * _SIDE / shape[1]
    x, y = corner[0] + 12, corner[1] + _SIDE - 14
    pen.line((x, y), (x + length, y), colour="#000000", width=4)
    pen.line((x, y), (x + length, y), colour="#ffffff", width=2)
    pen.text(x, y - 6, f'{arcsec}"', "#ffe14d", anchor="ls")


def _draw_curve(pen: _Pen, curve: Curve, top: int) -> None:
    right, bottom, left = _WIDTH - _MARGIN, top + _PLOT_HEIGHT - _BOTTOM, _MARGIN + _LEFT
    top += _LINE
    error = np.nan_to_num(curve.error)
    unit, per_day = time_unit(curve.days)
    times = curve.days * per_day
    xlim = span(times, 1.0)
    ylim = span(np.concatenate([curve.flux - error, curve.flux + error, [0.0]]), 1.0)

    def place(time: float, flux: float) -> tuple[float, float]:
        x = left + (time - xlim[0]) / (xlim[1] - xlim[0]) * (right - left)
        return x, bottom - (flux - ylim[0]) / (ylim[1] - ylim[0]) * (bottom - top)

    _draw_axes(pen, xlim, ylim, (left, top, right, bottom), unit)
    for time, flux, sigma, band, forced in zip(times, curve.flux, error, curve.band, curve.forced, strict=True):
        colour = BAND_COLOURS.get(band, OTHER_COLOUR)
        x, y = place(time, flux)
        pen.line(place(time, flux - sigma), place(time, flux + sigma), colour=colour, width=1.2)
        pen.circle(x, y, *((4.4, "#ffffff") if forced else (3.0, colour)), colour)
        if time == 0 and not forced:
            pen.circle(x, y, 7.5, None, _INK, 1.2)
    _draw_legend(pen, curve, left, top - 10)


def _draw_axes(
    pen: _Pen, xlim: tuple[float, float], ylim: tuple[float, float], box: tuple[int, int, int, int], unit: str
) -> None:
    left, top, right, bottom = box
    times, fluxes = ticks(*xlim, 8), ticks(*ylim, 5)
    for time, label in zip(times, labels(times), strict=True):
        x = left + (time - xlim[0]) / (xlim[1] - xlim[0]) * (right - left)
        pen.line((x, bottom), (x, bottom + 4), colour=_PALE)
        pen.text(x, bottom + 6, label, _PALE, anchor="ma")
    for flux, label in zip(fluxes, labels(fluxes), strict=True):
        y = bottom - (flux - ylim[0]) / (ylim[1] - ylim[0]) * (bottom - top)
        pen.line((left, y), (right, y), colour=_PALE if flux == 0 else _RULE, width=0.6)
        pen.text(left - 7, y, label, _PALE, anchor="rm")
    pen.line((left, top), (left, bottom), (right, bottom), colour=_PALE)
    pen.text((left + right) / 2, bottom + 22, f"{unit} from this alert", _PALE, anchor="ma")
    pen.text(_MARGIN, top - _LINE, "nJy", _PALE)


def _draw_legend(pen: _Pen, curve: Curve, x: float, y: float) -> None:
    for band in curve.bands:
        colour = BAND_COLOURS.get(band, OTHER_COLOUR)
        pen.circle(x + 4, y, 3.2, colour, colour)
        pen.text(x + 12, y, band, anchor="lm")
        x += 34
    for words, radius, fill in (("detected", 3.0, _INK), ("forced", 4.4, "#ffffff")):
        pen.circle(x + 14, y, radius, fill, _INK)
        pen.text(x + 22, y, words, _PALE, anchor="lm")
        x += 84
    pen.circle(x + 14, y, 5.5, None, _INK, 1.2)
    pen.text(x + 25, y, "this alert", _PALE, anchor="lm")


def _draw_facts(pen: _Pen, known: Mapping[str, str], top: int) -> None:
    rows, width = -(-len(known) // _COLUMNS), (_WIDTH - 2 * _MARGIN) // _COLUMNS
    for n, (name, value) in enumerate(known.items()):
        x, y = _MARGIN + n // rows * width, top + n % rows * _LINE
        pen.text(x, y, name, _PALE)
        pen.text(x + 100, y, value)
