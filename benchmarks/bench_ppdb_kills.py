"""Kills: overlapping visits while workers, gathers and the database are killed; rows lost and rows there twice.

At each point of `overlap_kills.POINTS` a process that runs a visit is killed, and at each once more the server: all
of PostgreSQL, or the process that owns the DuckDB file. Two other visits of the same sky are in flight, the later
of which every second time does not wait for its turn. Then visits run all at once on a Dask cluster whose workers
are killed at random. All kills are SIGKILL; whoever was killed is started again, and the visit begins anew.

Prints one JSON object a line. `python benchmarks/bench_ppdb_kills.py [--json] [--backend NAME ...] [--dask-kills N]`.
Exits with 1 if a row is lost, there twice or wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Client
from overlap_graph import SKY, WARM_UP, play
from overlap_kills import POINTS, Night
from overlap_servers import DuckDb, Postgres
from overlap_sky import Sky
from overlap_tally import Tally, tally

from apflow.cluster.local import local_cluster
from apflow.config import Config
from apflow.io.ppdb import open_ppdb
from apflow.operate.deliver import deliver
from apflow.operate.services import PostgresServer

BACKENDS = ("postgresql", "duckdb")
#: What workers do; the rest is the gathers'.
_OF_WORKERS = ("openVisit", "awaitTurn", "getHistory")
_IN_FLIGHT = 8


def say(name: str, value: float, unit: str, **more: Any) -> None:
    """One figure."""
    print(json.dumps({"name": name, "value": value, "unit": unit, **more}), flush=True)


def report(where: str, backend: str, kills: dict[str, int], visits: int, found: Tally, **more: Any) -> bool:
    """Figures of one run; whether all is well."""
    shape = {"where": where, "backend": backend}
    say("kills", sum(kills.values()), "kills", **shape, by_kind=kills, visits=visits, **more)
    say("rows_lost", found.lost, "rows", **shape, rows_expected=found.expected)
    say("rows_duplicated", found.duplicated, "rows", **shape, rows_expected=found.expected)
    say("invariants_broken", found.wrong, "rows", **shape, notes=found.notes)
    say("sources_without_forced_flux", found.unforced, "rows", **shape, why="their detector lost a race, see Tally")
    return (found.lost, found.duplicated, found.wrong) == (0, 0, 0)


@contextlib.contextmanager
def new_night(backend: str) -> Iterator[Any]:
    """A night on an empty database."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apflow-kills-")))
        if backend == "duckdb":
            server = DuckDb(folder)
        else:
            server = Postgres(stack.enter_context(PostgresServer()), folder)
        yield stack.enter_context(Night(Sky(), folder, server))


def at_points(backend: str, whom: str) -> bool:
    """A kill at each point."""
    with new_night(backend) as night:
        kinds: Counter[str] = Counter()
        for point in POINTS:
            night.run(point, whom)
            role = "worker" if point.call in _OF_WORKERS else "gather"
            kinds[role if whom == "worker" else f"server in a {role}'s step"] += 1
        at = [str(point) for point in POINTS]
        return report("processes", backend, dict(kinds), len(night.visits), night.tally(), at=at, errors=night.failures)


@contextlib.contextmanager
def databases(backends: list[str], folder: str) -> Iterator[dict[str, str]]:
    """URL of an empty database for each backend."""
    with contextlib.ExitStack() as stack:
        urls = {"duckdb": f"duckdb://{folder}/ppdb.duckdb"}
        if "postgresql" in backends:
            urls["postgresql"] = stack.enter_context(PostgresServer()).database()
        yield {backend: urls[backend] for backend in backends}


def on_dask(backends: list[str], kills: int) -> bool:
    """Random kills of compute and gather workers, through the graph's own steps; rounds of 8 visits at once."""
    well = True
    with (
        tempfile.TemporaryDirectory(prefix="apflow-kills-") as folder,
        databases(backends, folder) as urls,
        local_cluster(2, gather_workers=2, warm_up=WARM_UP) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(4)
        for backend, url in urls.items():
            config = Config(camera="lsstcam", butler=folder, ppdb=url, alerts=f"file://{folder}/{backend}")
            killed: Counter[str] = Counter()
            visits = 0
            with open_ppdb(url, create=True) as ppdb:
                while killed.total() < kills:
                    some = range(visits, visits + _IN_FLIGHT)
                    killed += play(client, config, some, min(4, kills - killed.total()), 2.0)
                    visits += _IN_FLIGHT
                deliver(ppdb, config)
                well &= report("dask", backend, dict(killed), visits, tally(ppdb, config, SKY, range(visits)))
    return well


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="nothing but JSON lines, which is what it prints anyway")
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--dask-kills", type=int, default=8, help="kills on Dask a backend")
    options = parser.parse_args()
    well = [at_points(backend, whom) for backend in options.backend for whom in ("worker", "server")]
    if options.dask_kills:
        well.append(on_dask(options.backend, options.dask_kills))
    sys.exit(not all(well))


if __name__ == "__main__":
    main()
