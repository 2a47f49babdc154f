"""A repository after two visits of two detectors: PPDB, archive and outbox, without a pixel."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np

from apflow.config import Config, to_toml
from apflow.io.alerts.archive import Archive
from apflow.io.alerts.packets import build_packets
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.operate.repository import repository_config
from tests.io import ppdb_night as night
from tests.readers.alerts import cutouts

NIGHT = 20250420
VISITS = (night.FIRST, night.FIRST + 1)
DETECTORS = (0, 1)
#: DiaSources, and so alerts, of a detector-visit.
EACH = 10


def make_repository(folder: Path, ppdb_url: str = "") -> Config:
    """All alerts but those of the last detector-visit are published; those of the first visit late."""
    folder.mkdir(parents=True)
    (folder / "apflow.toml").write_text(to_toml(Config(camera="lsstcam", ppdb=ppdb_url)))
    config = repository_config(str(folder))
    with open_ppdb(config.ppdb_url, create=True) as ppdb, Archive(config.alerts_url) as archive:
        for k in range(len(VISITS)):
            for detector in DETECTORS:
                _process(ppdb, archive, k, detector)
        pending = ppdb.pendingAlerts()
        last = [r.alert_id for r in pending if (r.visit, r.detector) == (VISITS[-1], DETECTORS[-1])]
        ppdb.markPublished([r.alert_id for r in pending if r.visit == VISITS[0]], time.time() + 1000)
        ppdb.markPublished(
            [r.alert_id for r in pending if r.visit == VISITS[1] and r.alert_id not in last], time.time()
        )
    return config


def _process(ppdb: Ppdb, archive: Archive, k: int, detector: int) -> None:
    region = night.regions(detector + 1)[detector]
    new = night.sources(k, detector).assign(snr=np.linspace(6, 60, EACH).astype(np.float32))
    history = night.read(ppdb, k, region, new)
    result = night.result(new, k, detector, history)
    packets = build_packets(result.sources, result.objects, history, result.forced, cutouts(result.sources))
    rows = archive.append(packets, VISITS[k], detector, NIGHT)
    ppdb.storeBatch([dataclasses.replace(result, packets=packets, arrived_unix=time.time())], rows, 60785.5)
