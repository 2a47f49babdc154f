"""What a detector needs from outside: calibs, templates, and the science images."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.config import Config
from apflow.errors import NoCalib, NoTemplate
from apflow.graph import node
from apflow.io.arrivals import await_images
from apflow.io.fits import read_exposure, read_image
from apflow.io.input_cache import InputReader
from apflow.model.products import Calibs, Plan, Snaps, Template
from apflow.model.region import Region
from apflow.model.skymap import SkyMap
from apflow.model.visit import Visit
from apflow.pixels.template import crop
from apflow.steps.visits import detector_region

#: The image may lie this far from where it was announced without losing template.
_POINTING_ARCSEC = 60.0


@node
def fetch_calibs(plan: Plan, detector: int, region: Region, config: Config) -> Calibs:
    """Master calibs valid for the visit, and the reference stars of the region."""
    inputs = plan.inputs[detector]
    paths = {"bias": inputs.bias, "dark": inputs.dark, "flat": inputs.flat, "defects": inputs.defects}
    missing = [kind for kind, path in paths.items() if path is None]
    if missing:
        raise NoCalib(f"no {', '.join(missing)} of detector {detector} is valid for visit {plan.visit.visit}")
    reader = InputReader(inputs, config.inputs, plan.visit.visit, detector)
    readers = {"defects": _read_defects}
    planes = {
        kind: reader.read(path, readers.get(kind, read_image)) for kind, path in paths.items() if path is not None
    }
    columns = ["ra", "dec", "mag"]
    shards = [reader.read(path, _read_stars) for path in inputs.reference]
    stars = pd.concat(shards, ignore_index=True) if shards else pd.DataFrame({c: np.zeros(0) for c in columns})
    band = plan.visit.band
    if "band" in stars:
        stars = stars[stars["band"] == band]
    near = region.grown(2 * config.calibrate.match_radius_arcsec).contains(stars["ra"], stars["dec"])
    return Calibs(
        bias=planes["bias"],
        dark=planes["dark"],
        flat=planes["flat"],
        defects=planes["defects"],
        reference=stars.loc[near, columns].reset_index(drop=True),
    )


@node
def fetch_template(plan: Plan, detector: int, config: Config) -> Template:
    """Template cells that overlap the detector, cut to what it may need of them."""
    inputs = plan.inputs[detector]
    if not inputs.templates:
        raise NoTemplate(f"no template in band {plan.visit.band!r} overlaps detector {detector}")
    skymap = SkyMap.from_name(inputs.skymap)
    reader = InputReader(inputs, config.inputs, plan.visit.visit, detector)
    region = detector_region(plan.visit, detector, config)
    margin_px = skymap.border_px + int(_POINTING_ARCSEC / skymap.pixel_scale_arcsec)
    cells = []
    for tract, patch, path in inputs.templates:
        # One by one: whole cells are several times the detector.
        part = crop(skymap.cell(tract, patch), reader.read(path, read_exposure), region, margin_px)
        if part is not None:
            cells.append(part)
    return Template(tuple(cells))


def _read_defects(path: str) -> NDArray[np.bool_]:
    return read_image(path).astype(bool)


def _read_stars(path: str) -> pd.DataFrame:
    return pd.read_parquet(path)


@node(waits=True)
def await_science_images(visit: Visit, detector: int, config: Config) -> Snaps:
    """Block until the images are received and registered, or time out (DMTN-092 section 4).

    Images that are not what was announced raise `~apflow.errors.Misannounced`.
    Gives paths, not pixels, so that a detector that waits holds no memory.
    """
    return await_images(
        config.butler,
        visit.instrument,
        visit.group,
        detector,
        nsnaps=visit.nsnaps,
        timeout_s=config.timing.image_timeout_s,
        images=visit.images,
        announced=visit,
        pointing_tolerance_deg=config.invocation.pointing_tolerance_deg,
        angle_tolerance_deg=config.invocation.angle_tolerance_deg,
    )
