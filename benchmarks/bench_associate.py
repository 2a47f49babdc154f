"""What association costs on a dense detector: 1,000 DiaSources, 5,000 DiaObjects, 20 past sources a candidate.

Prints one JSON object a line. `python benchmarks/bench_associate.py [--json] [--repeat N]`; ``--json`` leaves out the
line for people.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import astropy.units as u
import numpy as np
import pandas as pd
from astropy.coordinates import SkyCoord, match_coordinates_sky
from scipy.optimize import linear_sum_assignment

from apflow.catalogs.associate import associate, pair_gain
from apflow.catalogs.diaobject import new_versions
from apflow.catalogs.matching import best_pairs
from apflow.catalogs.positions import Places, neighbours, pair_cost
from apflow.model import schema
from apflow.model.products import History
from apflow.model.sky import deproject

RADIUS, FLOOR = 1.0, 0.05
SOURCES, OBJECTS, PAST, DRP = 1000, 5000, 20, 3000
SIDE_DEG = 800.0 / 3600.0
CENTRE = 150.0, -30.0


def table(name: str, east: np.ndarray, north: np.ndarray, **more: Any) -> pd.DataFrame:
    """Rows at tangent-plane offsets, degrees."""
    ra, dec = deproject(east, north, *CENTRE)
    pixels = {"x": 0.0, "y": 0.0} if name == "DiaSource" else {}
    errors = {"raErr": 0.08 / 3600, "decErr": 0.05 / 3600, "ra_dec_Cov": 0.001 / 3600**2}
    return schema.conform(pd.DataFrame({"ra": ra, "dec": dec, **errors, **pixels, **more}), name)


def detector() -> tuple[pd.DataFrame, History]:
    """New sources and the history of a field: a tenth of the sources are new, a third have a rival within 1 arcsec."""
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-SIDE_DEG / 2, SIDE_DEG / 2, (2, OBJECTS))
    old, rivals = int(0.9 * SOURCES), SOURCES // 3
    for v in (x, y):
        v[old : old + rivals] = v[:rivals] + rng.normal(0, 0.5, rivals) / 3600
    ids = 1 + np.arange(OBJECTS)
    life = {"validityStartMjdTai": 60000.0, "firstDiaSourceMjdTai": 59900.0, "lastDiaSourceMjdTai": 60000.0}
    objects = table("DiaObject", x, y, diaObjectId=ids, nDiaSources=PAST, **life)
    near = np.repeat(np.arange(old + rivals), PAST)
    past = source_table(x[near], y[near], 10**6, rng.normal(1e3, 50, len(near)), diaObjectId=ids[near])
    past["midpointMjdTai"] = np.tile(59900.0 + 100.0 * np.arange(PAST) / PAST, old + rivals)
    there = [np.concatenate([v[:old], rng.uniform(-SIDE_DEG / 2, SIDE_DEG / 2, SOURCES - old)]) for v in (x, y)]
    sx, sy = (v + rng.normal(0, 0.1, SOURCES) / 3600 for v in there)
    new = source_table(sx, sy, 10**9, np.full(SOURCES, 1e3))
    drp_x, drp_y = rng.uniform(-SIDE_DEG / 2, SIDE_DEG / 2, (2, DRP))
    ra, dec = deproject(drp_x, drp_y, *CENTRE)
    kind = (np.arange(DRP) % 2).astype(np.float32)
    drp = pd.DataFrame({"objectId": np.arange(DRP), "ra": ra, "dec": dec, "extendedness": kind})
    return new, History(objects, past, schema.empty("DiaForcedSource"), drp)


def source_table(x: np.ndarray, y: np.ndarray, first_id: int, flux: np.ndarray, **more: Any) -> pd.DataFrame:
    """DiaSources of one band."""
    fluxes = {"psfFlux": flux, "psfFluxErr": 50.0, "scienceFlux": 1e4, "scienceFluxErr": 50.0}
    given = {"diaSourceId": first_id + np.arange(len(x)), "visit": 1, "detector": 1, "midpointMjdTai": 60001.0}
    return table("DiaSource", x, y, **given, **fluxes, band="r", **more)


def matched(sources: Places, objects: Places) -> np.ndarray:
    """The object of each source by this package's matcher, -1 for none."""
    i, j = neighbours(sources, objects, RADIUS)
    chosen = best_pairs(i, j, pair_gain(pair_cost(sources.take(i), objects.take(j), FLOOR), RADIUS))
    out = np.full(len(sources), -1)
    out[i[chosen]] = j[chosen]
    return out


def matched_whole(sources: Places, objects: Places) -> np.ndarray:
    """The same by one dense assignment of all sources; impossible pairs cost infinity, which scipy solves fastest."""
    n, m = len(sources), len(objects)
    cost = np.full((n, m + n), np.inf)
    i, j = neighbours(sources, objects, RADIUS)
    cost[i, j] = -pair_gain(pair_cost(sources.take(i), objects.take(j), FLOOR), RADIUS)
    cost[np.arange(n), m + np.arange(n)] = 0.0
    _, columns = linear_sum_assignment(cost)
    return np.where(columns < m, columns, -1)


def matched_nearest(sources: Places, objects: Places) -> np.ndarray:
    """The nearest object within the radius by astropy, whether it is taken or not."""
    here, there = (SkyCoord(p.ra * u.deg, p.dec * u.deg) for p in (sources, objects))
    nearest, separation, _ = match_coordinates_sky(here, there)
    return np.where(separation.arcsec <= RADIUS, nearest, -1)


def cpu_ms(function: Callable[[], Any], repeat: int) -> float:
    """Median CPU of one call after a first one."""
    function()
    times = []
    for _ in range(repeat):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * float(np.median(times))


def say(name: str, value: float, peer: str = "", peer_value: float = 0.0, **more: Any) -> None:
    """One figure as a JSON line."""
    line = {"name": name, "value": round(value, 3), "unit": "ms CPU"}
    if peer:
        line |= {"peer": peer, "peer_value": round(peer_value, 3), "ratio": round(peer_value / value, 2)}
    print(json.dumps({**line, "sources": SOURCES, "objects": OBJECTS, **more}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON lines only")
    parser.add_argument("--repeat", type=int, default=15, help="calls to take the median of")
    options = parser.parse_args()
    if not options.json:
        print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    new, history = detector()
    sources, objects = Places.of(new), Places.of(history.objects)
    assert np.array_equal(matched(sources, objects), matched_whole(sources, objects))
    ours, whole, nearest = (
        cpu_ms(functools.partial(f, sources, objects), options.repeat)
        for f in (matched, matched_whole, matched_nearest)
    )
    say("match", ours, "scipy linear_sum_assignment on the whole matrix", whole, differs="nothing: the same pairs")
    wrong = int((matched(sources, objects) != matched_nearest(sources, objects)).sum())
    differs = f"the peer takes the nearest object, twice where two sources share it: {wrong} sources otherwise"
    say("match_and_nearest", ours, "astropy match_coordinates_sky", nearest, differs=differs)
    limits: dict[str, Any] = {"position_floor_arcsec": FLOOR, "history_days": 365.0}
    out = associate(new, history, radius_arcsec=RADIUS, max_new_objects=1000, **limits)
    all_of_it = cpu_ms(
        lambda: associate(new, history, radius_arcsec=RADIUS, max_new_objects=1000, **limits), options.repeat
    )
    say("associate", all_of_it, past_sources=len(history.sources), drp_objects=DRP, limit="50 ms")
    versions = cpu_ms(lambda: new_versions(out.sources, history, **limits), options.repeat)
    say("new_versions", versions, versions=len(out.objects), past_sources=len(history.sources))


if __name__ == "__main__":
    main()
