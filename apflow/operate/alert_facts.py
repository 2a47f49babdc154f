"""What an alert says of its source, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from astropy.time import Time


def title(alert: Mapping[str, Any]) -> str:
    """One line: which alert, and of what."""
    source = alert["diaSource"]
    of = f"DiaObject {source['diaObjectId']}" if source["diaObjectId"] else f"SSObject {source['ssObjectId']}"
    return f"alert {alert['diaSourceId']}   {of}"


def facts(alert: Mapping[str, Any]) -> dict[str, str]:
    """What one asks about first, by its name; what is unknown is left out."""
    source, known = alert["diaSource"], alert["diaObject"] or {}
    earlier, forced = (alert.get(name) or () for name in ("prvDiaSources", "prvDiaForcedSources"))
    found = {
        "observed": _utc(source["midpointMjdTai"]),
        "band": source["band"],
        "S/N": _number(source["snr"]),
        "difference": _flux(source["psfFlux"], source["psfFluxErr"]),
        "science": _flux(source["scienceFlux"], source["scienceFluxErr"]),
        "template": _flux(source.get("templateFlux"), source.get("templateFluxErr")),
        "reliability": _number(source["reliability"]),
        "history": f"{len(earlier)} detected, {len(forced)} forced",
        "sources": _number(known.get("nDiaSources")),
        "first seen": _ago(known.get("firstDiaSourceMjdTai"), source["midpointMjdTai"]),
        "shape": "dipole" if source["isDipole"] else "trail" if source["glint_trail"] else None,
        "sign": "negative" if source["isNegative"] else None,
        "flags": ", ".join(_flags(source)) or None,
        "withdrawn": _utc(source["timeWithdrawnMjdTai"]),
    }
    return {name: value for name, value in found.items() if value}


def utc(mjd_tai: float) -> str:
    """A time of the night as people read it, UTC."""
    text: str = Time(mjd_tai, format="mjd", scale="tai").utc.isot
    return text[:19]


def _flags(source: Mapping[str, Any]) -> list[str]:
    """Flags of pixels that are set, without those that the centre's own repeat."""
    names = [n.removeprefix("pixelFlags_") for n, v in source.items() if n.startswith("pixelFlags_") and v is True]
    return [n for n in names if f"{n}Center" not in names]


def _is_known(value: float | None) -> TypeGuard[float]:
    """Whether there is a number: unknown ones are null, or NaN as Rubin's production has them."""
    return value is not None and math.isfinite(value)


def _utc(mjd_tai: float | None) -> str | None:
    return utc(mjd_tai) if _is_known(mjd_tai) else None


def _number(value: float | None) -> str | None:
    return f"{value:.4g}" if _is_known(value) else None


def _flux(value: float | None, error: float | None) -> str | None:
    if not _is_known(value):
        return None
    return f"{value:,.0f}" + (f" ± {error:,.0f}" if _is_known(error) else "") + " nJy"


def _ago(mjd_tai: float | None, now: float) -> str | None:
    if not _is_known(mjd_tai):
        return None
    days = now - mjd_tai
    if days < 1e-6:
        return "now"
    name, seconds = next(
        (u for u in (("days", 86_400), ("h", 3600), ("min", 60)) if days * 86_400 > 2 * u[1]), ("s", 1)
    )
    return f"{days * 86_400 / seconds:.3g} {name} before"
