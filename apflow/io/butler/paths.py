"""Where things are in a repository: pure functions, for workers that open no Butler."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from apflow.config import Config
from apflow.errors import BadRequest
from apflow.model.calibration import CalibrationExposure
from apflow.model.ids import day_obs_of, image_name
from apflow.model.visit import Visit

#: Dataset types that detectors write, with the extension of their files.
OUTPUTS = {
    "difference_image": "fits",
    "dia_source_detector": "parquet",
    "ap_metrics": "json",
    "ap_provenance": "json",
    "injected_sources": "parquet",  # of detectors that fakes were injected into
}
#: The same of what is known when the alerts of a visit are out.
DELIVERED = {
    "ap_delivery_metrics": "json",
    "ap_visit_metrics": "json",
}
#: The same of calibration exposures.
CHECKS = {
    "calibration_metrics": "json",
    "calibration_picture": "fits",
    "calibration_exposure_metrics": "json",
}


def output_path(root: str | Path, dataset_type: str, visit: Visit, detector: int | None, run: str) -> str:
    """Path of an output of a detector-visit, or of a visit without `detector`, the same whoever asks.

    Raises
    ------
    BadRequest
        Visits have no such dataset type.
    """
    kinds = OUTPUTS | DELIVERED
    if dataset_type not in kinds:
        raise BadRequest(f"{dataset_type!r} is no output of a visit; accepted: {', '.join(kinds)}")
    where = "" if detector is None else f"_{detector:03d}"
    name = f"{dataset_type}_{visit.instrument}_{visit.visit}{where}.{kinds[dataset_type]}"
    return str(Path(root).resolve() / run / dataset_type / str(day_obs_of(visit.visit)) / str(visit.visit) / name)


def output_run(visit: Visit, config: Config) -> str:
    """Run collection of the outputs of a visit: one a night and configuration."""
    return f"{prompt_chain(visit.instrument)}/{day_obs_of(visit.visit)}/{config.processing_id}"


def checks_path(root: str | Path, dataset_type: str, exposure: CalibrationExposure, detector: int | None = None) -> str:
    """Path of an output of a calibration exposure, or of one detector of it, the same whoever asks.

    Raises
    ------
    BadRequest
        Calibration exposures have no such dataset type.
    """
    if dataset_type not in CHECKS:
        raise BadRequest(f"{dataset_type!r} is no output of a calibration; accepted: {', '.join(CHECKS)}")
    where = "" if detector is None else f"_{detector:03d}"
    number = exposure.exposure
    name = f"{dataset_type}_{exposure.instrument}_{number}{where}.{CHECKS[dataset_type]}"
    run = Path(root).resolve() / checks_run(exposure.instrument, number)
    return str(run / dataset_type / str(number) / name)


def checks_run(instrument: str, exposure: int) -> str:
    """Run collection of what is found of calibration exposures: one a night."""
    return f"{checks_chain(instrument)}/{day_obs_of(exposure)}"


def checks_chain(instrument: str) -> str:
    """CHAINED collection of what is found of calibration exposures, the newest night first."""
    return f"{instrument}/calibration-checks"


def raw_path(root: Path, instrument: str, exposure: int, prefix: str, detector: str) -> Path:
    """Path of a raw image, after the object keys of the summit."""
    name = image_name(exposure, prefix)
    return raw_run_folder(root, instrument) / str(day_obs_of(exposure)) / name / f"{name}_{detector}.fits"


def raw_run_folder(root: Path, instrument: str) -> Path:
    """Folder of the raw images of an instrument."""
    return root / raw_run(instrument)


def raw_run(instrument: str) -> str:
    """RUN collection of raw images."""
    return f"{instrument}/raw/all"


def calib_collection(instrument: str) -> str:
    """CALIBRATION collection, with validity ranges."""
    return f"{instrument}/calib"


def prompt_chain(instrument: str) -> str:
    """CHAINED collection of all output runs, newest first."""
    return f"{instrument}/prompt"


def defaults_chain(instrument: str) -> str:
    """CHAINED collection of all inputs."""
    return f"{instrument}/defaults"


def template_run(skymap: str) -> str:
    """RUN collection of the templates on a skymap."""
    return f"templates/{skymap}"


def ephemerides_run(instrument: str) -> str:
    """RUN collection of predicted positions of Solar System objects."""
    return f"{instrument}/ephemerides"


def ss_objects_path(root: Path, instrument: str, group: str, detector: int) -> Path:
    """Path of the positions predicted for a detector-visit, which may be known before its images are."""
    name = f"{SS_OBJECTS}_{instrument}_{detector:03d}.parquet"
    return root / ephemerides_run(instrument) / _safe(group) / name


REFERENCE_RUN = "refcats"
#: Dataset type of predicted positions of Solar System objects, as Rubin calls it.
SS_OBJECTS = "preloaded_SsObjects"


def _safe(name: str) -> str:
    # Group names hold colons and dots; a name of dots alone would be another folder.
    return quote(name, safe=":+ ") if name.strip(".") else f"_{name}"
