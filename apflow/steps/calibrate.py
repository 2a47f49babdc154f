"""From raw segments to a calibrated science image."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math

from apflow.config import Config
from apflow.errors import DataError
from apflow.graph import node
from apflow.io.fits import read_raw, shutter_offset_s
from apflow.model.camera import load_camera
from apflow.model.exposure import Exposure
from apflow.model.products import Calibs, Snaps
from apflow.model.visit import Visit
from apflow.pixels import calibrate as pixels
from apflow.pixels import isr
from apflow.pixels import snaps as pairs
from apflow.pixels.photometry import effective_time_ratio

_log = logging.getLogger(__name__)
#: A measured open-shutter time that differs from the planned one by more than both is worth a warning: a slow shutter
#: differs by some hundredths of a second.
_SHUTTER_S, _SHUTTER = 0.2, 0.01


@node
def remove_signature(snaps: Snaps, calibs: Calibs, visit: Visit, detector: int, config: Config) -> Exposure:
    """Raw segments to electrons with variance and mask; two snaps are combined."""
    ccd, wanted = load_camera(config.camera, config.size).detector(detector), config.signature
    ccd = dataclasses.replace(
        ccd,
        crosstalk=ccd.crosstalk if wanted.crosstalk else None,
        linearity=ccd.linearity if wanted.linearity else None,
    )
    exposures, offsets = [], []
    for ref in snaps.raws:
        raw = read_raw(ref.path)
        if visit.physical_filter and raw.info.physical_filter != visit.physical_filter:
            raise DataError(
                f"exposure {raw.info.exposure}: the header's filter is {raw.info.physical_filter!r}, "
                f"announced was {visit.physical_filter!r}"
            )
        offsets.append(shutter_offset_s(raw.header))
        if abs(offsets[-1]) > max(_SHUTTER_S, _SHUTTER * raw.info.exposure_time_s):
            _log.warning(
                "exposure %d, detector %d: the shutter was open for %.2f s more than planned; %.2f s are used",
                *(raw.info.exposure, detector, offsets[-1], raw.info.exposure_time_s),
            )
        exposures.append(isr.remove_signature(raw, ccd, calibs))
    combined = functools.reduce(pairs.combine, exposures)
    assert combined.info is not None
    # Where only the second snap came, too, it is the image of the visit, whose id is the first one's.
    info = dataclasses.replace(combined.info, exposure=visit.visit)
    offset = {"shutter_offset_s": max(filter(math.isfinite, offsets), key=abs, default=math.nan)}
    times = {"mjd_mid_tai": info.mjd_mid_tai, "exposure_time_s": info.exposure_time_s} | offset
    return dataclasses.replace(combined, info=info, summary={**combined.summary, **times})


@node
def calibrate(post_isr: Exposure, calibs: Calibs, config: Config) -> Exposure:
    """Background, PSF, WCS against the reference catalogue, zero point; electrons to nJy."""
    info = post_isr.info
    assert info is not None
    camera = load_camera(config.camera, config.size)
    wcs = camera.wcs(camera.detector(info.detector), info.ra_deg, info.dec_deg, info.rotation_deg)
    settings, nominal = config.calibrate, camera.filter(info.physical_filter)
    science = pixels.calibrate(
        post_isr,
        wcs,
        calibs.reference,
        min_stars=settings.min_stars,
        star_snr=settings.star_snr,
        psf_order=settings.psf_order,
        match_radius_arcsec=settings.match_radius_arcsec,
        colour_term=nominal.colour_term,
    )
    ratio = effective_time_ratio(science.summary, nominal.zero_point, nominal.sky, nominal.fwhm)
    effective = {"effective_time_ratio": ratio, "effective_time_s": ratio * info.exposure_time_s}
    return dataclasses.replace(science, summary={**science.summary, **effective})
