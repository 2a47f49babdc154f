"""What alert packets cost: from tables and arrays to framed bytes, beside what Rubin's sender does.

Prints one JSON object a line. `python benchmarks/bench_alerts.py [--json] [--alerts N]`; ``--json`` leaves out the
lines for people. The peer packs as lsst.ap.association.PackageAlertsTask does: rows of pandas as dicts, stamps as
astropy's CCDData, lsst.alert.packet and fastavro for the record. Both sides' alerts are decoded and compared.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import astropy.units as u
import fastavro
import lsst.alert.packet
import numpy as np
import pandas as pd
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.wcs import WCS

from apflow.io.alerts.cutouts import Planes, cutout_fits, tangent
from apflow.io.alerts.packets import Cutouts, build_packets
from apflow.io.alerts.schema import frame, load_schema
from apflow.model import schema
from apflow.model.camera import load_camera
from apflow.model.exposure import Mask
from apflow.model.products import History

NOW = 60800.25
STAMP, PSF = 30, 25  # pixels
PEER = "lsst.alert.packet + astropy CCDData + fastavro"


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def cpu_s(work: Callable[[], Any], at_least_s: float = 0.5) -> float:
    """CPU seconds of one call: the median of three rounds, each at least so long."""
    start = time.process_time()
    work()
    calls = max(1, math.ceil(at_least_s / 3 / max(time.process_time() - start, 1e-6)))
    rounds = []
    for _ in range(3):
        start = time.process_time()
        for _ in range(calls):
            work()
        rounds.append((time.process_time() - start) / calls)
    return statistics.median(rounds)


def table(name: str, n: int, rng: np.random.Generator, **given: Any) -> pd.DataFrame:
    """Rows with every column filled, but for a twentieth of the floats that may be null."""
    columns: dict[str, Any] = {}
    for column in schema.table(name).columns:
        if "float" in column.dtype:
            values = rng.normal(100, 30, n)
            columns[column.name] = np.where(rng.random(n) < 0.05, np.nan, values) if column.nullable else values
        elif column.dtype.lower().startswith("bool"):
            columns[column.name] = rng.random(n) < 0.1
        elif column.dtype == "str":
            columns[column.name] = "r"
        else:
            columns[column.name] = rng.integers(1, 10_000, n)
    fixed = {"ra": rng.uniform(150, 151, n), "dec": rng.uniform(-31, -30, n), "timeProcessedMjdTai": NOW}
    return schema.conform(pd.DataFrame({**columns, **{k: v for k, v in fixed.items() if k in columns}, **given}), name)


@dataclass(frozen=True)
class Alerts:
    """What alerts are made of: tables, and arrays of stamps by diaSourceId."""

    sources: pd.DataFrame
    objects: pd.DataFrame
    history: History
    forced: pd.DataFrame
    planes: Mapping[int, tuple[Planes, Planes, Planes]]


def alerts(n: int, history: int, rng: np.random.Generator) -> Alerts:
    """`n` alerts with so many rows of either history, the last forced one of this visit."""
    ids, object_ids = 168691488537968641 + np.arange(n), 313853517 + np.arange(n)
    past = np.tile(np.arange(history, 0, -1), n)
    times, owners = NOW - past, np.repeat(object_ids, history)
    old = table("DiaSource", n * history, rng, diaSourceId=1 + np.arange(n * history), diaObjectId=owners)
    old["midpointMjdTai"] = times
    light = table("DiaForcedSource", n * history, rng, diaForcedSourceId=1 + np.arange(n * history), diaObjectId=owners)
    light["midpointMjdTai"] = np.where(past == 1, NOW, times)
    new = table("DiaSource", n, rng, diaSourceId=ids, diaObjectId=object_ids, midpointMjdTai=NOW, bboxSize=STAMP)
    camera = load_camera("lsstcam")
    wcs = camera.wcs(camera.detector("R22_S11"), 150.5, -30.5, 33.0)

    def planes(at: Any) -> Planes:
        image, variance = rng.normal(100, 30, (2, STAMP, STAMP)).astype(np.float32)
        psf = rng.random((PSF, PSF)).astype(np.float32)
        mask = np.where(rng.random((STAMP, STAMP)) < 0.02, int(Mask.SAT), 0).astype(np.int32)
        return image, variance, mask, psf, at

    stamps = {}
    for i in ids.tolist():
        at = wcs.shifted(*rng.uniform(100, 3900, 2).tolist())
        stamps[i] = planes(at), planes(at), planes(at)
    objects = table("DiaObject", n, rng, diaObjectId=object_ids, nDiaSources=history + 1)
    of_visit = past == 1
    empty = table("DiaObject", 0, rng)
    return Alerts(new, objects, History(empty, old, light[~of_visit]), light[of_visit], stamps)


def ours(given: Alerts, stamps: Mapping[int, Cutouts] | None = None) -> list[bytes]:
    """Framed alerts; unknown floats are NaN, as with the peer."""
    if stamps is None:
        stamps = {i: (cutout_fits(d), cutout_fits(s), cutout_fits(t)) for i, (d, s, t) in given.planes.items()}
    packets = build_packets(
        given.sources, given.objects, given.history, given.forced, stamps, processed_mjd_tai=NOW, nan_for_null=True
    )
    return [frame(p.datum) for p in packets]


class Peer:
    """PackageAlertsTask without afw; its frames are made beforehand, plain and indexed as it gets them."""

    def __init__(self, given: Alerts, n: int) -> None:
        self.schema = lsst.alert.packet.Schema.from_uri()
        light = pd.concat([given.history.forced, given.forced]).sort_values(["diaObjectId", "midpointMjdTai"])
        keys = ["diaObjectId", "band", "diaSourceId"]
        self.sources = _plain(given.sources.iloc[:n]).set_index(keys, drop=False)
        self.past = _plain(given.history.sources).set_index(keys, drop=False)
        # Numbers alone would all become float64 in a row, ids too.
        self.objects = _plain(given.objects).astype(object).set_index("diaObjectId", drop=False)
        self.light = _plain(light).set_index("diaObjectId", drop=False)
        self.planes, self.wcs = given.planes, {}
        for i, (_, (*_, wcs), _) in given.planes.items():
            assert wcs is not None
            self.wcs[i] = tangent(wcs, (STAMP - 1) / 2, (STAMP - 1) / 2)

    def records(self) -> list[dict[str, Any]]:
        """Alerts as dicts."""
        out = []
        for index, source in self.sources.iterrows():
            assert isinstance(index, tuple)
            key = source["diaSourceId"]
            difference, science, template = (self.stamp(p, self.wcs[key]) for p in self.planes[key])
            record = {"diaSourceId": key, "diaSource": source.to_dict()}
            record["prvDiaSources"] = self.past.loc[index[0]].to_dict("records")
            record["prvDiaForcedSources"] = self.light.loc[index[0]].to_dict("records")
            record["diaObject"] = self.objects.loc[index[0]].to_dict()
            record |= {"cutoutDifference": difference, "cutoutScience": science, "cutoutTemplate": template}
            out.append(record)
        return out

    def alerts(self) -> list[bytes]:
        """Framed alerts."""
        return [struct.pack(">bi", 0, 1101) + self.schema.serialize(record) for record in self.records()]

    @staticmethod
    def stamp(planes: Planes, local: Any) -> bytes:
        """A stamp as CCDData writes it."""
        image, variance, mask, psf, _ = planes
        wcs = WCS(naxis=2)
        wcs.array_shape = image.shape
        wcs.wcs.crpix = [c + 1 for c in local.crpix]
        wcs.wcs.crval = local.crval_deg
        wcs.wcs.cd = local.cd
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        uncertainty = VarianceUncertainty(variance)
        ccd = CCDData(image, uncertainty=uncertainty, mask=mask != 0, wcs=wcs, psf=psf, unit=u.nJy)
        with io.BytesIO() as stream:
            ccd.write(stream, format="fits")
            return stream.getvalue()


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """NumPy's own types in place of pandas's, as frames from the APDB have them."""
    kinds = {"boolean": "bool", "Int16": "int16", "Int32": "int32", "Int64": "int64", "str": "object"}
    bare = schema.bare(frame)
    return bare.astype({c: kinds[str(d)] for c, d in bare.dtypes.items() if str(d) in kinds})


def compare(mine: list[bytes], theirs: list[bytes]) -> None:
    """Both sides said the same, stamps included."""
    definition = load_schema("11.1")
    for a, b in zip(mine, theirs, strict=False):
        assert a[:5] == b[:5]
        x, y = definition.decode(a[5:]), definition.decode(b[5:])
        for name in ("cutoutDifference", "cutoutScience", "cutoutTemplate"):
            p, q = (CCDData.read(io.BytesIO(record.pop(name))) for record in (x, y))
            for part in ("data", "mask", "psf"):
                np.testing.assert_array_equal(getattr(p, part), getattr(q, part))
            np.testing.assert_array_equal(p.uncertainty.array, q.uncertainty.array)
            np.testing.assert_allclose(p.wcs.wcs_pix2world([[0, 0]], 0), q.wcs.wcs_pix2world([[0, 0]], 0), rtol=1e-12)
        np.testing.assert_equal(x, y)


def packets(history: int, n: int, n_peer: int) -> None:
    """The whole way, and the encoder by itself."""
    given = alerts(n, history, np.random.default_rng(history))
    peer = Peer(given, n_peer)
    mine = ours(given)
    compare(mine, peer.alerts())
    rate, peer_rate = n / cpu_s(lambda: ours(given)), n_peer / cpu_s(peer.alerts)
    shape = {"alerts": n, "history": f"{history} + {history}", "bytes": len(mine[0])}
    more = {"peer": PEER, "peer_value": round(peer_rate, 2), "ratio": round(rate / peer_rate, 1)}
    differs = "the peer gets its frames plain and indexed, and the linear WCS of each stamp worked out"
    name = f"packets_{history}_{history}"
    say(name, rate, "alerts/s per core", **more, limit=1500 if history == 20 else 350, differs=differs, **shape)
    stamps = {i: (bytes(1), bytes(1), bytes(1)) for i in given.planes}
    records = [{**r, **dict.fromkeys(_STAMPS, bytes(1))} for r in peer.records()]

    def write() -> None:
        for record in records:
            fastavro.schemaless_writer(io.BytesIO(), peer.schema.definition, record)

    rate, peer_rate = n / cpu_s(lambda: ours(given, stamps)), n_peer / cpu_s(write)
    more = {"peer": "fastavro", "peer_value": round(peer_rate, 2), "ratio": round(rate / peer_rate, 1)}
    differs = "from tables here, from dicts made beforehand there; stamps of one byte"
    say(f"encode_{history}_{history}", rate, "alerts/s per core", **more, differs=differs, **shape)


_STAMPS = ("cutoutDifference", "cutoutScience", "cutoutTemplate")


def cutouts() -> None:
    """One stamp."""
    given = alerts(20, 1, np.random.default_rng(1))
    peer = Peer(given, 20)
    stamps = [p for planes in given.planes.values() for p in planes]
    value = cpu_s(lambda: [cutout_fits(p) for p in stamps]) / len(stamps)
    theirs = cpu_s(lambda: [peer.stamp(p, peer.wcs[i]) for i, planes in given.planes.items() for p in planes])
    theirs /= len(stamps)
    more = {"peer": "astropy CCDData", "peer_value": round(1e3 * theirs, 4), "ratio": round(theirs / value, 1)}
    say("cutout_fits", 1e3 * value, "ms", **more, px=STAMP, psf_px=PSF)


def one_detector() -> None:
    """The graph's own call: the alerts of an average detector, with the history of a young survey."""
    given = alerts(53, 3, np.random.default_rng(3))
    stamps = {i: (cutout_fits(d), cutout_fits(s), cutout_fits(t)) for i, (d, s, t) in given.planes.items()}

    def pack() -> None:
        build_packets(given.sources, given.objects, given.history, given.forced, stamps)

    say("packets_of_one_detector", 1e3 * cpu_s(pack), "ms", alerts=53, history="3 + 3", differs="stamps made before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON lines only")
    parser.add_argument("--alerts", type=int, default=212, help="alerts of a batch; 212 is a detector at peak")
    options = parser.parse_args()
    if not options.json:
        print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    packets(20, options.alerts, 20)
    packets(345, max(1, options.alerts // 4), 5)
    cutouts()
    one_detector()


if __name__ == "__main__":
    main()
