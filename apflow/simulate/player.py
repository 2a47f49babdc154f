"""The player: makes the raw images beforehand, then lands them as a camera would."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from apflow.errors import BadRequest
from apflow.io.fits import write_raw
from apflow.model.visit import Visit
from apflow.simulate.raws import render_raw
from apflow.simulate.scenario import Scenario, generator, visits

TROUBLES = ("missing", "truncated", "nan", "wrong_detector")


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with the raw images of one detector.

    Attributes
    ----------
    detector : `int`
    kind : `str`
        ``missing``: never lands; ``truncated``: half of the file;
        ``nan``: every pixel NaN; ``wrong_detector``: the image of another detector.
    visit : `int`, optional
        Visit id; None for every visit.
    """

    detector: int
    kind: str
    visit: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in TROUBLES:
            raise BadRequest(f"trouble {self.kind!r} is not accepted: {', '.join(TROUBLES)}")


@dataclass(frozen=True)
class Player:
    """Renders a scenario's raw images into `staging` and plays them into `landing`.

    Attributes
    ----------
    scenario : `Scenario`
    staging, landing : `pathlib.Path`
        Folders, made where they are missing.
    processes : `int`
        Processes that render, one thread each.
    troubles : `tuple` [`Trouble`, ...]
    spread_s : `float`
        The detectors of a visit land within this time, each at a random moment.
    """

    scenario: Scenario
    staging: Path
    landing: Path
    processes: int = 2
    troubles: tuple[Trouble, ...] = ()
    spread_s: float = 2.0

    def render(
        self, progress: Callable[[int, int], None] | None = None, pool: ProcessPoolExecutor | None = None
    ) -> pd.DataFrame:
        """Make all raw images.

        Parameters
        ----------
        progress : callable, optional
            Called with the number of raw images made and to be made.
        pool : `concurrent.futures.ProcessPoolExecutor`, optional
            Processes to use; default: `processes` new ones.

        Returns
        -------
        truth : `pandas.DataFrame`
            True changes of every detector-visit, those in trouble included;
            with two snaps a change is good if it is in both.
        """
        self.staging.mkdir(parents=True, exist_ok=True)
        if pool is None:
            with ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn"), _one_thread) as pool:
                return self.render(progress, pool)
        total = len(self.scenario.detectors) * self.scenario.nvisits * self.scenario.nsnaps
        done, tables = 0, []
        jobs = [pool.submit(_render_detector, self, detector) for detector in self.scenario.detectors]
        try:
            for job in as_completed(jobs):
                tables.append(job.result())
                done += self.scenario.nvisits * self.scenario.nsnaps
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return pd.concat(tables).sort_values(["visit", "detector", "truth_id"], ignore_index=True)

    def play(
        self,
        announce: Callable[[Visit], None] | None = None,
        landed: Callable[[Visit, int, Path], None] | None = None,
        lead_s: float = 0.0,
        stop: threading.Event | None = None,
    ) -> None:
        """Land the raw images visit by visit at the scenario's cadence; blocks until the last has landed.

        Parameters
        ----------
        announce : callable, optional
            Called with each visit `lead_s` before its first image lands.
        landed : callable, optional
            Called with visit, detector and path after each file.
        lead_s : `float`
        stop : `threading.Event`, optional
            Ends the play when set.
        """
        self.landing.mkdir(parents=True, exist_ok=True)
        stop = stop or threading.Event()
        begin = time.monotonic() + lead_s
        for at_s, action in sorted(self._timetable(announce, landed, lead_s), key=lambda e: e[0]):
            if stop.wait(max(0.0, begin + at_s - time.monotonic())):
                return
            action()

    def land(self, visit: Visit, detector: int) -> list[Path]:
        """Land the raw images of one detector-visit now; returns the files, none where they are missing."""
        paths = []
        self.landing.mkdir(parents=True, exist_ok=True)
        for snap in range(visit.nsnaps):
            source = self.staging / raw_name(self.scenario, visit, snap, detector)
            if source.exists():
                paths.append(_move(source, self.landing / source.name))
        return paths

    def _timetable(
        self,
        announce: Callable[[Visit], None] | None,
        landed: Callable[[Visit, int, Path], None] | None,
        lead_s: float,
    ) -> Iterator[tuple[float, Callable[[], None]]]:
        """When to do what, seconds after the first landing."""
        for index, visit in enumerate(visits(self.scenario)):
            at_s = index * self.scenario.cadence_s
            if announce:
                yield at_s - lead_s, functools.partial(announce, visit)
            delays = generator(self.scenario, "arrival", index).uniform(0, self.spread_s, len(self.scenario.detectors))
            for detector, delay in zip(self.scenario.detectors, delays, strict=True):
                yield at_s + float(delay), functools.partial(self._arrive, visit, detector, landed)

    def _arrive(self, visit: Visit, detector: int, landed: Callable[[Visit, int, Path], None] | None) -> None:
        for path in self.land(visit, detector):
            if landed:
                landed(visit, detector, path)

    def trouble(self, visit: Visit, detector: int) -> str | None:
        """What goes wrong with a detector-visit, if anything."""
        for trouble in self.troubles:
            if trouble.detector == detector and trouble.visit in (None, visit.visit):
                return trouble.kind
        return None


def raw_name(scenario: Scenario, visit: Visit, snap: int, detector: int) -> str:
    """File name of a raw image: MC_O_20250420_000123_R22_S11.fits."""
    return f"{visit.images[snap]}_{scenario.load_camera().detector(detector).name}.fits"


def _one_thread() -> None:
    """Limit a rendering process to one thread: the processes fill the cores by themselves."""
    threadpool_limits(1)


def _render_detector(player: Player, detector: int) -> pd.DataFrame:
    """Make and write all raw images of one detector; returns their truth."""
    scenario, tables = player.scenario, []
    for visit in visits(scenario):
        snaps = []
        for snap in range(scenario.nsnaps):
            raw, truth = render_raw(scenario, visit, snap, detector)
            snaps.append(truth)
            kind = player.trouble(visit, detector)
            if kind == "wrong_detector":
                camera = scenario.load_camera()
                other = next(d for d in camera.detectors if d.id != detector and d.purpose == "SCIENCE")
                raw, _ = render_raw(scenario, visit, snap, other.id)
            elif kind == "nan":
                blank = {name: np.full(data.shape, np.nan, np.float32) for name, data in raw.segments.items()}
                raw = replace(raw, segments=blank)
            path = player.staging / raw_name(scenario, visit, snap, detector)
            if kind != "missing":
                write_raw(path, raw)
            if kind == "truncated":
                os.truncate(path, path.stat().st_size // 2 + 1)
        good = np.logical_and.reduce([truth["good"].to_numpy() for truth in snaps])
        tables.append(snaps[0].assign(good=good))
    return pd.concat(tables, ignore_index=True)


def _move(source: Path, target: Path) -> Path:
    """Move a file so that it appears complete under its new name, on another file system too."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, part)
        os.replace(part, target)
        source.unlink()
    return target
