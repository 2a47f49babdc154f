"""``apflow plan``: what a night needs, before it starts."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from apflow.commands.options import number, parse_size
from apflow.errors import BadRequest

if TYPE_CHECKING:
    from apflow.operate.night.plan import Plan


def plan(
    camera: Annotated[
        str, typer.Option(help="lsstcam, comcam, decam or the path of a camera's YAML file.")
    ] = "lsstcam",
    size: Annotated[str, typer.Option(help="small (512), full, or pixels of square cut-outs.")] = "full",
    detectors: Annotated[str, typer.Option(help="Live ones: science, all, rafts, names or ids.")] = "science",
    core_s: Annotated[
        float | None, typer.Option("--core-s", metavar="SECONDS", help="CPU of one CCD; default: as measured.")
    ] = None,
    visit_every: Annotated[
        float, typer.Option(parser=number(float, 0.1, 86_400), metavar="SECONDS", help="Time between visits.")
    ] = 37.0,
    cluster: Annotated[
        str, typer.Option(help="local, slurm, htcondor, kubernetes, ssh, or tcp://host:port of a scheduler.")
    ] = "local",
    cores: Annotated[
        int | None, typer.Option(metavar="N", help="At most so many workers; default: local: this machine's cores.")
    ] = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="For all workers, such as 64GiB; default: local: this machine's.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print cores, memory and latency that a night asks for, from the focal plane, the cost of a CCD and the cadence.

    Example: apflow plan --camera lsstcam --cluster slurm
    """
    import psutil
    from dask.utils import parse_bytes

    from apflow.cluster.request import check_kind
    from apflow.model.camera import load_camera
    from apflow.operate.local_run import CORES
    from apflow.operate.night.plan import plan_night

    check_kind(cluster)
    try:
        gib = parse_bytes(memory) / 2**30 if memory else None
    except ValueError:
        raise BadRequest(f"--memory {memory!r} is not accepted: a size such as 64GiB") from None
    if cluster == "local":
        cores = CORES if cores is None else cores
        gib = psutil.virtual_memory().total / 2**30 if gib is None else gib
    found = plan_night(
        load_camera(camera, parse_size(size)),
        detectors=detectors,
        core_s=core_s,
        visit_every_s=visit_every,
        cores=cores,
        memory_gib=gib,
    )
    if as_json:
        told = dataclasses.asdict(found) | {"cluster": cluster, "remarks": found.remarks}
        typer.echo(json.dumps(told))
        return
    _print(found, cluster)


def _print(plan: Plan, cluster: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = Console(highlight=False)
    console = terminal if terminal.is_terminal else Console(width=160, highlight=False)
    console.print(
        f"{plan.camera}: {plan.detectors} CCDs every {plan.visit_every_s:g} s; "
        f"{plan.core_s:.2f} core-s and {plan.memory_gib:.2f} GiB a CCD"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="grey62")
    for name in ("", "workers", "gather", "GiB", "a visit every", "keeps up", "latency, half", "98 %"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    chosen = dataclasses.replace(plan.chosen, name=f"{cluster}, by {plan.binding}")
    for one in (*plan.choices, chosen):
        times = [f"{s:.1f} s" for s in (one.every_s, one.p50_s, one.p98_s)]
        times.insert(1, "yes" if one.keeps_up else "no")
        row = (one.name, str(one.workers), str(one.gather_workers), f"{one.memory_gib:.1f}", *times)
        table.add_row(*row, style="bold" if one is chosen else "")
    console.print(table)
    for remark in plan.remarks:
        console.print(Text(remark, "yellow"), soft_wrap=True)
