"""Train the reliability model: ``python -m apflow.simulate.train_reliability FILE``.

It learns from simulated pairs of images of all kinds, in which what is real
is known; see `apflow.simulate.impostors`. The same seed makes the same file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.io.reliability import write_model
from apflow.model.reliability import Model
from apflow.pixels.detect import detect
from apflow.pixels.measure import measure
from apflow.pixels.reliability import votes
from apflow.pixels.stamp_features import NAMES, features
from apflow.pixels.subtract import subtract
from apflow.simulate.boosting import boost, calibrate
from apflow.simulate.impostors import Scene, draw_conditions, make_scene

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]

VERSION = "v1"
SCENE_PX = 448
#: Detection reaches deeper than in operation, so that what is just above its threshold is well known.
THRESHOLD = 4.5
#: Sources within this of a true change are it, FWHM; further off, to the second, nobody knows.
_SURE, _DOUBTFUL = 0.7, 2.5
#: A source with another S/N than the change at its place, by this factor, is something else besides.
_MIXED = 2.5
#: Changes below this S/N are nothing that should be seen.
_FAINTEST = 4.0
#: Part of the scenes that calibrate the probabilities, unseen by the trees.
_KEPT = 0.2


def label(sources: pd.DataFrame, scene: Scene) -> tuple[Bool, Bool]:
    """Which sources are real, and of which it can be told."""
    c, truth = scene.conditions, scene.truth
    x, y, snr = (sources[name].to_numpy(float)[:, None] for name in ("x", "y", "snr"))
    u, v = x - truth["x"].to_numpy(), y - truth["y"].to_numpy()
    cos, sin = np.cos(truth["angle"].to_numpy()), np.sin(truth["angle"].to_numpy())
    half = truth["length"].to_numpy() / 2
    along = u * cos + v * sin
    distance = np.hypot(along - np.clip(along, -half, half), v * cos - u * sin) / c.fwhm_px
    true = truth["snr"].to_numpy()
    at = distance < _SURE + 1 / np.maximum(np.abs(snr), 3.0)
    alike = (true > _FAINTEST) & (np.abs(snr) < _MIXED * true) & (np.abs(snr) * _MIXED > true)
    real = (at & alike).any(1)
    return real, real | (distance > _DOUBTFUL).all(1)


def sources_of(scene: Scene, threshold: float = THRESHOLD) -> tuple[F4, Bool, pd.DataFrame]:
    """Features of all sources in a scene of which the truth can be told, and whether they are real."""
    difference = subtract(scene.science, scene.template, min_coverage=0.3)
    sources = measure(difference, scene.science, detect(difference, threshold))
    real, known = label(sources, scene)
    return features(difference, scene.science, sources)[known], real[known], sources[known].assign(real=real[known])


def gather(seed: int, scenes: int) -> tuple[F4, Bool, NDArray[np.int64]]:
    """Features, truth and number of the scene of the sources in many scenes."""
    rows, real, scene_of = [], [], []
    for number in range(scenes):
        rng = np.random.default_rng([seed, number])
        try:
            found, truth, _ = sources_of(make_scene(draw_conditions(rng, SCENE_PX), rng))
        except DataError:
            continue  # too few stars for a PSF or a kernel: such an image has no DiaSources either
        rows.append(found)
        real.append(truth)
        scene_of.append(np.full(len(truth), number))
    return np.concatenate(rows), np.concatenate(real), np.concatenate(scene_of)


def train(rows: F4, real: Bool, scene_of: NDArray[np.int64], *, ntrees: int, depth: int, seed: int) -> Model:
    """A forest, calibrated by scenes that it was not grown from."""
    kept = scene_of % round(1 / _KEPT) == 0
    model = boost(rows[~kept], real[~kept], NAMES, VERSION, ntrees=ntrees, depth=depth, seed=seed)
    slope, offset = calibrate(votes(rows[kept], model), real[kept])
    return Model(VERSION, NAMES, model.feature, model.threshold, model.leaf, slope, offset)


def main() -> None:
    """Simulate, train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="where the weights go")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--depth", type=int, default=5)
    arguments = parser.parse_args()
    start = time.process_time()
    rows, real, scene_of = gather(arguments.seed, arguments.scenes)
    seconds = time.process_time() - start
    print(f"{len(real)} sources, {real.mean():.3f} of them real, of {arguments.scenes} scenes in {seconds:.0f} CPU s")
    model = train(rows, real, scene_of, ntrees=arguments.trees, depth=arguments.depth, seed=arguments.seed)
    write_model(arguments.file, model)
    seconds = time.process_time() - start
    print(f"{arguments.file}: {arguments.file.stat().st_size} bytes, {seconds:.0f} CPU s in all")


if __name__ == "__main__":
    main()
