"""Small things that the tests of input and output are made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from apflow.io.fits import write_raw
from apflow.model.camera import Camera, load_camera
from apflow.model.exposure import Exposure, ImageInfo, Raw
from apflow.model.ids import image_name
from apflow.model.psf import Psf
from apflow.model.sighting import Sighting
from apflow.model.visit import Visit

EXPOSURE = 2025042000123
MJD = 60786.15  # in the night of 2025-04-20


def camera() -> Camera:
    return load_camera("comcam", 128)


def info(detector: int = 4, exposure: int = EXPOSURE, **changes: Any) -> ImageInfo:
    """Header of an r-band image of ComCam."""
    begin = MJD + (exposure - EXPOSURE) * 40 / 86400
    standard = ImageInfo(
        instrument="LSSTComCam",
        detector=detector,
        exposure=exposure,
        group="2025-04-21T03:36:00.000",
        snap=1,
        physical_filter="r_03",
        band="r",
        ra_deg=52.8,
        dec_deg=-28.1,
        rotation_deg=12.0,
        exposure_time_s=30.0,
        mjd_begin_tai=begin,
        mjd_end_tai=begin + 30 / 86400,
    )
    return dataclasses.replace(standard, **changes)


def raw(header: ImageInfo, dtype: str = "uint16", seed: int = 1) -> Raw:
    """A raw image of noise with the segments of its detector."""
    rng = np.random.default_rng(seed)
    detector = camera().detector(header.detector)
    segments = {a.segment: rng.integers(0, 60000, a.raw_shape).astype(dtype) for a in detector.amplifiers}
    return Raw(segments, header, {"DETNAME": detector.name, "OBSID": image_name(header.exposure, "CC_O")})


def raw_file(folder: Path, header: ImageInfo, named_after: int | None = None) -> Path:
    """A raw file under the name of its detector, or of another."""
    detector = camera().detector(header.detector if named_after is None else named_after)
    path = folder / f"{image_name(header.exposure, 'CC_O')}_{detector.name}.fits"
    write_raw(path, raw(header))
    return path


def visit(**changes: Any) -> Visit:
    """The visit of `info`."""
    header = info()
    standard = Visit(
        instrument=header.instrument,
        visit=header.exposure,
        group=header.group,
        ra_deg=header.ra_deg,
        dec_deg=header.dec_deg,
        rotation_deg=header.rotation_deg,
        physical_filter=header.physical_filter,
        band=header.band,
        exposure_time_s=30.0,
        images=(image_name(header.exposure, "CC_O"),),
    )
    return dataclasses.replace(standard, **changes)


def sighting(**changes: Any) -> Sighting:
    """What the header of `info` tells, registered."""
    header = info()
    standard = Sighting(
        instrument=header.instrument,
        group=header.group,
        exposure=header.exposure,
        image=image_name(header.exposure, "CC_O"),
        snap=1,
        nsnaps=0,
        detector=header.detector,
        ra_deg=header.ra_deg,
        dec_deg=header.dec_deg,
        rotation_deg=header.rotation_deg,
        physical_filter=header.physical_filter,
        band=header.band,
        exposure_time_s=header.exposure_time_s,
        image_type=header.image_type,
        arrived_unix=1.0,
        registered=True,
    )
    return dataclasses.replace(standard, **changes)


def exposure(n: int = 64, **changes: Any) -> Exposure:
    """A calibrated exposure of noise with everything that may be known of it."""
    rng = np.random.default_rng(2)
    standard = Exposure(
        image=rng.normal(0, 30, (n, n)).astype(np.float32),
        variance=rng.uniform(800, 1000, (n, n)).astype(np.float32),
        mask=rng.integers(0, 511, (n, n)).astype(np.int32),
        unit="nJy",
        wcs=camera().wcs(camera().detector(4), 52.8, -28.1, 12.0),
        psf=Psf(rng.uniform(0, 1, (3, 15, 15)), (n, n)),
        info=info(),
        summary={"psf_fwhm_arcsec": 0.83, "nPsfStars": 57.0, "sky_noise": float("nan")},
    )
    return dataclasses.replace(standard, **changes)
