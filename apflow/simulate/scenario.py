"""What is simulated: a field, a camera, and the conditions of each visit.

Everything follows from the seed: each random number comes from a generator
that is seeded by the scenario's seed and by what it is for, so that processes
may make the parts in any order.
"""

from __future__ import annotations

import datetime as dt
import zlib
from dataclasses import dataclass

import numpy as np

from apflow.errors import BadRequest
from apflow.model.camera import Camera, Filter, load_camera
from apflow.model.ids import day_obs, exposure_id, image_name
from apflow.model.visit import Visit
from apflow.simulate.optics import NEFF

#: nJy of AB magnitude 0, as a magnitude (Oke & Gunn 1983).
NJY_MAG = 31.4
#: From a closed shutter to the next that opens.
READOUT_S = 2.0
#: Seconds a day.
SECONDS = 86400.0


@dataclass(frozen=True)
class Scenario:
    """One simulated run: a field seen `nvisits` times at one pointing and rotation.

    Attributes
    ----------
    camera : `str`
        Name of a camera or path of its YAML file.
    size : `int` or `None`
        Pixels of cut-out detectors; None for full CCDs.
    seed : `int`
    ra_deg, dec_deg, rotation_deg : `float`
        Announced boresight (ICRS) and position angle of the focal plane's +Y, degrees.
    physical_filter : `str`
        Filter by physical name or band.
    nvisits, nsnaps : `int`
    exposure_time_s : `float`
        Open-shutter time of a visit, shared by its snaps.
    cadence_s : `float`
        From the start of a visit to the start of the next; 0 for all at once.
    start_mjd_tai : `float`
        When the first shutter opens.
    detectors : `tuple` [`int`, ...]
        Detector ids; empty for all science detectors.
    first_seq : `int`
        Sequence number of the first exposure of the day.
    """

    camera: str = "lsstcam"
    size: int | None = 512
    seed: int = 1
    ra_deg: float = 150.1
    dec_deg: float = -32.0
    rotation_deg: float = 25.0
    physical_filter: str = "r"
    nvisits: int = 3
    nsnaps: int = 1
    exposure_time_s: float = 30.0
    cadence_s: float = 37.0
    start_mjd_tai: float = 60786.1
    detectors: tuple[int, ...] = ()
    first_seq: int = 1

    def __post_init__(self) -> None:
        if self.nsnaps not in (1, 2):
            raise BadRequest(f"{self.nsnaps} snaps a visit are not accepted: 1 or 2")
        if self.nvisits < 1:
            raise BadRequest(f"{self.nvisits} visits are not accepted: 1 or more")
        if not self.exposure_time_s > 0:
            raise BadRequest(f"exposure time {self.exposure_time_s} s is not accepted: more than 0")
        if not self.detectors:
            object.__setattr__(self, "detectors", load_camera(self.camera).select("science"))

    def load_camera(self) -> Camera:
        """The camera, cut to `size`."""
        return load_camera(self.camera, self.size)

    def load_filter(self) -> Filter:
        """The filter."""
        return self.load_camera().filter(self.physical_filter)

    @property
    def snap_time_s(self) -> float:
        """Requested open-shutter time of one snap, seconds."""
        return self.exposure_time_s / self.nsnaps

    @property
    def electrons_per_njy(self) -> float:
        """Electrons a second for 1 nJy through a clear sky."""
        return float(10 ** (0.4 * (self.load_filter().zero_point - NJY_MAG)))

    @property
    def depth_njy(self) -> float:
        """Flux of the nominal 5-sigma depth of a 30 s visit, nJy."""
        return float(10 ** (0.4 * (NJY_MAG - self.load_filter().depth)))


def generator(scenario: Scenario, purpose: str, *numbers: int) -> np.random.Generator:
    """The generator for one purpose: a function of the scenario's seed, the purpose and its numbers."""
    entropy = [scenario.seed, zlib.crc32(purpose.encode()), len(numbers), *(n & 0xFFFFFFFF for n in numbers)]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))


def opened_s(scenario: Scenario, index: int, snap: int = 0) -> float:
    """When the shutter opens for a snap of the index-th visit, seconds after the scenario's start.

    A cadence shorter than the visit itself only hurries the arrival of the
    files; the headers then tell of visits that follow without a pause.
    """
    snap_s = scenario.snap_time_s + READOUT_S
    step_s = max(scenario.cadence_s, scenario.nsnaps * snap_s + 1.0)
    return index * step_s + snap * snap_s


def iso_tai(mjd_tai: float) -> str:
    """An MJD as an ISO 8601 string with milliseconds, in the same time scale."""
    time = dt.datetime(1858, 11, 17) + dt.timedelta(milliseconds=round(mjd_tai * SECONDS * 1e3))
    return time.isoformat(timespec="milliseconds")


def visits(scenario: Scenario) -> list[Visit]:
    """The visits as they are announced, in order."""
    camera, physical = scenario.load_camera(), scenario.load_filter()
    out = []
    for index in range(scenario.nvisits):
        mjd = scenario.start_mjd_tai + opened_s(scenario, index) / SECONDS
        first = exposure_id(day_obs(mjd), scenario.first_seq + index * scenario.nsnaps)
        out.append(
            Visit(
                instrument=camera.instrument,
                visit=first,
                group=iso_tai(mjd),
                ra_deg=scenario.ra_deg,
                dec_deg=scenario.dec_deg,
                rotation_deg=scenario.rotation_deg,
                physical_filter=physical.physical_filter,
                band=physical.band,
                exposure_time_s=scenario.snap_time_s,
                images=tuple(image_name(first + snap, camera.image_prefix) for snap in range(scenario.nsnaps)),
            )
        )
    return out


def visit_index(scenario: Scenario, visit: Visit) -> int:
    """Which of the scenario's visits this is, from 0."""
    return (visit.visit % 100_000 - scenario.first_seq) // scenario.nsnaps


@dataclass(frozen=True)
class Conditions:
    """What the telescope and the sky really did in one visit.

    Attributes
    ----------
    ra_deg, dec_deg, rotation_deg : `float`
        True boresight and rotation, degrees.
    fwhm_arcsec : `float`
        Effective FWHM at the centre of the field (0.664 sqrt(n_eff), LSE-30).
    fwhm_slope : `tuple` [`float`, `float`, `float`]
        Relative change of the FWHM along X, Y and radius squared, at the edge of the field.
    shape, shape_slope : `tuple` [`float`, ...]
        Ellipticity (e1, e2) of the PSF at the centre, and its changes (e1 along X and Y, e2 along X and Y).
    sky_mag : `float`
        Sky brightness at the centre, mag/arcsec^2.
    sky_slope : `tuple` [`float`, `float`]
        Relative change of the sky along X and Y at the edge of the field.
    transparency : `float`
        Share of the light that a clear sky lets through.
    shutter_s : `tuple` [`float`, ...]
        True open-shutter time of each snap.
    """

    ra_deg: float
    dec_deg: float
    rotation_deg: float
    fwhm_arcsec: float
    fwhm_slope: tuple[float, float, float]
    shape: tuple[float, float]
    shape_slope: tuple[float, float, float, float]
    sky_mag: float
    sky_slope: tuple[float, float]
    transparency: float
    shutter_s: tuple[float, ...]

    def zero_point(self, scenario: Scenario) -> float:
        """Magnitude of 1 electron a second in this visit."""
        return scenario.load_filter().zero_point + 2.5 * float(np.log10(self.transparency))


def conditions(scenario: Scenario, visit: Visit) -> Conditions:
    """The true conditions of a visit: pointing within 2", rotation within 32" (LDM-151).

    Seeing, transparency and sky vary by themselves; where together they would
    lead further than 0.2 mag from the nominal depth, the sky gives way.
    """
    rng = generator(scenario, "conditions", visit_index(scenario, visit))
    physical = scenario.load_filter()
    radius, angle = 2.0 / 3600.0 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(-1, 1, 9)
    fwhm_arcsec, transparency = physical.fwhm * rng.uniform(0.94, 1.08), rng.uniform(0.92, 1.0)
    darkest, brightest = (_sky_mag(scenario, fwhm_arcsec, transparency, physical.depth + d) for d in (0.2, -0.2))
    return Conditions(
        ra_deg=float(scenario.ra_deg + radius * np.cos(angle) / np.cos(np.radians(scenario.dec_deg))) % 360.0,
        dec_deg=float(np.clip(scenario.dec_deg + radius * np.sin(angle), -90.0, 90.0)),
        rotation_deg=float(scenario.rotation_deg + rng.uniform(-32, 32) / 3600.0),
        fwhm_arcsec=float(fwhm_arcsec),
        fwhm_slope=(0.04 * float(slope[0]), 0.04 * float(slope[1]), 0.05 * float(abs(slope[2]))),
        shape=(0.03 * float(slope[3]), 0.03 * float(slope[4])),
        shape_slope=(0.02 * float(slope[5]), 0.02 * float(slope[6]), 0.02 * float(slope[7]), 0.02 * float(slope[8])),
        sky_mag=float(np.clip(physical.sky + rng.uniform(-0.15, 0.15), brightest, darkest)),
        sky_slope=(0.03 * float(rng.uniform(-1, 1)), 0.03 * float(rng.uniform(-1, 1))),
        transparency=float(transparency),
        shutter_s=tuple(float(scenario.snap_time_s + d) for d in rng.uniform(-0.05, 0.05, scenario.nsnaps)),
    )


def _sky_mag(scenario: Scenario, fwhm_arcsec: float, transparency: float, depth: float) -> float:
    """Sky (mag/arcsec^2) that gives a 30 s visit this 5-sigma depth: F^2 / 25 = F + n_eff (sky + read noise^2)."""
    camera, physical = scenario.load_camera(), scenario.load_filter()
    area = camera.pixel_scale_arcsec**2
    flux = 30.0 * transparency * 10 ** (0.4 * (physical.zero_point - depth))
    read2 = np.mean([d.amplifiers[0].read_noise ** 2 for d in camera.detectors])
    sky = (flux**2 / 25 - flux) / (NEFF * fwhm_arcsec**2 / area) - read2
    # No sky is dark enough where the read noise alone is too much: 1 electron a pixel stands for none.
    return float(physical.zero_point - 2.5 * np.log10(max(sky, 1.0) / 30.0 / area))
