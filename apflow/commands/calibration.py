"""``apflow calibration``: checks of bias, dark, flat and CBP exposures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibration(
    intent: Annotated[str, typer.Option(metavar="bias|dark|flat|cbp", help="What the exposure was taken for.")],
    detector: Annotated[
        str, typer.Option(help="CCD name or id; also science, all, or a comma list of rafts (R22), names and ids.")
    ],
    butler: Annotated[str, typer.Option(metavar="REPO", help="Butler repository.")],
    image: Annotated[list[str], typer.Option(help="Name of the image, MC_O_YYYYMMDD_NNNNNN; twice for two flats.")],
    exptime: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, max=3600, help="Expected exposure time; 0 for a bias.")
    ] = 0.0,
    physical_filter: Annotated[str, typer.Option("--filter", help="Physical filter or band; none: the header's.")] = "",
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page with pictures and a JSON file for each exposure.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what was found there as JSON.")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, max=86_400, help="How long to wait for an image after its exposure."),
    ] = 120.0,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Worker processes for several detectors; 0 for one a core.")
    ] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where the verdict is Alert.")] = False,
) -> None:
    """Check calibration exposures against master calibs and the camera's limits (DMTN-092 section 2.3).

    It waits for the images, so that it can be started with the exposure. The limits are those of configuration
    calibration.ranges. What was checked before is checked again, into the same files.

    Example: apflow calibration --intent bias --detector R22_S11 --butler replay/butler --report checked
    --image $(apflow simulate replay/butler --intent bias)

    Exit codes: 0 done, 1 failed (or several causes), 2 bad request, 22 cancelled, 65 bad data, 69 a service is not
    there, 70 a defect, 74 input or output failed, 75 no image in time, 130 interrupted.
    """
    from apflow.cli import EXIT_CODES
    from apflow.model.ledger import State
    from apflow.model.verdict import Verdict
    from apflow.operate.calibration.command import Output, check_output, run_command
    from apflow.operate.calibration.request import check_request
    from apflow.operate.interrupts import interruptible

    output = Output(report, json_file)
    check_output(output)
    request = check_request(
        intent, detector, exptime, physical_filter, butler, image, timeout_s=timeout, workers=workers
    )
    with interruptible():
        states, verdict = run_command(request, output)
    not_done = states - {State.DONE}
    code = EXIT_CODES[next(iter(not_done))] if len(not_done) == 1 else int(bool(not_done))
    raise typer.Exit(code or int(strict and verdict is Verdict.ALERT))
