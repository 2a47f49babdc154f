"""Template matching, subtraction, detection and measurement."""

from __future__ import annotations

import dataclasses

import pandas as pd

from apflow.config import Config
from apflow.errors import DataError
from apflow.graph import node
from apflow.model import ids, schema
from apflow.model.exposure import Exposure
from apflow.model.products import Difference, Template
from apflow.pixels import detect, measure
from apflow.pixels import subtract as pixels
from apflow.pixels import template as templates


@node
def match_template(science: Exposure, template: Template, config: Config) -> Exposure:
    """Template cells warped to the science grid and assembled."""
    assert science.wcs is not None
    matched = templates.assemble(template.cells, science.wcs, science.shape)
    if matched.psf is None:
        return matched
    fwhm_arcsec = matched.psf.fwhm_px() * science.wcs.pixel_scale_arcsec
    return dataclasses.replace(matched, summary={**matched.summary, "template_fwhm_arcsec": fwhm_arcsec})


@node
def subtract(science: Exposure, matched: Exposure, config: Config) -> Difference:
    """Difference image after PSF matching (Alard & Lupton 1998)."""
    settings = config.subtract
    return pixels.subtract(
        science,
        matched,
        kernel_order=1 if settings.kernel_order is None else settings.kernel_order,
        background_order=settings.background_order,
        min_coverage=settings.min_coverage,
    )


@node
def detect_and_measure(difference: Difference, science: Exposure, config: Config) -> pd.DataFrame:
    """DiaSources of both signs with deterministic ids, not yet associated."""
    info = science.info
    assert info is not None
    peaks = detect.detect(difference, config.detect.threshold)
    if len(peaks) > config.detect.max_sources:
        raise DataError(f"{len(peaks)} detections in the difference image; accepted: {config.detect.max_sources}")
    sources = measure.measure(difference, science, peaks)
    sources["diaSourceId"] = [ids.source_id(info.exposure, info.detector, n + 1) for n in range(len(sources))]
    sources["visit"], sources["detector"] = info.exposure, info.detector
    sources["band"], sources["midpointMjdTai"] = info.band, info.mjd_mid_tai
    return schema.conform(sources, "DiaSource")
