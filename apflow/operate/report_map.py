"""The focal plane as an SVG map, and the values that colour it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.camera import Camera
from apflow.model.visit import Visit

_FIRST = ("psf_fwhm_arcsec", "zero_point_mag", "n_sources", "n_alerts", "latency_s")
_NO_METRIC = ("visit", "detector", "arrived_unix", "stored_unix", "published_unix", "mjd_mid_tai")
_UNITS = ("arcsec", "mag", "s", "px", "electron", "nJy", "deg", "mib")
_CAPITALS = {"psf": "PSF", "fwhm": "FWHM", "wcs": "WCS", "snr": "S/N", "mad": "MAD", "n": "number of", "mib": "MiB"}
_MAX_RAFT = 12  # detectors; DECam's halves are no rafts
_SIDE = 640.0  # px of the map's longer side


def focal_plane_svg(camera: Camera) -> str:
    """Every detector as a rectangle with its id, rafts outlined and labelled; +Y up.

    Cut-outs are drawn as large as their spacing allows, since at their true
    size they could not be told apart.
    """
    centres = np.array([(d.x_mm, d.y_mm) for d in camera.detectors])
    sizes = drawn_sizes(camera, centres)
    low, high = (centres - sizes / 2).min(0), (centres + sizes / 2).max(0)
    scale = _SIDE / (high - low).max()
    middle = np.stack([centres[:, 0] - low[0], high[1] - centres[:, 1]], -1) * scale
    width, height = (high - low) * scale
    rectangles = [
        f'<rect class="ccd" data-d="{i}" x="{x - w / 2:.1f}" y="{y - h / 2:.1f}" width="{w:.1f}" height="{h:.1f}" '
        f'rx="1.5" tabindex="-1"/>'
        for i, ((x, y), (w, h)) in enumerate(zip(middle, sizes * scale, strict=True))
    ]
    rafts = _rafts(camera, middle, sizes * scale)
    return (
        f'<svg id="map" viewBox="-6 -6 {width + 12:.0f} {height + 12:.0f}" role="img" '
        f'aria-label="Focal plane of {escape(camera.instrument)}">{"".join(rectangles)}{rafts}</svg>'
    )


class Shown(NamedTuple):
    """What the menu says of a visit."""

    visit: int
    band: str


def map_data(camera: Camera, visits: Sequence[Visit | Shown], ledger: pd.DataFrame) -> dict[str, Any]:
    """States, causes and metrics by visit and detector, in the order of the map, ready for JSON."""
    index = pd.MultiIndex.from_product([[v.visit for v in visits], [d.id for d in camera.detectors]])
    table = with_latency(ledger).set_index(["visit", "detector"])
    table = table[~table.index.duplicated()].reindex(index)
    shape = (len(visits), len(camera.detectors))

    def grid(values: Any) -> list[Any]:
        rows: list[Any] = np.asarray(values, dtype=object).reshape(shape).tolist()
        return rows

    return {
        "visits": [{"id": str(v.visit), "band": v.band} for v in visits],
        "detectors": [{"id": d.id, "name": d.name, "purpose": d.purpose.lower()} for d in camera.detectors],
        "state": grid(table["state"].astype(object).where(table["state"].notna(), None)),
        "cause": grid([_cause(step, cause) for step, cause in zip(table["step"], table["cause"], strict=True)]),
        "metrics": [_metric(name, table[name], grid) for name in metric_columns(ledger)],
    }


def with_latency(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger with latency_s: end of readout to the published alert."""
    if "latency_s" in ledger:
        return ledger
    return ledger.assign(latency_s=ledger["published_unix"].astype(float) - ledger["arrived_unix"].astype(float))


def metric_columns(ledger: pd.DataFrame) -> list[str]:
    """Numeric columns of the ledger that hold something, the most asked for first."""
    table = with_latency(ledger)
    numeric = [c for c in map(str, table) if c not in _NO_METRIC and pd.api.types.is_numeric_dtype(table[c].dtype)]
    known = [c for c in numeric if np.isfinite(_numbers(table[c])).any()]
    return [c for c in _FIRST if c in known] + sorted(c for c in known if c not in _FIRST)


def metric_label(name: str) -> tuple[str, str]:
    """A metric's name in words, and its unit: ``psf_fwhm_arcsec`` is PSF FWHM, arcsec."""
    words = name.split("_")
    unit = words.pop() if len(words) > 1 and words[-1] in _UNITS else ""
    text = " ".join(_CAPITALS.get(w, w) for w in words)
    return text[0].upper() + text[1:], _CAPITALS.get(unit, unit)


def _metric(name: str, column: pd.Series, grid: Any) -> dict[str, Any]:
    values = _numbers(column)
    good = values[np.isfinite(values)]
    low, high = np.percentile(good, [2, 98]) if good.size else (0.0, 1.0)
    if low == high:
        low, high = good.min(), good.max()
    label, unit = metric_label(name)
    rounded = [float(f"{v:.5g}") if np.isfinite(v) else None for v in values.tolist()]
    return {"label": label, "unit": unit, "low": float(low), "high": float(high), "values": grid(rounded)}


def _numbers(column: pd.Series) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))


def _cause(step: Any, cause: Any) -> str:
    return ": ".join(str(part) for part in (step, cause) if isinstance(part, str) and part)


def drawn_sizes(camera: Camera, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Width and height of each detector on the map, mm, as large as leaves a gap between neighbours."""
    sizes = np.array([(d.nx, d.ny) for d in camera.detectors], float) * camera.pixel_mm
    turned = np.array([round(d.yaw_deg / 90) % 2 == 1 for d in camera.detectors])
    sizes[turned] = sizes[turned, ::-1]
    if len(centres) > 1:
        apart = np.abs(centres[:, None] - centres[None])
        room = (apart / ((sizes[:, None] + sizes[None]) / 2)).max(-1)
        np.fill_diagonal(room, np.inf)
        purpose = np.array([d.purpose for d in camera.detectors])
        # Halves of wavefront CCDs are close to each other, and must not make their neighbours small.
        growth = np.where(purpose[:, None] == purpose[None], room, np.inf).min(1)
        sizes *= 0.95 * np.minimum(growth, np.median(growth))[:, None]
    return sizes


def _rafts(camera: Camera, middle: NDArray[np.float64], sizes: NDArray[np.float64]) -> str:
    """Outlines and labels of the rafts."""
    parts = []
    for raft in dict.fromkeys(d.raft for d in camera.detectors):
        members = np.array([d.raft == raft for d in camera.detectors])
        if not 2 <= members.sum() <= _MAX_RAFT or members.all():
            continue
        (x0, y0), (x1, y1) = (middle - sizes / 2)[members].min(0), (middle + sizes / 2)[members].max(0)
        parts.append(
            f'<rect class="raft" x="{x0 - 1.5:.1f}" y="{y0 - 1.5:.1f}" width="{x1 - x0 + 3:.1f}" '
            f'height="{y1 - y0 + 3:.1f}" rx="3"/>'
            f'<text class="raft-label" x="{(x0 + x1) / 2:.1f}" y="{(y0 + y1) / 2:.1f}">{escape(raft)}</text>'
        )
    return "".join(parts)
