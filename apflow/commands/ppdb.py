"""``apflow ppdb``: make a PPDB, look into it, check and mend it, move nights in and out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apflow.errors import BadRequest

if TYPE_CHECKING:
    from apflow.config import Config
    from apflow.io.ppdb import Ppdb

app = typer.Typer(help="The PPDB: create, show, check, dedup, withdraw, export, import.", no_args_is_help=True)

_Butler = Annotated[str, typer.Option("--butler", metavar="REPO", help="Butler repository whose PPDB is meant.")]
_Ppdb = Annotated[str, typer.Option("--ppdb", metavar="URL", help="URL of the PPDB; default: the repository's.")]
_Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
_Url = Annotated[str, typer.Argument(metavar="URL", help="duckdb:///path or postgresql://user@host/database.")]


def _config(butler: str, ppdb: str) -> Config:
    from apflow.config import Config
    from apflow.operate.repository import repository_config

    if butler:
        return repository_config(butler, ppdb)
    if not ppdb:
        raise BadRequest("no PPDB is named; accepted: --butler REPO, whose PPDB is meant, or --ppdb URL")
    return Config(ppdb=ppdb)


@contextmanager
def _opened(butler: str, ppdb: str) -> Iterator[tuple[Config, Ppdb]]:
    from apflow.io.ppdb import open_ppdb

    config = _config(butler, ppdb)
    with open_ppdb(config.ppdb_url) as database:
        yield config, database


@app.command("create")
def create(url: _Url) -> None:
    """Make an empty PPDB: all tables with units and descriptions, and the versions noted.

    One that is there in this version is left as it is; any other is refused.

    Example: apflow ppdb create duckdb://$PWD/survey.duckdb
    """
    from apflow.io.ppdb import open_ppdb

    with open_ppdb(url, create=True) as database:
        versions = database.table("metadata")
    told = ", ".join(f"{name} {value}" for name, value in zip(versions["name"], versions["value"], strict=True))
    typer.echo(f"ready: {told}")


@app.command("show")
def show(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="URL of the PPDB, instead of --butler.")] = "",
    butler: _Butler = "",
    ppdb: _Ppdb = "",
    table: Annotated[str, typer.Option(metavar="T", help="Columns of this table with units and descriptions.")] = "",
    as_json: _Json = False,
) -> None:
    """Show what is in a PPDB: versions, tables with rows and sizes, visits, detectors by state, pending alerts.

    Example: apflow ppdb show --butler replay/butler --table DiaObject
    """
    from apflow.io.ppdb.operations import columns, contents
    from apflow.operate.alert_console import open_console
    from apflow.operate.ppdb_console import print_columns, print_contents

    with _opened(butler, url or ppdb) as (_, database):
        if table:
            described = columns(database, table)
        else:
            found = contents(database)
    if as_json:
        typer.echo(described.to_json(orient="records") if table else json.dumps(dataclasses.asdict(found)))
    elif table:
        print_columns(described, open_console())
    else:
        print_contents(found, open_console())


@app.command("check")
def check(butler: _Butler = "", ppdb: _Ppdb = "", as_json: _Json = False) -> None:
    """Check that the PPDB is sound: one current version an object, no orphans, counts as in the ledger, ids, pixels.

    Exit code 0 where it is, 1 where it is not. Rows that are stored meanwhile may count as wrong: check again then.

    Example: apflow ppdb check --butler replay/butler
    """
    from apflow.io.ppdb.operations_check import check as violations
    from apflow.io.ppdb.operations_check import invariants
    from apflow.operate.alert_console import open_console
    from apflow.operate.ppdb_console import print_violations

    with _opened(butler, ppdb) as (_, database):
        found = violations(database)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(v) for v in found]))
    else:
        print_violations(found, len(invariants()), open_console())
    raise typer.Exit(1 if found else 0)


@app.command("dedup")
def dedup(
    butler: _Butler = "",
    ppdb: _Ppdb = "",
    radius: Annotated[
        float | None, typer.Option(metavar="ARCSEC", help="Objects this close are one; default: of the association.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Merge them; without it they are only told of.")] = False,
    as_json: _Json = False,
) -> None:
    """Merge DiaObjects that were made twice for one thing: within a radius, and never seen in one visit.

    The older keeps its id and gets the other's DiaSources and a new version; the newer one's validity ends.

    Example: apflow ppdb dedup --butler replay/butler
    """
    from apflow.operate.alert_console import open_console
    from apflow.operate.ppdb_console import print_duplicates
    from apflow.operate.ppdb_dedup import dedup as run

    with _opened(butler, ppdb) as (config, database):
        settings = config.associate
        within = settings.radius_arcsec if radius is None else radius
        found = run(database, within, settings.position_floor_arcsec, apply=apply)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(d) for d in found]))
        return
    print_duplicates(found, open_console())
    what = "merged" if apply else "found; --apply merges them" if found else "found"
    typer.echo(f"{len(found)} duplicates within {within:g} arcsec {what}")


@app.command("withdraw")
def withdraw(
    butler: _Butler = "",
    ppdb: _Ppdb = "",
    visit: Annotated[int | None, typer.Option(metavar="ID", help="DiaSources of this visit.")] = None,
    detector: Annotated[int | None, typer.Option(metavar="N", help="Only of this detector, by its id.")] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", metavar="ID", help="This DiaSource; repeatable.")] = None,
) -> None:
    """Withdraw DiaSources: timeWithdrawnMjdTai is set, and alerts that are not sent yet are not sent any more.

    Rows stay, and are left out of histories. What was withdrawn before keeps its time.

    Example: apflow ppdb withdraw --butler replay/butler --visit 2025042000001 --detector 94
    """
    from astropy.time import Time

    from apflow.io.ppdb.operations import withdraw as take_back

    with _opened(butler, ppdb) as (_, database):
        done = take_back(database, float(Time.now().tai.mjd), visit=visit, detector=detector, ids=ids or ())
    typer.echo(f"{done.n_sources:,} DiaSources withdrawn; {done.n_alerts:,} alerts of theirs will not be sent")


@app.command("export")
def export(
    night: Annotated[int, typer.Option(metavar="YYYYMMDD", help="Day of observation.")],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="The night's folder is made in it.")],
    butler: _Butler = "",
    ppdb: _Ppdb = "",
) -> None:
    """Write a night as Parquet, a file for each table, units and descriptions included.

    The night's folder appears when it is complete. Import gives back what export wrote.

    Example: apflow ppdb export --butler replay/butler --night 20250420 --to nights
    """
    from apflow.io.ppdb.operations_export import export_night
    from apflow.operate.alert_console import open_console
    from apflow.operate.ppdb_console import print_counts

    with _opened(butler, ppdb) as (_, database):
        counts = export_night(database, night, to)
    print_counts(counts, open_console())
    typer.echo(f"{to / str(night)}: {len(counts)} files")


@app.command("import")
def import_(
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Of `apflow ppdb export`.")] = None,
    drp: Annotated[Path | None, typer.Option(metavar="FILE", help="Parquet file of Data Release Objects.")] = None,
    orbits: Annotated[Path | None, typer.Option(metavar="FILE", help="Parquet file of the MPC's orbits.")] = None,
    butler: _Butler = "",
    ppdb: _Ppdb = "",
) -> None:
    """Restore exported nights, or load the Objects of a Data Release or orbits; doing it again does no harm.

    Rows that are there stay as they are. Objects (objectId, ra and dec or coord_ra and coord_dec, degrees, and
    extendedness or refExtendedness) replace those with their ids; orbits (columns of mpc_orbits) those of their
    designations. Orbits go out with the alerts of the Solar System objects that they are of.

    Example: apflow ppdb import nights --butler replay/butler
    """
    from apflow.io.ppdb.operations import load_drp
    from apflow.io.ppdb.operations_import import import_nights
    from apflow.io.ppdb.operations_orbits import load_orbits
    from apflow.operate.alert_console import open_console
    from apflow.operate.ppdb_console import print_counts

    if sum(given is not None for given in (folder, drp, orbits)) != 1:
        raise BadRequest("accepted: a folder of exported nights, or --drp FILE, or --orbits FILE")
    with _opened(butler, ppdb) as (_, database):
        if drp is not None:
            typer.echo(f"{load_drp(database, drp):,} DRP Objects loaded")
        if orbits is not None:
            typer.echo(f"{load_orbits(database, orbits):,} orbits loaded")
        if folder is None:
            return
        counts = import_nights(database, folder)
    print_counts(counts, open_console())
    typer.echo(f"{sum(counts.values()):,} rows added")


@app.command("partitions")
def partitions(
    butler: _Butler = "",
    ppdb: _Ppdb = "",
    make: Annotated[int, typer.Option(min=0, max=1199, metavar="MONTHS", help="Make so many months ahead.")] = 0,
) -> None:
    """List the monthly partitions of the tables that grow, and make those of the months to come.

    Example: apflow ppdb partitions --butler replay/butler
    """
    from astropy.time import Time

    from apflow.operate.alert_console import open_console
    from apflow.operate.ppdb_console import print_partitions

    with _opened(butler, ppdb) as (_, database):
        now = float(Time.now().tai.mjd)
        made = database.makePartitions(now, now + 30.44 * make) if make else []
        found = database.partitions()
    if not found:
        typer.echo("this PPDB has no partitions: only one on PostgreSQL has")
        return
    print_partitions(found, open_console())
    typer.echo(f"{len(found)} partitions" + (f", {len(made)} made now" if make else ""))


@app.command("migrate")
def migrate(
    url: Annotated[str, typer.Argument(metavar="URL", help="duckdb:///path, that no process has open.")],
) -> None:
    """Bring a DuckDB PPDB of the layout before to this one: tables and columns are added, nothing is changed.

    Example: apflow ppdb migrate duckdb://$PWD/replay/butler/ppdb.duckdb
    """
    from apflow.io.ppdb.migrate import migrate as run
    from apflow.io.ppdb.tables import LAYOUT

    if not url.startswith("duckdb:///"):
        raise BadRequest(f"{url.partition(':')[0]!r} cannot be migrated; accepted: duckdb:///absolute/path")
    changed = run(Path(url.removeprefix("duckdb://")))
    typer.echo(f"layout {LAYOUT}" if changed else f"layout {LAYOUT} already; nothing was done")
