"""``apflow simulate``: calibration exposures of a simulated camera."""

from __future__ import annotations

from typing import Annotated

import typer


def simulate(
    butler: Annotated[str, typer.Argument(metavar="REPO", help="Butler repository of apflow replay or apflow init.")],
    intent: Annotated[str, typer.Option(metavar="bias|dark|flat|cbp", help="What the exposures are taken for.")],
    count: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="How many exposures.")] = 1,
    exptime: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, max=3600, help="Default: bias 0, dark 300, flat and cbp 5."),
    ] = None,
    physical_filter: Annotated[
        str, typer.Option("--filter", help="Of flat and cbp: physical filter or band; default: the replay's, or r.")
    ] = "",
    detectors: Annotated[
        str, typer.Option(help="science, all, or a comma list of rafts (R22), names and ids; default: the replay's.")
    ] = "",
    day_obs: Annotated[
        int | None, typer.Option(metavar="YYYYMMDD", help="Day of observation; default: that of the latest exposure.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the camera; default: the replay's, or 1.")] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAULT",
            help="What is wrong: DETECTOR:AMPLIFIER:gain=FACTOR (or read_noise=FACTOR, level_adu=ADU, bias_adu=ADU, "
            "dead), DETECTOR:hot_pixels=N, lamp_tilt=FRACTION. May be repeated.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", min=0, max=1000, help="Processes; 0 for one a core.")] = 0,
) -> None:
    """Simulate calibration exposures by the CCDs that a replay's visits see, and register them as raws.

    Their names, one a line, are what apflow calibration and apflow calib build take. They follow what is there
    on that day.

    Example: apflow simulate replay/butler --intent flat --count 2
    """
    from apflow.operate.interrupts import interruptible
    from apflow.operate.simulate_calibrations import check_request
    from apflow.operate.simulate_calibrations import simulate as run

    request = check_request(
        butler,
        intent,
        count,
        exposure_time_s=exptime,
        physical_filter=physical_filter,
        detectors=detectors,
        seed=seed,
        day=day_obs,
        faults=fault or (),
    )
    with interruptible():
        run(butler, request, workers)
    for image in request.images:
        typer.echo(image)
