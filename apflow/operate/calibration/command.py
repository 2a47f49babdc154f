"""What ``apflow calibration`` does: run, print, write."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from apflow.errors import BadRequest
from apflow.io.atomic import atomic
from apflow.model.ledger import State
from apflow.model.verdict import Verdict, worst
from apflow.operate.calibration.console import print_summary
from apflow.operate.calibration.report import write_report
from apflow.operate.calibration.request import Request
from apflow.operate.calibration.run import run_calibration
from apflow.operate.calibration.summary import summarise


@dataclass(frozen=True)
class Output:
    """Where to write; nowhere where None."""

    report: Path | None
    json_file: Path | None


def check_output(output: Output) -> None:
    """Refuse now what would fail after the exposure.

    Raises
    ------
    BadRequest
        An output cannot be written.
    """
    file = output.json_file
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise BadRequest(f"--json {file} is not accepted: a file in a folder that exists")
    if output.report is not None:
        there = next(p for p in (output.report, *output.report.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise BadRequest(f"--report {output.report} is not accepted: {there} is not a folder to write to")


def run_command(request: Request, output: Output) -> tuple[set[State], Verdict | None]:
    """Run the exposures of a request, and say what was found.

    Returns
    -------
    states : `set` [`State`]
        In which the detectors ended.
    verdict : `Verdict` or `None`
        The worst.
    """
    console, summaries, states = Console(), [], set[State]()
    for exposure, outcomes in run_calibration(request):
        states |= {o.state for o in outcomes}
        summary = summarise(exposure, outcomes, request.camera, request.config)
        summaries.append(summary)
        print_summary(summary, console)
        if output.report is not None:
            page = write_report(output.report, exposure, summary, request.camera, request.config)
            console.print(f"report: {page}", soft_wrap=True)
    if output.json_file is not None:
        with atomic(output.json_file) as file:
            file.write(json.dumps(summaries, indent=1, allow_nan=False).encode() + b"\n")
    return states, worst(Verdict[s["verdict"].upper()] for s in summaries if s["verdict"])
