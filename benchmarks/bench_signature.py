"""What it costs to read the files of a full CCD and to remove its signature.

Prints one JSON object a line. `python benchmarks/bench_signature.py [--json] [--size PIXELS] [--repeat N]`; ``--json``
leaves out the lines for people. Core-seconds are CPU time of one thread, the least of N runs after a warm one. The
peer of reading is astropy, in the same run, to arrays in native byte order; the limit of signature removal is the
time in which this machine copies what is read and written.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from apflow.io.fits import read_exposure, read_image, read_raw, write_exposure, write_image, write_raw
from apflow.model.response import linearity_tables
from apflow.pixels.isr import remove_signature
from apflow.simulate.calibs import render_calibs
from apflow.simulate.raws import render_raw
from apflow.simulate.scenario import Scenario, visits
from apflow.simulate.templates import cells, render_cell

DETECTOR = 94
LINEARITY = {"all": {"adu": [0, 20000, 65535], "correction": [0.0, 30.0, 100.0]}}


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 5), "unit": unit, **more}), flush=True)


def core_s(function: Callable[[], object], repeat: int) -> float:
    """CPU of one call, the least of some after one that is not counted."""
    function()
    least = float("inf")
    for _ in range(repeat):
        begin = time.thread_time()
        function()
        least = min(least, time.thread_time() - begin)
    return least


def by_astropy(path: Path) -> list[NDArray[Any]]:
    """All images of a file in native byte order."""
    with fits.open(path, memmap=False) as hdus:
        return [h.data.astype(h.data.dtype.newbyteorder("="), copy=False) for h in hdus if h.data is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--size", type=int, help="pixels of a cut-out; default: full CCDs")
    parser.add_argument("--repeat", type=int, default=5)
    words = parser.parse_args()
    scenario = Scenario(size=words.size, nvisits=1, detectors=(DETECTOR,))
    detector = scenario.load_camera().detector(DETECTOR)
    raw, _ = render_raw(scenario, visits(scenario)[0], 0, DETECTOR)
    calibs = render_calibs(scenario, DETECTOR)
    if not words.json:
        print(f"{detector.name}, {detector.nx} x {detector.ny} pixels; CPU of one thread")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_raw(folder / "raw.fits", raw)
        write_image(folder / "flat.fits", calibs.flat)
        write_exposure(folder / "cell.fits", render_cell(scenario, cells(scenario, [DETECTOR])[0]))
        for file, read in (("raw", read_raw), ("flat", read_image), ("cell", read_exposure)):
            path = folder / f"{file}.fits"
            ours = core_s(functools.partial(read, path), words.repeat)
            peer = core_s(functools.partial(by_astropy, path), words.repeat)
            ratio = round(peer / ours, 1)
            say(f"read_{file}_core_s", ours, "s", peer="astropy", peer_value=round(peer, 5), ratio=ratio)
    copied = sum(p.nbytes for p in (calibs.bias, calibs.dark, calibs.flat, calibs.defects)) + 12 * calibs.bias.size
    copied += sum(segment.nbytes for segment in raw.segments.values())
    one, other = np.ones(copied // 16, np.float64), np.empty(copied // 16, np.float64)
    limit = core_s(functools.partial(np.copyto, other, one), words.repeat)
    bent = linearity_tables(LINEARITY, [amp.name for amp in detector.amplifiers])
    for what, crosstalk, linearity in (
        ("plain", None, None),
        ("crosstalk", detector.crosstalk, None),
        ("crosstalk_linearity", detector.crosstalk, bent),
    ):
        ccd = dataclasses.replace(detector, crosstalk=crosstalk, linearity=linearity)
        cost = core_s(functools.partial(remove_signature, raw, ccd, calibs), words.repeat)
        ratio = round(limit / cost, 2)
        say(f"signature_{what}_core_s", cost, "s", peer="memory", peer_value=round(limit, 5), ratio=ratio)


if __name__ == "__main__":
    main()
