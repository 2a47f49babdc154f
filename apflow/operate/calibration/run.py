"""Running the graph of raw calibration: here for one detector, on a cluster of this machine for more."""

from __future__ import annotations

from collections.abc import Iterator

from apflow.config import Config
from apflow.graphs import raw_calibration
from apflow.model.calibration import CalibrationExposure
from apflow.model.ledger import Outcome
from apflow.operate.calibration.request import Request
from apflow.run import EagerRunner

#: Modules that workers import while they start.
WARM_UP = ("apflow.graphs.raw_calibration",)


def run_calibration(request: Request) -> Iterator[tuple[CalibrationExposure, tuple[Outcome, ...]]]:
    """Check the exposures of a request, one after the other, as their images come.

    Yields
    ------
    exposure : `CalibrationExposure`
    outcomes : `tuple` [`Outcome`, ...]
        How each detector ended; what was checked before is checked again, with
        the same result in the same files.
    """
    if len(request.detectors) == 1:
        for exposure in request.exposures:
            yield exposure, EagerRunner().run(raw_calibration.exposure, exposure, request.detectors, request.config)
        return
    from apflow.operate.local_run import runner_of, workers_here

    workers = min(request.workers, len(request.detectors))
    with (
        workers_here(workers, WARM_UP) as client,
        runner_of(client, request.camera, request.config, _deadline_s(request, workers)) as runner,
    ):
        client.wait_for_workers(workers + 1, timeout=60)
        for exposure in request.exposures:
            yield (
                exposure,
                runner.start(raw_calibration.exposure, exposure, list(request.detectors), request.config).result(),
            )


def _deadline_s(request: Request, workers: int) -> float:
    """A generous limit, so that a small machine is slow rather than incomplete."""
    config: Config = request.config
    per_detector = 2.0 if config.size else 30.0
    return config.timing.image_timeout_s + 120.0 + per_detector * len(request.detectors) / workers
