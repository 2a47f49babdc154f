"""The PPDB: a focal plane's history read and a new visit written, beside lsst.dax.apdb's ApdbSql.

One visit: 9,450 DiaObjects, 198,450 DiaSources and as many DiaForcedSources read, 9,450 rows written to each of
three tables, every column filled. PostgreSQL is a private server; both databases lie in it. Seconds are of wall
time where a name does not say ``cpu``, the median of the repetitions; ratios are of the peer's cost over ours.

Prints one JSON object a line. `python benchmarks/bench_ppdb.py [--json] [--rows N] [--repeat N] [--no-peer]
[--growth N ...]`; ``--rows`` DiaSources are in each database (fields other than the one that is read),
``--growth`` measures reading at other sizes instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from ppdb_limits import bare_copy_s, load
from ppdb_workload import DETECTORS, HISTORY, OBJECTS, Field, fields, mjd_of, raft

from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.model.products import DetectorResult
from apflow.operate.services import PostgresServer

try:
    from apdbsql_peer import Peer
except ModuleNotFoundError as error:
    Peer, MISSING = None, str(error)

#: What the graph's `read_history` asks for (`apflow.config.Associate`).
READ = {"margin_arcsec": 20.0, "radius_arcsec": 1.0, "days": 365.0}
LIMITS = {
    "read": "COPY BINARY of the same rows by one connection, bytes thrown away",
    "write": "COPY BINARY of the same rows, bytes made before; those of DiaObjectLast into an empty table like it",
}
#: What association needs of a visit's history.
FEW = {
    "DiaObject": "diaObjectId validityStartMjdTai ra dec raErr decErr ra_dec_Cov nDiaSources",
    "DiaSource": "diaSourceId diaObjectId visit detector midpointMjdTai band ra dec raErr decErr ra_dec_Cov "
    "psfFlux psfFluxErr scienceFlux scienceFluxErr snr reliability ssObjectId",
    "DiaForcedSource": "diaForcedSourceId diaObjectId visit detector midpointMjdTai band psfFlux psfFluxErr",
}
PEAK = 212  # DiaSources a detector: 40,000 a visit


def say(name: str, value: float, unit: str, **more: Any) -> None:
    """One figure."""
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


class Clock:
    """Wall and CPU seconds of what runs inside it; the server's CPU too where its processes are named."""

    def __init__(self, server: PostgresServer | None = None) -> None:
        self._server = server
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.server: list[float] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before = time.perf_counter(), time.process_time(), self._server_cpu()
        yield
        now = time.perf_counter(), time.process_time(), self._server_cpu()
        for store, a, b in zip((self.wall, self.cpu, self.server), before, now, strict=True):
            store.append(b - a)

    def _server_cpu(self) -> float:
        if self._server is None or self._server.pid is None:
            return 0.0
        main = psutil.Process(self._server.pid)
        return sum(sum(p.cpu_times()[:4]) for p in (main, *main.children()))

    def medians(self) -> tuple[float, float, float]:
        """(wall, client CPU, server CPU), seconds."""
        return statistics.median(self.wall), statistics.median(self.cpu), statistics.median(self.server)


class Ours:
    """The calls that the graph's steps make."""

    def __init__(self, ppdb: Ppdb, field: Field) -> None:
        self.ppdb, self.field = ppdb, field
        self.next = HISTORY

    def read(self, groups: Sequence[Sequence[int]]) -> int:
        """One request for each group of detectors; gives the number of rows."""
        histories = [h for g in groups for h in self.ppdb.getHistory([self.field.wanted(d) for d in g], **READ)]
        return sum(len(h.objects) + len(h.sources) + len(h.forced) for h in histories)

    def tables(self, detector: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The DiaObjects, DiaSources and DiaForcedSources of one detector."""
        [history] = self.ppdb.getHistory([self.field.wanted(detector)], **READ)
        return history.objects, history.sources, history.forced

    def results(self) -> list[DetectorResult]:
        """A new visit, announced as `open_visit` does it."""
        k, self.next = self.next, self.next + 1
        self.ppdb.openVisit(self.field.visit(k), self.field.regions, time.time() + 3600.0)
        results: list[DetectorResult] = self.field.results(k, mjd_of(k - 1))
        return results

    def write(self, results: Sequence[DetectorResult], groups: Sequence[Sequence[int]]) -> None:
        """One transaction for each group of detectors."""
        for group in groups:
            report = self.ppdb.storeBatch([results[d] for d in group], [], results[0].mjd_mid_tai + 0.001)
            assert len(report.stored) == len(group), report


def by_detector() -> list[list[int]]:
    return [[d] for d in DETECTORS]


def by_raft() -> list[list[int]]:
    return [[d for d in DETECTORS if raft(d) == r] for r in range(raft(DETECTORS[-1]) + 1)]


def by_visit() -> list[list[int]]:
    return [list(DETECTORS)]


GROUPS: dict[str, Callable[[], list[list[int]]]] = {"detector": by_detector, "raft": by_raft, "visit": by_visit}


def measure(ours: Ours, repeat: int, server: PostgresServer | None = None) -> dict[str, tuple[float, float, float]]:
    """(wall, client CPU, server CPU) of reading and of writing by detector, by raft and by visit."""
    out = {}
    for name, groups in GROUPS.items():
        read, write = Clock(server), Clock(server)
        rows = ours.read(groups())  # warm: plans, connections, compiled code
        for _ in range(repeat):
            with read():
                assert ours.read(groups()) >= rows  # each write adds a visit
            results = ours.results()
            with write():
                ours.write(results, groups())
        out[f"{name}_read"], out[f"{name}_write"] = read.medians(), write.medians()
    return out


def measure_peer(peer: Any, field: Field, repeat: int) -> dict[str, tuple[float, float, float]]:
    """The same of ApdbSql, by detector and by visit."""
    clocks = {n: Clock() for n in ("detector_read", "detector_write", "visit_read", "visit_write")}
    peer.read_detector(field, DETECTORS[0])
    for i in range(repeat):
        with clocks["detector_read"]():
            for d in DETECTORS:
                peer.read_detector(field, d)
        with clocks["visit_read"]():
            peer.read_visit(field)
        k = HISTORY + 2 * i
        with clocks["detector_write"]():
            peer.write_detectors(field, k)
        tables = field.objects(k + 1), field.sources(k + 1), field.forced(k + 1)
        with clocks["visit_write"]():
            peer.write(*tables, k + 1)
    return {n: c.medians() for n, c in clocks.items()}


def alike(ours: Ours, peer: Any) -> None:
    """What one detector reads on both sides, before either has written anything."""
    mine, theirs = ours.tables(94), peer.tables(ours.field, 94)
    say(
        "detector_read_rows",
        sum(map(len, mine)),
        "rows",
        peer="lsst.dax.apdb ApdbSql",
        peer_value=sum(map(len, theirs)),
        columns=[t.shape[1] for t in mine],
        peer_columns=[t.shape[1] for t in theirs],
        differs=[sorted({*a.columns} ^ {*b.columns}) for a, b in zip(mine, theirs, strict=True)],
    )


def compare(us: dict[str, tuple[float, float, float]], peer: dict[str, tuple[float, float, float]] | None) -> None:
    """The figures beside ApdbSql's."""
    pairs = {
        "detector_read_write": (("detector_read", "detector_write"), ("detector_read", "detector_write")),
        "visit_read_write": (("visit_read", "visit_write"), ("visit_read", "visit_write")),
        "visit_write": (("visit_write",), ("visit_write",)),
        "graph_vs_apdbsql": (("detector_read", "raft_write"), ("detector_read", "detector_write")),
    }
    for name, (mine, theirs) in pairs.items():
        for suffix, column in (("", 0), ("_client_cpu", 1)):
            value = sum(us[n][column] for n in mine)
            more: dict[str, Any] = {"peer": "lsst.dax.apdb ApdbSql", "peer_value": None}
            if peer is not None:
                cost = sum(peer[n][column] for n in theirs)
                more |= {"peer_value": round(cost, 4), "ratio": round(cost / value, 2)}
            else:
                more["missing"] = MISSING if Peer is None else "--no-peer"
            say(name + suffix, value, "s", **more)


def postgres(rows: int, repeat: int, with_peer: bool) -> None:
    """Everything on PostgreSQL."""
    others = list(fields(rows))
    field = others[0]
    with PostgresServer() as server:
        url = server.database()
        load(url, others)
        peer_ = None
        if with_peer and Peer is not None:
            peer_ = Peer(server.database())
            peer_.load(others)
        with open_ppdb(url) as ppdb:
            ours = Ours(ppdb, field)
            if peer_ is not None:
                alike(ours, peer_)
            us = measure(ours, repeat, server)
            for name, (wall, cpu, theirs) in us.items():
                say(f"postgresql_{name}", wall, "s", client_cpu_s=round(cpu, 3), server_cpu_s=round(theirs, 3))
            limit = bare_copy_s(url, field, repeat)
            for name in ("read", "write"):
                value = us[f"visit_{name}"][0]
                say(
                    f"visit_{name}_over_bare_copy",
                    value / limit[name],
                    "",
                    limit=LIMITS[name],
                    limit_value=round(limit[name], 3),
                    ratio=round(limit[name] / value, 3),
                )
            value, both = us["visit_read"][0] + us["visit_write"][0], limit["read"] + limit["write"]
            say(
                "visit_read_write_over_bare_copy",
                value / both,
                "",
                limit="the two above, one after the other",
                limit_value=round(both, 3),
                ratio=round(both / value, 3),
            )
            fewer_columns(ours, repeat, server)
            peak(ppdb)
        compare(us, None if peer_ is None else measure_peer(peer_, field, repeat))


def fewer_columns(ours: Ours, repeat: int, server: PostgresServer) -> None:
    """A focal plane's history with the columns of `FEW` only, as Arrow tables."""
    ids = ", ".join(str(i) for d in DETECTORS for i in ours.field.object_ids(d).tolist())
    clock = Clock(server)
    for _ in range(repeat):
        with clock():
            rows = 0
            for name, columns in FEW.items():
                listed = ", ".join(f'"{c}"' for c in columns.split())
                rows += ours.ppdb.select(
                    f'SELECT {listed} FROM "{name}" WHERE "diaObjectId" IN ({ids})'
                    + (f' AND "validityStartMjdTai" > {mjd_of(HISTORY - 1) - 1.0}' if name == "DiaObject" else "")
                ).num_rows
    wall, cpu, theirs = clock.medians()
    say("visit_read_fewer_columns", wall, "s", rows=rows, client_cpu_s=cpu, server_cpu_s=theirs, through="Ppdb.select")


def peak(ppdb: Ppdb) -> None:
    """40,000 DiaSources in one visit of a new field: first all new, then all again."""
    field = Field(200, PEAK)
    ours = Ours(ppdb, field)
    ours.next = 0
    for what in ("new", "again"):
        read, write = Clock(), Clock()
        with read():
            ours.read(by_detector())
        k = ours.next
        results = ours.results()
        if k == 0:
            results = [_fresh(r) for r in results]
        with write():
            ours.write(results, by_raft())
        say(f"peak_40000_{what}", read.wall[0] + write.wall[0], "s", read_s=read.wall[0], write_s=write.wall[0])


def _fresh(result: DetectorResult) -> DetectorResult:
    return dataclasses.replace(result, guard={})


def embedded(rows: int, repeat: int) -> None:
    """The same visit on DuckDB: CPU, since it runs in the process that asks."""
    others = list(fields(rows))
    with tempfile.TemporaryDirectory() as folder:
        url = f"duckdb://{Path(folder) / 'ppdb.duckdb'}"
        load(url, others)
        with open_ppdb(url) as ppdb:
            us = measure(Ours(ppdb, others[0]), repeat)
    for name, (_, cpu, _) in us.items():
        say(f"duckdb_{name}_cpu", cpu, "s")
    value = us["visit_read"][1] + us["visit_write"][1]
    say("duckdb_visit_read_write_cpu", value, "s", limit="0.5 s", ratio=round(0.5 / value, 2), rows=rows)


def growth(sizes: Sequence[int], repeat: int) -> None:
    """Reading a focal plane and one detector of it as the tables grow."""
    with PostgresServer() as server:
        url = server.database()
        have = 0
        for size in sorted(sizes):
            todo = list(fields(size))
            load(url, todo[have:])
            have = len(todo)
            with open_ppdb(url) as ppdb:
                _read_grown(Ours(ppdb, todo[0]), repeat, server, have * len(DETECTORS) * OBJECTS * HISTORY)


def _read_grown(ours: Ours, repeat: int, server: PostgresServer, rows: int) -> None:
    for name, groups in (("visit", by_visit()), ("detector", [[94]])):
        clock = Clock(server)
        n = ours.read(groups)
        for _ in range(max(repeat, 3)):
            with clock():
                ours.read(groups)
        wall, cpu, theirs = clock.medians()
        say(f"growth_{name}_read", wall, "s", rows=rows, read=n, client_cpu_s=cpu, server_cpu_s=theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="only the figures")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--growth", type=int, nargs="+")
    arguments = parser.parse_args()
    if arguments.growth:
        growth(arguments.growth, arguments.repeat)
        return
    postgres(arguments.rows, arguments.repeat, not arguments.no_peer)
    # A process of its own, as a replay's: with this one's memory after all that, pandas takes half as long again.
    own = multiprocessing.get_context("spawn").Process(target=embedded, args=(arguments.rows, arguments.repeat))
    own.start()
    own.join()
    if own.exitcode:
        raise SystemExit(own.exitcode)


if __name__ == "__main__":
    main()
