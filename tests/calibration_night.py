"""A real repository with master calibs, and simulated calibration exposures that land in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from apflow.config import Config
from apflow.io.butler import Repository, create_repository
from apflow.io.butler.raws import Ingested
from apflow.io.fits import write_image, write_raw
from apflow.model.calibration import CalibrationExposure, Intent
from apflow.model.exposure import Raw
from apflow.model.ids import image_name
from apflow.operate.repository import repository_config
from apflow.simulate.calibration import Faults, render_calibration
from apflow.simulate.calibs import render_calibs
from apflow.simulate.scenario import Scenario

EXPTIME_S = {Intent.BIAS: 0.0, Intent.DARK: 30.0, Intent.FLAT: 2.5, Intent.CBP: 2.5}
KINDS = ("bias", "dark", "flat", "defects")


@dataclasses.dataclass(frozen=True)
class Night:
    """A repository, and what is taken into it."""

    root: Path
    scenario: Scenario

    @property
    def config(self) -> Config:
        """That of the repository; images are waited for a short time."""
        config = repository_config(str(self.root), timeout_s=0.5)
        return dataclasses.replace(config, timing=dataclasses.replace(config.timing, gather_after_s=0.5))

    def raw(self, intent: Intent, sequence: int, detector: int, faults: Faults | None = None) -> Raw:
        """A raw image of the night."""
        lit = intent in (Intent.FLAT, Intent.CBP)
        return render_calibration(
            self.scenario,
            intent,
            sequence,
            detector,
            exposure_time_s=EXPTIME_S[intent],
            physical_filter=self.scenario.physical_filter if lit else "",
            faults=faults or Faults(),
        )

    def write(self, raw: Raw) -> Path:
        """A raw image as a file that has not landed."""
        path = self.root.parent / "staged" / f"{raw.info.exposure}_{raw.info.detector}.fits"
        path.parent.mkdir(exist_ok=True)
        write_raw(path, raw)
        return path

    def land(self, *raws: Raw) -> list[Ingested]:
        """Raw images are registered and announced."""
        return Repository.open(self.root, writeable=True).ingest_raws([self.write(raw) for raw in raws])

    def exposure(self, raw: Raw, intent: Intent | None = None, **known: str) -> CalibrationExposure:
        """A raw's exposure as startIntegration announces it: without filter."""
        camera, info = self.scenario.load_camera(), raw.info
        return CalibrationExposure(
            instrument=camera.instrument,
            exposure=info.exposure,
            group=info.group,
            intent=intent or Intent.of(info.image_type),
            physical_filter=known.get("physical_filter", ""),
            exposure_time_s=info.exposure_time_s,
            image=image_name(info.exposure, camera.image_prefix),
            partner=known.get("partner", ""),
        )


def make_night(folder: Path, detectors: tuple[int, ...] = (4,), kinds: Collection[str] = KINDS) -> Night:
    """A repository of ComCam with the master calibs of some detectors."""
    night = Night(folder / "butler", Scenario(camera="comcam", seed=5, detectors=detectors, physical_filter="r_03"))
    create_repository(night.root, "comcam", night.scenario.size)
    repository = Repository.open(night.root, writeable=True)
    begin = night.scenario.start_mjd_tai
    masters = {d: render_calibs(night.scenario, d) for d in detectors}
    for kind in kinds:
        files = {}
        for d, calibs in masters.items():
            files[d] = folder / f"{kind}_{d}.fits"
            write_image(files[d], getattr(calibs, kind))
        physical_filter = night.scenario.physical_filter if kind == "flat" else None
        repository.ingest_calibs(kind, files, physical_filter, (begin - 10, begin + 10))
    return night
