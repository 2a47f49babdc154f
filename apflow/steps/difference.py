"""Template matching, subtraction, detection and measurement."""

from __future__ import annotations

import dataclasses

import pandas as pd

from apflow.config import Config
from apflow.config_tables import Subtract
from apflow.errors import BadRequest, BadSubtraction, DataError
from apflow.graph import node
from apflow.model import ids, schema
from apflow.model.exposure import Exposure
from apflow.model.products import Difference, Template
from apflow.pixels import detect, measure, streaks
from apflow.pixels import subtract as pixels
from apflow.pixels import template as templates
from apflow.pixels.zogy import subtract_zogy


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
    """Difference image by the method of the configuration; one of Alard & Lupton that is too bad ends its detector."""
    settings = config.subtract
    if settings.method == "zogy":
        coverage, order = settings.min_coverage, settings.background_order
        return subtract_zogy(science, matched, min_coverage=coverage, background_order=order)
    if settings.method != "alard-lupton":
        raise BadRequest(f"subtract.method is {settings.method!r}; accepted: alard-lupton, zogy")
    difference = pixels.subtract(
        science,
        matched,
        convolve=settings.convolve,
        kernel_order=settings.kernel_order,
        background_order=settings.background_order,
        min_coverage=settings.min_coverage,
        decorrelate=settings.decorrelate,
    )
    _judge(difference, settings)
    return streaks.mark_streaks(difference)


def _judge(difference: Difference, settings: Subtract) -> None:
    """Refuse a difference that is worse than the limits; 0 is no limit."""
    limits = {"residual_power": settings.max_residual_power, "bad_stamps": settings.max_bad_stamps}
    for name, limit in limits.items():
        value = difference.exposure.summary.get(name, 0.0)
        if 0 < limit < value:
            raise BadSubtraction(f"{name} of the subtraction is {value:.3g}; accepted: at most {limit:g}")


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
    # A blend is no row of its own: its id is one that no source of the detector has.
    blended = sources["parentDiaSourceId"].notna()
    parents = [ids.source_id(info.exposure, info.detector, int(n)) for n in sources.loc[blended, "parentDiaSourceId"]]
    sources.loc[blended, "parentDiaSourceId"] = parents
    sources["visit"], sources["detector"] = info.exposure, info.detector
    sources["band"], sources["midpointMjdTai"] = info.band, info.mjd_mid_tai
    return schema.conform(sources, "DiaSource")
