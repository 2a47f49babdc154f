"""``apflow ephemerides``: predicted positions of Solar System objects into the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ephemerides(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Parquet, ECSV, CSV or VOTable (.xml).")],
    butler: Annotated[Path, typer.Option(metavar="REPO", help="Butler repository.")],
    group: Annotated[str, typer.Option(help="Group of the visit that the rows are of, as nextVisit has it.")] = "",
    visit: Annotated[int, typer.Option(help="The same by number, once an image of it is registered.")] = 0,
) -> None:
    """Store predicted positions for visits: their DiaSources are attributed before association with DiaObjects.

    Columns: ssObjectId or designation; ra, dec (degrees ICRS); raErr and decErr (degrees) or Err(arcsec); optional
    ephRateRa and ephRateDec (deg/d, on the sky) with midpointMjdTai, the time of the position (MJD TAI), which carry
    it on to the exposure; ephVmag; group, where --group and --visit do not tell; others of SSSource.

    Predictions that are there for the same visit are replaced. A visit uses those that are there when it opens.

    Example: apflow ephemerides tonight.ecsv --butler replay/butler --group 2025-04-20T02:24:00.000
    """
    from apflow.operate.ephemerides import ingest_ephemerides

    for name, count in ingest_ephemerides(butler, files, group, visit).items():
        typer.echo(f"group {name}: {count} objects")
