"""What master calibs cost: one full CCD, from raws on disk to the file, and what memory it takes.

Prints one JSON object a line. `python benchmarks/bench_calib_build.py [--json] [--size PIXELS] [--frames N]`;
``--json`` leaves out the line for people. Core-seconds are CPU time. Two renderings stand for all frames, each a file
of its own: rendering is not what is measured. The peer combines frames that are read and corrected already.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.stats import sigma_clip

from apflow.io.fits import write_image, write_raw
from apflow.model.calibration import Intent, Masters
from apflow.operate.calib_jobs import Job, build
from apflow.operate.calib_request import Frame
from apflow.pixels.calibration_isr import correct
from apflow.simulate.calibration import render_calibration
from apflow.simulate.calibs import render_calibs
from apflow.simulate.scenario import Scenario

DETECTOR, CCDS = 94, 189
TIMES_S = {Intent.BIAS: 0.0, Intent.DARK: 30.0, Intent.FLAT: 5.0}


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def core_s[T](call: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and the CPU time of this process."""
    begin = time.process_time()
    return call(), time.process_time() - begin


def make_frames(scenario: Scenario, intent: Intent, frames: int, folder: Path) -> tuple[Frame, ...]:
    """Raws on disk."""
    name = "r" if intent is Intent.FLAT else ""
    two = [
        render_calibration(scenario, intent, n, DETECTOR, exposure_time_s=TIMES_S[intent], physical_filter=name)
        for n in (1, 2)
    ]
    made = []
    for n in range(frames):
        path = folder / f"{intent}_{n}.fits"
        write_raw(path, two[n % 2])
        made.append(Frame(path.stem, two[n % 2].info.exposure, str(path)))
    return tuple(made)


def peer(scenario: Scenario, intent: Intent, frames: int) -> float:
    """astropy's sigma clipping of a stack in which one amplifier's frames lie, scaled to the CCD."""
    detector = scenario.load_camera().detector(DETECTOR)
    amp = detector.amplifiers[0]
    raw = render_calibration(scenario, intent, 1, DETECTOR, exposure_time_s=TIMES_S[intent], physical_filter="r")
    part = correct(raw, detector, Masters(), intent).image[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]
    rng = np.random.default_rng(1)
    stack = np.stack([part + rng.standard_normal(part.shape, np.float32) for _ in range(frames)])
    _, spent = core_s(lambda: np.ma.mean(sigma_clip(stack, sigma=4, maxiters=1, axis=0), axis=0))
    return spent * len(detector.amplifiers)


def peak_mib(job: Job) -> float:
    """The most memory that a process had which did nothing else."""
    build(job)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side; 0 for a full CCD")
    parser.add_argument("--frames", type=int, default=5)
    options = parser.parse_args()
    size, frames = options.size or None, options.frames
    scenario = Scenario(camera="lsstcam", size=size, detectors=(DETECTOR,))
    calibs = render_calibs(scenario, DETECTOR)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for kind in ("bias", "dark"):
            write_image(root / f"{kind}.fits", getattr(calibs, kind))
        for intent, before in ((Intent.BIAS, ()), (Intent.DARK, ("bias",)), (Intent.FLAT, ("bias", "dark"))):
            masters = {kind: str(root / f"{kind}.fits") for kind in before}
            some = make_frames(scenario, intent, frames, root)
            job = Job(str(intent), "lsstcam", size, DETECTOR, root / "made", some, masters)
            # Loads what is compiled.
            build(Job(str(intent), "lsstcam", size, DETECTOR, root / "first", some[:3], masters))
            built, spent = core_s(functools.partial(build, job))
            with fits.open(built.path) as hdus:
                assert hdus[0].header["NFRAMES"] == frames
            what = {"frames": frames, "pixels": size or "full"}
            more = {}
            if intent is Intent.FLAT:
                value = peer(scenario, intent, frames)
                more = {
                    "peer": "astropy sigma_clip and mean of frames that are read and corrected",
                    "peer_value": round(value, 4),
                    "ratio": round(value / spent, 2),
                }
            say(f"master_{intent}", spent, "core-s", **what, **more)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                say(f"master_{intent}_peak_memory", pool.submit(peak_mib, job).result(), "MiB", **what)
            for frame in some:
                Path(frame.path).unlink()
            if not options.json:
                print(f"  {intent}: {CCDS} CCDs in {CCDS * spent / 60:.1f} core-min")


if __name__ == "__main__":
    main()
