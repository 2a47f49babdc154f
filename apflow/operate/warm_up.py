"""Compile everything once: ``python -m apflow.operate.warm_up``, as `make setup` does.

Numba compiles a function when it is first called with given types and keeps
the result on disk. One simulated detector with one and with two snaps, and of
every calibration, through the real files and the real graphs, meets them all,
so that the first image of the first night does not pay for it.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy.ndimage import gaussian_filter

from apflow.config import Config
from apflow.config_tables import Injection
from apflow.graphs import alert_production, raw_calibration
from apflow.io.arrivals import Ingestor
from apflow.io.butler import Repository
from apflow.io.fits import write_raw
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.postgres import copy, ddl
from apflow.io.ppdb.tables import to_arrow
from apflow.model import schema
from apflow.model.calibration import CalibrationExposure, Intent, Masters
from apflow.model.ids import image_name
from apflow.model.ledger import State
from apflow.operate.difference import METHODS, difference
from apflow.operate.prepare import open_replay, prepare, simulation_pool
from apflow.operate.repository import repository_config
from apflow.operate.warm_up_sources import rare_sources
from apflow.pixels.masters import combine
from apflow.run import EagerRunner
from apflow.simulate.calibration import render_calibration
from apflow.simulate.calibs import render_calibs
from apflow.simulate.player import Player
from apflow.simulate.scenario import Scenario, visits


def warm_up() -> float:
    """Process one simulated detector; returns the seconds that it took."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, simulation_pool(1) as pool:
        for nsnaps in (1, 2):
            root = Path(folder) / str(nsnaps)
            scenario = Scenario(camera="comcam", nsnaps=nsnaps, nvisits=2, cadence_s=0.0, detectors=(4,))
            open_replay(root, scenario, own=False)
            prepare(root, scenario, pool, lambda what, done, total: None)
            player = Player(scenario, root / "raws", root / "landing", processes=1, spread_s=0.0)
            player.render()
            config = dataclasses.replace(repository_config(str(root)), injection=Injection(per_ccd=2))
            with open_ppdb(config.ppdb_url, create=True), Ingestor(config.butler, player.landing):
                for visit in visits(scenario):
                    player.land(visit, 4)
                    (outcome,) = EagerRunner().run(alert_production.visit, visit, [4], config)
                    if outcome.state is not State.DONE:
                        raise SystemExit(f"apflow: warming up failed at {outcome.step}: {outcome.cause}")
            _calibrations(root, scenario, config)
    _any_two()
    rare_sources()
    _wire()
    return time.monotonic() - begin


def _calibrations(root: Path, scenario: Scenario, config: Config) -> None:
    """Raw calibration of every intent, of a pair of flats, too."""
    repository, prefix = Repository.open(root, writeable=True), scenario.load_camera().image_prefix
    for sequence, intent in enumerate((*Intent, Intent.FLAT), 100):
        lit = intent in (Intent.FLAT, Intent.CBP)
        raw = render_calibration(
            scenario,
            intent,
            sequence,
            4,
            exposure_time_s=0.0 if intent is Intent.BIAS else 5.0,
            physical_filter=scenario.physical_filter if lit else "",
        )
        path, info = root / "calibration.fits", raw.info
        write_raw(path, raw)
        repository.ingest_raws([path])
        exposure = CalibrationExposure(
            info.instrument, info.exposure, "", intent, "", info.exposure_time_s, image_name(info.exposure, prefix)
        )
        (outcome,) = EagerRunner().run(raw_calibration.exposure, exposure, [4], config)
        if outcome.state is not State.DONE:
            raise SystemExit(f"apflow: warming up failed at {outcome.step}: {outcome.cause}")
        if intent is not Intent.CBP:
            planes = render_calibs(scenario, 4)
            combine([raw] * 3, scenario.load_camera().detector(4), Masters(planes.bias, planes.dark), intent)


def _any_two() -> None:
    """Any two images, one of them turned, by both methods."""
    rng = np.random.default_rng(0)
    light = np.zeros((320, 320))
    light[tuple(rng.integers(10, 310, (2, 80)))] = 1e5 * rng.random(80) + 5e3
    images = (
        rng.poisson(gaussian_filter(light, 1.6) + 300).astype(np.float32),
        rng.poisson(gaussian_filter(light, 1.4)[::-1, ::-1] + 300).astype(np.float32),
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("science.fits", "template.fits")]
        for path, image in zip(paths, images, strict=True):
            fits.writeto(path, image)
        for method in METHODS:
            difference(paths[0], paths[1], Path(folder) / method, method=method)


def _wire() -> None:
    """PostgreSQL's binary format, for which no server is needed."""
    rows = to_arrow(schema.empty("DiaSource"), "DiaSource")
    types = [ddl.types("DiaSource")[name] for name in rows.column_names]
    copy.decode(copy.encode(rows, types), rows.column_names, types)


if __name__ == "__main__":
    print(f"apflow: compiled and tried in {warm_up():.0f} s")
