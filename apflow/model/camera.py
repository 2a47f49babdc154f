"""Cameras as data: detectors, amplifiers, filters, and where they look.

A camera is one YAML file in `apflow/cameras` (or anywhere, by its path); its
keys are described at the head of `lsstcam.yaml`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from apflow.errors import BadRequest
from apflow.model.region import Region
from apflow.model.response import F4, crosstalk_matrix, linearity_tables
from apflow.model.sky import deproject
from apflow.model.wcs import Wcs, fit_wcs

F8 = NDArray[np.float64]


@dataclass(frozen=True)
class Amplifier:
    """One readout of a CCD.

    ``(x0, y0, nx, ny)`` is its part of the assembled CCD, 0-based. A raw
    segment has `prescan` columns, then `nx`, then `overscan_x` columns, and
    `overscan_y` rows above `ny`; it is stored in the order of readout, so
    `flip_x` / `flip_y` say which axes run backwards in the CCD.
    """

    name: str
    segment: str
    x0: int
    y0: int
    nx: int
    ny: int
    flip_x: bool
    flip_y: bool
    prescan: int
    overscan_x: int
    overscan_y: int
    gain: float  # e-/ADU
    read_noise: float  # e-
    saturation: float  # ADU

    @property
    def raw_shape(self) -> tuple[int, int]:
        """Shape (rows, columns) of the raw segment."""
        return self.ny + self.overscan_y, self.prescan + self.nx + self.overscan_x


@dataclass(frozen=True)
class Detector:
    """One CCD: its place in the focal plane (mm) and its amplifiers.

    `crosstalk` (victim, source) and `linearity` (amplifier, step) are as
    `apflow.model.response` says, in the order of `amplifiers`; None where
    there is none.
    """

    id: int
    name: str
    raft: str
    purpose: str
    vendor: str
    nx: int
    ny: int
    x_mm: float
    y_mm: float
    yaw_deg: float
    amplifiers: tuple[Amplifier, ...]
    crosstalk: F4 | None = field(default=None, compare=False, repr=False)
    linearity: F4 | None = field(default=None, compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (ny, nx) of the assembled CCD."""
        return self.ny, self.nx


@dataclass(frozen=True)
class Filter:
    """A filter and what the simulator and the quality limits know of it.

    `zero_point` is the magnitude of 1 e-/s, `sky` in mag/arcsec^2, `fwhm` in
    arcsec, `depth` the 5-sigma point-source depth of a 30 s visit (SMTN-002).
    `colour_term` times a reference star's colour is what its magnitude in this
    filter is fainter by than in the reference's own band.
    """

    physical_filter: str
    band: str
    zero_point: float
    sky: float
    fwhm: float
    depth: float
    colour_term: float = 0.0


@dataclass(frozen=True)
class Camera:
    """A camera; see the module docstring."""

    name: str
    instrument: str
    image_prefix: str
    pixel_mm: float
    plate_scale_arcsec_per_mm: float
    distortion: tuple[float, float]
    filters: tuple[Filter, ...]
    detectors: tuple[Detector, ...]

    @property
    def pixel_scale_arcsec(self) -> float:
        """Nominal scale, arcsec a pixel."""
        return self.pixel_mm * self.plate_scale_arcsec_per_mm

    def detector(self, which: int | str) -> Detector:
        """A detector by id or name."""
        found = self._by_key.get(str(which))
        if found is None:
            some = ", ".join(d.name for d in self.detectors[:3])
            raise BadRequest(
                f"{self.instrument} has no detector {which!r}; accepted: ids "
                f"{self.detectors[0].id} to {self.detectors[-1].id} or names such as {some}"
            )
        return found

    @functools.cached_property
    def _by_key(self) -> dict[str, Detector]:
        return {str(d.id): d for d in self.detectors} | {d.name: d for d in self.detectors}

    def select(self, which: str | Iterable[int | str]) -> tuple[int, ...]:
        """Detector ids of ``science``, ``all``, rafts, names or ids (a comma list or an iterable)."""
        words = [w.strip() for w in which.split(",")] if isinstance(which, str) else [str(w) for w in which]
        rafts = {d.raft for d in self.detectors}
        ids: list[int] = []
        for word in words:
            if word == "science":
                ids += [d.id for d in self.detectors if d.purpose == "SCIENCE"]
            elif word == "all":
                ids += [d.id for d in self.detectors]
            elif word in rafts:
                ids += [d.id for d in self.detectors if d.raft == word]
            else:
                ids.append(self.detector(word).id)
        return tuple(dict.fromkeys(ids))

    def filter(self, name: str) -> Filter:
        """A filter by physical name or band."""
        for f in self.filters:
            if name in (f.physical_filter, f.band):
                return f
        accepted = ", ".join(f.physical_filter for f in self.filters)
        raise BadRequest(f"{self.instrument} has no filter {name!r}; accepted: {accepted}")

    def focal_plane(self, detector: Detector, x: ArrayLike, y: ArrayLike) -> tuple[F8, F8]:
        """Focal-plane position (mm) of pixels (x, y) of a detector."""
        u = (np.asarray(x, float) - (detector.nx - 1) / 2) * self.pixel_mm
        v = (np.asarray(y, float) - (detector.ny - 1) / 2) * self.pixel_mm
        c, s = np.cos(np.radians(detector.yaw_deg)), np.sin(np.radians(detector.yaw_deg))
        return detector.x_mm + c * u - s * v, detector.y_mm + s * u + c * v

    def sky(
        self, x_mm: ArrayLike, y_mm: ArrayLike, ra_deg: float, dec_deg: float, rotation_deg: float
    ) -> tuple[F8, F8]:
        """ICRS position of focal-plane points.

        `rotation_deg` is the position angle of the focal plane's +Y, East of
        North. The field angle is the radius in the tangent plane about the
        boresight.
        """
        x, y = np.asarray(x_mm, float), np.asarray(y_mm, float)
        r2 = x * x + y * y
        scale = self.plate_scale_arcsec_per_mm / 3600.0 * (1 + self.distortion[0] * r2 + self.distortion[1] * r2 * r2)
        c, s = np.cos(np.radians(rotation_deg)), np.sin(np.radians(rotation_deg))
        return deproject(scale * (-x * c + y * s), scale * (x * s + y * c), ra_deg, dec_deg)

    def wcs(self, detector: Detector, ra_deg: float, dec_deg: float, rotation_deg: float) -> Wcs:
        """WCS of a detector for a boresight and rotation."""
        return fit_wcs(
            lambda x, y: self.sky(*self.focal_plane(detector, x, y), ra_deg, dec_deg, rotation_deg), detector.shape
        )

    def region(
        self, detector: Detector, ra_deg: float, dec_deg: float, rotation_deg: float, margin_arcsec: float = 0.0
    ) -> Region:
        """Sky region of a detector, grown by a margin."""
        m = margin_arcsec / self.pixel_scale_arcsec + 0.5
        x = np.array([-m, detector.nx - 1 + m, detector.nx - 1 + m, -m])
        y = np.array([-m, -m, detector.ny - 1 + m, detector.ny - 1 + m])
        return Region(np.stack(self.sky(*self.focal_plane(detector, x, y), ra_deg, dec_deg, rotation_deg), -1))

    def resized(self, size: int) -> Camera:
        """The same camera with cut-outs of ``size`` pixels at the true centres of its CCDs."""
        if size < 128 or size % 16:
            raise BadRequest(f"size {size} is not accepted: a multiple of 16, 128 or more, or 'full'")

        def cut(detector: Detector) -> Detector:
            columns = len({a.x0 for a in detector.amplifiers})
            rows = len(detector.amplifiers) // columns
            nx, ny = size // columns, size // rows
            xs = {x: i * nx for i, x in enumerate(sorted({a.x0 for a in detector.amplifiers}))}
            ys = {y: i * ny for i, y in enumerate(sorted({a.y0 for a in detector.amplifiers}))}
            amplifiers = tuple(
                dataclasses.replace(a, x0=xs[a.x0], y0=ys[a.y0], nx=nx, ny=ny) for a in detector.amplifiers
            )
            return dataclasses.replace(detector, nx=nx * columns, ny=ny * rows, amplifiers=amplifiers)

        return dataclasses.replace(self, detectors=tuple(cut(d) for d in self.detectors))


def camera_names() -> list[str]:
    """Names of the cameras that come with apflow."""
    return sorted(p.name[:-5] for p in resources.files("apflow.cameras").iterdir() if p.name.endswith(".yaml"))


@functools.lru_cache(maxsize=8)
def load_camera(name: str, size: int | None = None) -> Camera:
    """Read a camera by name or by the path of its YAML file.

    Parameters
    ----------
    name : `str`
        ``lsstcam``, ``comcam``, ``decam`` or a path.
    size : `int`, optional
        Pixels of square cut-outs in place of the full CCDs.

    Raises
    ------
    BadRequest
        No such camera, or a key is missing, unknown or of a wrong type.
    """
    if name in camera_names():
        text = (resources.files("apflow.cameras") / f"{name}.yaml").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise BadRequest(
            f"no camera {name!r}; accepted: {', '.join(camera_names())} or the path of a camera's YAML file"
        )
    try:
        camera = _parse(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"camera {name!r}: {type(error).__name__}: {error}; see the head of lsstcam.yaml") from error
    return camera if size is None else camera.resized(size)


def _parse(tree: Mapping[str, Any]) -> Camera:
    kinds = {name: _ccd(name, spec) for name, spec in tree["ccds"].items()}
    detectors = [
        Detector(number, name, raft, purpose, kind, x_mm=x_mm, y_mm=y_mm, yaw_deg=yaw_deg, **kinds[kind])
        for number, name, raft, purpose, kind, x_mm, y_mm, yaw_deg in tree["detectors"]
    ]
    return Camera(
        name=tree["name"],
        instrument=tree["instrument"],
        image_prefix=tree.get("image_prefix", "MC_O"),
        pixel_mm=float(tree["pixel_mm"]),
        plate_scale_arcsec_per_mm=float(tree["plate_scale_arcsec_per_mm"]),
        distortion=tuple(float(c) for c in tree.get("distortion", (0.0, 0.0))),  # type: ignore[arg-type]
        filters=tuple(Filter(**f) for f in tree["filters"]),
        detectors=tuple(detectors),
    )


def _ccd(kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the CCDs of one kind have in common."""
    amplifiers = _amplifiers(spec)
    names = [amp.name for amp in amplifiers]
    try:
        crosstalk = crosstalk_matrix(spec["crosstalk"], names) if "crosstalk" in spec else None
        linearity = linearity_tables(spec["linearity"], names) if "linearity" in spec else None
    except ValueError as error:
        raise ValueError(f"CCD {kind}: {error}") from None
    shape = {"nx": spec["nx"], "ny": spec["ny"]}
    return {**shape, "amplifiers": amplifiers, "crosstalk": crosstalk, "linearity": linearity}


def _amplifiers(spec: Mapping[str, Any]) -> tuple[Amplifier, ...]:
    """Amplifiers of one kind of CCD, a grid of columns x rows."""
    grid, out = spec["amplifiers"], []
    nx, ny = spec["nx"] // grid["columns"], spec["ny"] // grid["rows"]
    for row, digit in zip(range(grid["rows"]), grid["names"], strict=True):
        for column in range(grid["columns"]):
            out.append(
                Amplifier(
                    name=f"C{digit}{column}",
                    segment=f"Segment{digit}{column}",
                    x0=column * nx,
                    y0=row * ny,
                    nx=nx,
                    ny=ny,
                    flip_x=bool(grid["flip_x"][row]),
                    flip_y=bool(grid["flip_y"][row]),
                    prescan=grid["prescan"],
                    overscan_x=grid["overscan_x"],
                    overscan_y=grid["overscan_y"],
                    gain=float(grid["gain"]),
                    read_noise=float(grid["read_noise"]),
                    saturation=float(grid["saturation"]),
                )
            )
    return tuple(out)
