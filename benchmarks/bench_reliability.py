"""How well the reliability model tells real from bogus: area under the ROC curve, and what is missed.

Prints one JSON object a line. `python benchmarks/bench_reliability.py [--json] [--data DIR] [--scenes N] [--seeds N...]
[--model FILE]`. Missed is the part of the real sources below the cut that 1 % or 5 % of the bogus ones pass.

simulated: pairs as those that the model learned from, with other seeds, of all kinds of telescopes and with all kinds
of artefacts. other: the clean pairs of `bench_pixels.py`, made by another simulator. real: pairs of a folder, with
changes put into them that count as real, and all else as bogus but for the places that are known to have changed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pixel_pairs import simulated_pair
from pixel_real import RealPair, changes_for, prepared, put_in, real_pairs
from pixel_sky import KINDS
from scipy.spatial import cKDTree

from apflow.errors import DataError
from apflow.io.reliability import read_model
from apflow.model.exposure import Exposure
from apflow.model.products import Difference
from apflow.model.reliability import Model
from apflow.pixels.detect import detect
from apflow.pixels.measure import measure
from apflow.pixels.reliability import reliability
from apflow.pixels.subtract import subtract
from apflow.simulate.impostors import draw_conditions, make_scene
from apflow.simulate.train_reliability import SCENE_PX, THRESHOLD, label

F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]

HELD_OUT = (101, 102, 103)
#: Percent of the bogus sources that pass, and the cuts that are looked at.
_FALSE_PERCENT, _CUTS = (1, 5), (0.1, 0.3, 0.5, 0.7)
#: The cut is for sources of so much S/N; the rest is what detection's threshold is for.
_BRIGHT = 6.0
#: Of a true change, FWHM: sources nearer are it, sources further off than the second are not.
_NEAR, _FAR = 1.0, 2.5


def say(name: str, value: float, unit: str, **more: Any) -> None:
    """Print a figure."""
    print(json.dumps({"name": name, "value": round(float(value), 4), "unit": unit, **more}), flush=True)


def roc(score: F8, real: Bool) -> tuple[F8, F8]:
    """Parts of the bogus and of the real sources at every score or above it, from the highest score down."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    false, true = (np.cumsum(which[order])[last] / which.sum() for which in (~real, real))
    return np.append(0.0, false), np.append(0.0, true)


def judge(what: str, table: pd.DataFrame) -> None:
    """Figures of a set of sources: columns score, real, snr."""
    score, real = table["score"].to_numpy(float), table["real"].to_numpy(bool)
    n = {"real": int(real.sum()), "bogus": int((~real).sum())}
    if not all(n.values()):
        say(f"{what}_auc", float("nan"), "", **n)
        return
    false, true = roc(score, real)
    say(f"{what}_auc", float(np.trapezoid(true, false)), "", **n)
    for percent in _FALSE_PERCENT:
        say(f"{what}_missed_at_{percent}_percent", 1 - float(true[100 * false <= percent].max()), "part")
    bright = np.abs(table["snr"].to_numpy(float)) > _BRIGHT
    whole = int((real & bright).sum())
    for cut in _CUTS:
        passed = bright & (score >= cut)
        good = int((real & passed).sum())
        kept = round(good / whole, 4) if whole else None
        say(f"{what}_purity_snr6_cut{cut:g}", good / int(passed.sum()) if passed.any() else 1.0, "part", kept=kept)


def rated(difference: Difference, science: Exposure, model: Model) -> pd.DataFrame:
    """Sources of a difference with their score."""
    sources = measure(difference, science, detect(difference, THRESHOLD))
    return sources.assign(score=reliability(difference, science, sources, model))


def simulated(seed: int, scenes: int, model: Model) -> Iterator[pd.DataFrame]:
    """Sources of pairs of the simulator that made what the model learned from."""
    for number in range(scenes):
        rng = np.random.default_rng([seed, number])
        try:
            scene = make_scene(draw_conditions(rng, SCENE_PX), rng)
            difference = subtract(scene.science, scene.template, min_coverage=0.3)
        except DataError:
            continue
        sources = rated(difference, scene.science, model)
        real, known = label(sources, scene)
        yield sources.assign(real=real)[known]


def other(seed: int, model: Model) -> Iterator[pd.DataFrame]:
    """Sources of clean pairs of another simulator."""
    for kind in KINDS:
        pair = simulated_pair(kind, seed)
        difference = subtract(pair.science, pair.template)
        yield _known(rated(difference, pair.science, model), pair.truth, difference)


def real_sky(pair: RealPair, seed: int, model: Model) -> pd.DataFrame:
    """Sources of a real pair with changes put in."""
    science, template = prepared(pair)
    plain = subtract(science, template, min_coverage=0.02)
    points = changes_for(science, template, plain.exposure.summary["diff_mad_snr"], seed)
    changed, template = prepared(pair, put_in(points, science))
    difference = subtract(changed, template, min_coverage=0.02)
    found = _known(rated(difference, changed, model), points, difference)
    for x, y in pair.known:
        found = found[np.hypot(found["x"] - x, found["y"] - y) > 10]
    return found


def _known(sources: pd.DataFrame, truth: pd.DataFrame, difference: Difference) -> pd.DataFrame:
    """The sources of which it can be told whether they are real."""
    assert difference.exposure.psf is not None
    distance, _ = cKDTree(truth[["x", "y"]].to_numpy(float)).query(sources[["x", "y"]].to_numpy(float))
    distance = distance / difference.exposure.psf.fwhm_px()
    told: pd.DataFrame = sources.assign(real=distance < _NEAR)[(distance < _NEAR) | (distance > _FAR)]
    return told


def cost(model: Model) -> None:
    """CPU time a source, beyond measurement."""
    pair = simulated_pair("sharper", 1)
    difference = subtract(pair.science, pair.template)
    sources = measure(difference, pair.science, detect(difference, THRESHOLD))
    reliability(difference, pair.science, sources, model)
    times = []
    for _ in range(5):
        start = time.thread_time()
        reliability(difference, pair.science, sources, model)
        times.append(time.thread_time() - start)
    say("reliability_ms_per_source", 1e3 * float(np.median(times)) / len(sources), "ms", limit=0.1)


def main(words: Sequence[str] | None = None) -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="for the sake of the other benchmarks: all lines are JSON")
    parser.add_argument("--data", type=Path, help="folder of real pairs")
    parser.add_argument("--scenes", type=int, default=40, help="simulated pairs of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=HELD_OUT)
    parser.add_argument("--model", default="", help="file of weights")
    parser.add_argument("--table", type=Path, help="Parquet file for the scores of all sources")
    arguments = parser.parse_args(words)
    model = read_model(arguments.model)
    cost(model)
    sets = {
        "simulated": pd.concat([t for seed in arguments.seeds for t in simulated(seed, arguments.scenes, model)]),
        "other": pd.concat([t for seed in arguments.seeds for t in other(seed, model)]),
    }
    if arguments.data is None:
        say("real_auc", float("nan"), "", note="missing: --data was not given")
    else:
        found = {
            p.name: pd.concat([real_sky(p, s, model) for s in arguments.seeds]) for p in real_pairs(arguments.data)
        }
        minis = [t for name, t in found.items() if name.startswith("decam_minis")]
        sets |= {f"real_{name}": t for name, t in found.items() if not name.startswith("decam_minis")}
        sets |= {"real_decam_minis": pd.concat(minis)} if minis else {}
    for name, table in sets.items():
        judge(name, table)
    if arguments.table is not None:
        pd.concat([t.assign(set=name) for name, t in sets.items()], ignore_index=True).to_parquet(arguments.table)


if __name__ == "__main__":
    main()
