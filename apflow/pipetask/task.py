"""One detector-visit as a PipelineTask: `pipetask` runs the graph that Dask runs, for one CCD."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lsst.pipe.base as pipe_base
from lsst.pex.config import Field, ListField
from lsst.pipe.base import connectionTypes as cT

from apflow.config import Config
from apflow.errors import BadRequest
from apflow.graphs import alert_production
from apflow.io.butler import output_run
from apflow.io.butler.create import SETTINGS
from apflow.model import ids
from apflow.model.calibration import refuse_calibration
from apflow.model.camera import load_camera
from apflow.model.exposure import ImageInfo
from apflow.model.ledger import Outcome, State
from apflow.model.visit import Visit
from apflow.operate.repository import repository_config
from apflow.pipetask.ending import OUTCOME_FILE, write_ending
from apflow.run import EagerRunner

_DETECTOR = ("instrument", "detector")
_DETECTOR_VISIT = ("instrument", "visit", "detector")


def _calib(name: str, dimensions: tuple[str, ...] = _DETECTOR) -> cT.PrerequisiteInput:
    # None valid is an outcome (no_calib) that the ledger keeps: the quantum is made all the same.
    return cT.PrerequisiteInput(
        name=name,
        storageClass="ApflowImage",
        dimensions=dimensions,
        isCalibration=True,
        deferLoad=True,
        minimum=0,
        doc=f"Master {name} valid at the time of the visit.",
    )


def _output(name: str, storage_class: str, doc: str) -> cT.Output:
    return cT.Output(name=name, storageClass=storage_class, dimensions=_DETECTOR_VISIT, doc=doc)


class AlertProductionConnections(pipe_base.PipelineTaskConnections, dimensions=_DETECTOR_VISIT):
    """What a detector-visit reads and leaves in the Butler."""

    raws = cT.Input(
        name="raw",
        storageClass="ApflowRaw",
        dimensions=("instrument", "exposure", "detector"),
        multiple=True,
        deferLoad=True,
        doc="Raw images of the visit: one, or two snaps.",
    )
    bias = _calib("bias")
    dark = _calib("dark")
    flat = _calib("flat", (*_DETECTOR, "physical_filter"))
    defects = _calib("defects")
    templates = cT.PrerequisiteInput(
        name="template_coadd",
        storageClass="ApflowExposure",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
        minimum=0,
        doc="Template cells that overlap the detector.",
    )
    reference = cT.PrerequisiteInput(
        name="reference_catalog",
        storageClass="DataFrame",
        dimensions=("htm7",),
        multiple=True,
        deferLoad=True,
        minimum=0,
        doc="Shards of the reference catalogue about the detector.",
    )
    difference_image = _output("difference_image", "ApflowExposure", "Difference image, nJy.")
    dia_source_detector = _output("dia_source_detector", "DataFrame", "DiaSources as the PPDB has them.")
    ap_provenance = _output("ap_provenance", "ApflowProvenance", "What the outputs were made from, and by what.")


class AlertProductionConfig(pipe_base.PipelineTaskConfig, pipelineConnections=AlertProductionConnections):
    """Where things are; how images are processed stands in the repository's ``apflow.toml``."""

    butler: Field[str] = Field(
        dtype=str, default="", doc=f"Root of the repository, where {SETTINGS} is; default: that of the raw image."
    )
    ppdb: Field[str] = Field(dtype=str, default="", doc="URL of the PPDB; default: as configured.")
    alerts: Field[str] = Field(dtype=str, default="", doc="URL of the alerts; default: as configured.")
    images: ListField[str] = ListField(
        dtype=str, default=[], doc="Names of the images of the visit, where not all of them have come."
    )


class DetectorVisitFailed(pipe_base.RepeatableQuantumError):
    """A detector-visit ended otherwise than done; the ledger of the PPDB says how."""


class AlertProductionTask(pipe_base.PipelineTask):
    """From raw images to alerts, for one detector of one visit (DMTN-092).

    The quantum is what the registry knows of the inputs. Which of their files
    are read is found as on a cluster, by one set of queries with a margin for
    errors of pointing, and the steps are those of
    `apflow.graphs.alert_production`, with a batch of one for the gathers.

    A detector-visit that does not end as done raises and leaves no dataset, so
    that it can be tried again in the same RUN (only its metrics, which are
    therefore no output of the task): that of the night and the
    configuration, in which the results of every road meet. Outputs are registered as on a
    cluster: with ids that follow from dataset type, data id and RUN, rather
    than those that the quantum graph predicts. Tasks that read them therefore
    belong into a quantum graph of their own.
    """

    ConfigClass = AlertProductionConfig
    _DefaultName = "alertProduction"
    config: AlertProductionConfig

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        """Process the visit of the quantum; nothing is put, since the steps write and register files."""
        handles = butlerQC.get(inputRefs.raws)
        infos = sorted((handle.get(component="info") for handle in handles), key=lambda info: info.exposure)
        first = handles[0]
        root = self.config.butler or repository_root(Path(first.butler.getURI(first.ref).ospath))
        # The images are there: nobody waits for a snap that was given up before.
        config = repository_config(str(root), self.config.ppdb, self.config.alerts, timeout_s=0.0)
        visit = visit_of(infos, config, tuple(self.config.images))
        given, run = outputRefs.difference_image.run, output_run(visit, config)
        if given != run:
            raise pipe_base.InvalidQuantumError(
                f"output run {given!r} is not that of the night and configuration: {run}"
            )
        outcome = self.run(visit, infos[0].detector, config).outcome
        if outcome.state is not State.DONE:
            raise DetectorVisitFailed(f"{outcome.state} at {outcome.step}: {outcome.cause}")

    def run(self, visit: Visit, detector: int, config: Config) -> pipe_base.Struct:
        """Process one detector of one visit; what goes wrong is its ``outcome``."""
        outcomes: tuple[Outcome, ...] = EagerRunner().run(alert_production.visit, visit, [detector], config)
        if path := os.environ.get(OUTCOME_FILE):
            write_ending(Path(path), outcomes[0])
        return pipe_base.Struct(outcome=outcomes[0])


def repository_root(path: Path) -> Path:
    """The repository that a raw image lies in.

    Raises
    ------
    BadRequest
        It lies in none.
    """
    for folder in path.parents:
        if (folder / SETTINGS).is_file():
            return folder
    raise BadRequest(f"{path} lies in no repository of apflow; give the task's configuration field butler")


def visit_of(infos: list[ImageInfo], config: Config, images: tuple[str, ...] = ()) -> Visit:
    """The visit that headers tell of, first snap first; `images` are all that were announced."""
    info, camera = infos[0], load_camera(config.camera, config.size)
    names = images or tuple(ids.image_name(one.exposure, camera.image_prefix) for one in infos)
    refuse_calibration(" ".join(names), info.image_type)
    return Visit(
        instrument=camera.instrument,
        visit=ids.parse_image_name(names[0]).exposure,
        group=info.group,
        ra_deg=info.ra_deg,
        dec_deg=info.dec_deg,
        rotation_deg=info.rotation_deg,
        physical_filter=info.physical_filter,
        band=info.band,
        exposure_time_s=info.exposure_time_s,
        images=names,
    )
