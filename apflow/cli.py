"""The ``apflow`` command."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from apflow import __version__
from apflow.commands import (
    alerts,
    calib,
    calibration,
    ephemerides,
    explain,
    ingest,
    listen,
    metrics,
    night,
    plan,
    ppdb,
    replay,
    report,
    score,
    services,
    simulate,
    submit,
    watch,
)
from apflow.commands.options import Alerts, Ppdb, number, parse_size
from apflow.errors import ApflowError, BadRequest, ServiceError
from apflow.model.ledger import State

#: Exit codes by outcome; those of sysexits.h where it has one.
EXIT_CODES = {
    State.DONE: 0,
    State.FAILED: 1,
    State.NO_TEMPLATE: 20,
    State.NO_CALIB: 21,
    State.CANCELLED: 22,
    State.BAD_DATA: 65,
    State.IMAGE_TIMEOUT: 75,
}
EXIT_BAD_REQUEST = 2
EXIT_SERVICE = 69
EXIT_DEFECT = 70
EXIT_IO = 74
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Alert production as a Dask dataflow graph (LSST DMTN-092).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
graph_app = typer.Typer(help="The graphs and their pictures.", no_args_is_help=True)
app.add_typer(graph_app, name="graph")
app.add_typer(services.app, name="services")
app.add_typer(alerts.app, name="alerts")
app.add_typer(calib.app, name="calib")
app.add_typer(metrics.app, name="metrics")
app.add_typer(night.night_app, name="night")
app.add_typer(ppdb.app, name="ppdb")
app.add_typer(submit.app, name="submit")
app.command()(calibration.calibration)
app.command()(ephemerides.ephemerides)
app.command()(explain.explain)
app.command()(ingest.ingest)
app.command()(listen.listen)
app.command()(plan.plan)
app.command()(replay.replay)
app.command()(report.report)
app.command()(score.score)
app.command()(simulate.simulate)
app.command()(watch.watch)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"apflow {__version__}")
        raise typer.Exit


_Version = typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
_Camera = typer.Option("--camera", help="lsstcam, comcam, decam, or the path of a camera's YAML file.")


@app.callback()
def _root(version: Annotated[bool, _Version] = False) -> None: ...


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Folder of the new repository.")],
    camera: Annotated[
        str, typer.Option(help="lsstcam, comcam, decam, or the path of a camera's YAML file.")
    ] = "lsstcam",
    size: Annotated[str, typer.Option(help="full, small (512 px cut-outs), or a number of pixels.")] = "full",
    registry: Annotated[
        str,
        typer.Option(
            metavar="URL", help="postgresql://user@host/database (passwords: ~/.pgpass, PGPASSFILE); default: SQLite."
        ),
    ] = "",
    namespace: Annotated[str, typer.Option(help="Schema in that database; default: the user's.")] = "",
    fast: Annotated[
        str,
        typer.Option(metavar="DIR", help="Folder, local or in memory, that keeps copies of calibs and templates."),
    ] = "",
) -> None:
    """Make a Butler repository with the camera's instrument, detectors, filters and dataset types.

    Example: apflow init repo --camera comcam --fast fast-store
    """
    from apflow.io.butler import create_repository

    create_repository(directory, camera, parse_size(size), registry, namespace, fast)
    typer.echo(f"made a Butler repository for {camera} in {directory}")


@app.command()
def detector(
    ccd: Annotated[str, typer.Argument(help="CCD name or id, such as R22_S11 or 94.")],
    ra: Annotated[
        float,
        typer.Option(parser=number(float, 0, 360), metavar="DEG", help="Boresight right ascension, ICRS degrees."),
    ],
    dec: Annotated[
        float, typer.Option(parser=number(float, -90, 90), metavar="DEG", help="Boresight declination, ICRS degrees.")
    ],
    exptime: Annotated[
        float,
        typer.Option(parser=number(float, 0, 3600), metavar="SECONDS", help="Expected exposure time of an image."),
    ],
    butler: Annotated[str, typer.Option(help="Butler repository.")],
    image: Annotated[list[str], typer.Option(help="Name of the image, MC_O_YYYYMMDD_NNNNNN; twice for two snaps.")],
    physical_filter: Annotated[str, typer.Option("--filter", help="Physical filter or band; none: the header's.")] = "",
    ppdb: Annotated[str, Ppdb] = "",
    alerts: Annotated[str, Alerts] = "",
    timeout: Annotated[
        float, typer.Option(parser=number(float, 0, 86_400), metavar="SECONDS", help="How long to wait for the images.")
    ] = 120.0,
) -> None:
    """Process one CCD of one visit in this process (DMTN-092 section 2.2).

    A detector-visit that was done before is left as it is; one that ended otherwise is tried again.

    Exit codes: 0 done, 1 failed, 2 bad request, 20 no template, 21 no calib, 22 cancelled, 65 bad data, 69 a
    service is not there, 70 a defect, 74 input or output failed, 75 no image in time, 130 interrupted.

    Example: apflow detector R22_S11 --ra 150.1 --dec -32 --exptime 30 --butler replay/butler
    --image MC_O_20250420_000001
    """
    from apflow.operate.detector import check_request, process_detector

    request = check_request(
        ccd, ra, dec, exptime, physical_filter, butler, image, ppdb=ppdb, alerts=alerts, timeout_s=timeout
    )
    outcome = process_detector(request)
    line = f"visit {outcome.visit} detector {outcome.detector}: {outcome.state}"
    if outcome.state is State.DONE:
        typer.echo(f"{line}, {outcome.n_sources} DiaSources, {outcome.n_alerts} alerts")
    else:
        typer.echo(f"{line} at {outcome.step}: {outcome.cause}", err=True)
    raise typer.Exit(EXIT_CODES[outcome.state])


@app.command()
def difference(
    science: Annotated[Path, typer.Argument(help="FITS file of the science image.")],
    template: Annotated[Path, typer.Argument(help="FITS file of the template.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("difference"),
    method: Annotated[str, typer.Option(help="alard-lupton or zogy.")] = "alard-lupton",
    science_noise: Annotated[Path | None, typer.Option(help="FITS file of its standard deviations.")] = None,
    template_noise: Annotated[Path | None, typer.Option(help="FITS file of its standard deviations.")] = None,
    science_mask: Annotated[Path | None, typer.Option(help="FITS file that is not 0 at bad pixels.")] = None,
    template_mask: Annotated[Path | None, typer.Option(help="FITS file that is not 0 at bad pixels.")] = None,
) -> None:
    """Subtract any two images: difference, DiaSources, alerts and a sheet of stamps.

    They are aligned by the stars that both show, whatever their orientation and scale.

    Example: apflow difference science.fits template.fits --out result
    """
    from apflow.operate.difference import difference as run

    noises, masks = (science_noise, template_noise), (science_mask, template_mask)
    for key, value in run(science, template, out, noises=noises, masks=masks, method=method).items():
        typer.echo(f"{key}: {value}")


@graph_app.command("show")
def graph_show(
    name: Annotated[str, typer.Argument(help="alert_production or raw_calibration.")] = "alert_production",
) -> None:
    """Print a graph as Mermaid."""
    from apflow.operate.picture import graph_markdown

    typer.echo(graph_markdown(name))


def main(arguments: Sequence[str] | None = None, command: Callable[..., object] = app) -> NoReturn:
    """Run the command; what goes wrong is one line and an exit code, a traceback only where it is a defect.

    Parameters
    ----------
    arguments : sequence of `str`, optional
        Default: those that the process was given.
    command : callable, optional
        Another command that is to end in the same ways.
    """
    try:
        code = command(arguments, standalone_mode=False)
    except typer.TyperException as error:
        fail(_usage(error), EXIT_BAD_REQUEST)
    except BadRequest as error:
        fail(error, EXIT_BAD_REQUEST)
    except ServiceError as error:
        fail(error, EXIT_SERVICE)
    except ApflowError as error:
        fail(error, EXIT_CODES.get(State(error.state), 1))
    except OSError as error:
        fail(f"{error.filename or 'input or output'}: {error.strerror or error}", EXIT_IO)
    except Exception as error:
        traceback.print_exc()
        fail(f"a defect of apflow, see above: {type(error).__name__}: {error}", EXIT_DEFECT)
    if code == EXIT_INTERRUPTED:
        fail("interrupted", EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: typer.TyperException) -> str:
    """What was wrong with the words of the command line, and where the right ones are."""
    context = getattr(error, "ctx", None)
    line: str = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(line)
        line = "no command was given"
    return f"{line.rstrip('.')}; see: {context.command_path if context else 'apflow'} --help"


def fail(error: object, code: int) -> NoReturn:
    """Say in one line what went wrong, and end the process."""
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error:", "bold red"), " ", " ".join(str(error).split())), soft_wrap=True)
    sys.exit(code)
