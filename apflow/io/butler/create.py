"""Making a repository: what `apflow init` does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from apflow.config import Config, to_toml
from apflow.config_tables import Inputs
from apflow.errors import BadRequest
from apflow.io.atomic import atomic
from apflow.io.butler import paths
from apflow.model.camera import Camera, camera_names, load_camera

if TYPE_CHECKING:
    from lsst.daf.butler import Butler

    from apflow.io.arrivals.database_board import DatabaseBoard

_DETECTOR_VISIT = ("instrument", "visit", "detector")
_DETECTOR_EXPOSURE = ("instrument", "exposure", "detector")
#: Name, dimensions, storage class, whether it has validity ranges.
DATASET_TYPES: tuple[tuple[str, tuple[str, ...], str, bool], ...] = (
    ("raw", _DETECTOR_EXPOSURE, "ApflowRaw", False),
    ("bias", ("instrument", "detector"), "ApflowImage", True),
    ("dark", ("instrument", "detector"), "ApflowImage", True),
    ("flat", ("instrument", "detector", "physical_filter"), "ApflowImage", True),
    ("defects", ("instrument", "detector"), "ApflowImage", True),
    ("template_coadd", ("skymap", "tract", "patch", "band"), "ApflowExposure", False),
    ("reference_catalog", ("htm7",), "DataFrame", False),
    (paths.SS_OBJECTS, ("instrument", "group", "detector"), "ArrowAstropy", False),
    ("difference_image", _DETECTOR_VISIT, "ApflowExposure", False),
    ("dia_source_detector", _DETECTOR_VISIT, "DataFrame", False),
    ("ap_metrics", _DETECTOR_VISIT, "MetricMeasurementBundle", False),
    ("ap_provenance", _DETECTOR_VISIT, "ApflowProvenance", False),
    ("injected_sources", _DETECTOR_VISIT, "DataFrame", False),
    ("ap_delivery_metrics", _DETECTOR_VISIT, "MetricMeasurementBundle", False),
    ("ap_visit_metrics", ("instrument", "visit"), "MetricMeasurementBundle", False),
    ("calibration_metrics", _DETECTOR_EXPOSURE, "MetricMeasurementBundle", False),
    ("calibration_picture", _DETECTOR_EXPOSURE, "ApflowImage", False),
    ("calibration_exposure_metrics", ("instrument", "exposure"), "MetricMeasurementBundle", False),
)
SETTINGS = "apflow.toml"


def register_types(butler: Butler) -> None:
    """Register those of `DATASET_TYPES` that a repository lacks: one that an earlier version made."""
    from lsst.daf.butler import DatasetType

    for name, dimensions, storage_class, calib in DATASET_TYPES:
        butler.registry.registerDatasetType(
            DatasetType(name, dimensions, storage_class, universe=butler.dimensions, isCalibration=calib)
        )


def create_repository(
    root: str | Path,
    camera: str,
    size: int | None = None,
    registry: str = "",
    namespace: str = "",
    fast: str | Path = "",
) -> None:
    """Make a Butler repository with a camera's instrument, detectors, filters and dataset types.

    Parameters
    ----------
    root : `str` or `pathlib.Path`
        Folder, made where it does not exist.
    camera : `str`
        Name of a camera, or the path of its file, which is copied into the repository.
    size : `int`, optional
        Pixels of cut-out detectors; None for full CCDs.
    registry : `str`
        URL of a PostgreSQL database, ``postgresql://user@host:port/database``,
        without a password: libpq finds it (~/.pgpass, PGPASSFILE). Empty: a
        file of SQLite in the repository.
    namespace : `str`
        Schema in that database, for more than one repository in it; empty for
        the user's default.
    fast : `str` or `pathlib.Path`
        Folder of a fast Datastore before the main one, on a local disk or in
        memory, for copies of calibs and templates; empty for none.

    Raises
    ------
    BadRequest
        There is a repository already, or no such camera or size; the registry's
        URL cannot be read or holds a password, or its place is taken.
    ServiceError
        The database cannot be reached.
    """
    loaded, root = load_camera(camera, size), Path(root)
    board = _board(registry, namespace)
    if (root / "butler.yaml").exists():
        raise BadRequest(f"{root} is a Butler repository already; give another folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"{root} cannot be made a repository: {error.strerror}") from error
    stored = camera
    if camera not in camera_names():
        stored = "./camera.yaml"
        shutil.copyfile(camera, root / stored)
    _make(root, loaded, {"db": registry} | ({"namespace": namespace} if namespace else {}) if registry else {}, fast)
    if board is not None:
        with board:
            board.create()
    with atomic(root / SETTINGS) as file:
        file.write(to_toml(Config(camera=stored, size=size, butler=".", inputs=_kept(size))).encode())


def _kept(size: int | None) -> Inputs:
    """Memory for the inputs of one full CCD, of three cut-outs by default."""
    return Inputs() if size else Inputs(memory_mib=1024.0)


def _board(registry: str, namespace: str) -> DatabaseBoard | None:
    """The board of a registry on PostgreSQL that is to be made, reached and found empty."""
    if not registry:
        if namespace:
            raise BadRequest(f"namespace {namespace!r} is one of a database; give its registry too")
        return None
    from apflow.io.arrivals.database_board import DatabaseBoard

    board = DatabaseBoard.checked(registry, namespace)
    with board:
        board.prepare()
    return board


def _make(root: Path, camera: Camera, registry: Mapping[str, str], fast: str | Path) -> None:
    from lsst.daf.butler import Butler, Config
    from lsst.daf.butler.registry import CollectionType  # type: ignore[attr-defined]

    from apflow.io.butler.fast import put_before
    from apflow.io.butler.instruments import register_camera

    config = Config.fromString(resources.files(__package__).joinpath("seed.yaml").read_text())
    for key, value in registry.items():
        config["registry", key] = value
    if fast:
        put_before(config, fast)
    Butler.makeRepo(str(root), config=config, forceConfigRoot=False)
    with Butler.from_config(str(root), writeable=True) as butler:
        register_camera(butler.registry, camera)
        register_types(butler)
        instrument = camera.instrument
        runs = [paths.raw_run(instrument), paths.REFERENCE_RUN, paths.ephemerides_run(instrument)]
        inputs = [runs[0], paths.calib_collection(instrument), *runs[1:]]
        butler.collections.register(inputs[1], CollectionType.CALIBRATION)
        for run in runs:
            butler.collections.register(run, CollectionType.RUN)
        for chain, children in ((paths.defaults_chain(instrument), inputs), (paths.prompt_chain(instrument), [])):
            butler.collections.register(chain, CollectionType.CHAINED)
            butler.collections.redefine_chain(chain, children)
