"""The simulated CCDs: what each one adds to an image, and the master calibs that tell of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.camera import Detector
from apflow.model.products import Calibs
from apflow.simulate.scenario import Scenario, generator
from apflow.simulate.scene import edge_mm

F4 = NDArray[np.float32]

#: Frames averaged into each master.
_FRAMES = 25


@dataclass(frozen=True, eq=False)
class Response:
    """The physical truth of one CCD.

    Attributes
    ----------
    bias : `numpy.ndarray`, (ny, nx), float32
        Structure above the overscan's level, ADU.
    dark : `numpy.ndarray`, (ny, nx), float32
        Electrons a second.
    flat : `numpy.ndarray`, (ny, nx), float32
        Sensitivity about 1, vignetting included; 0.1 of it in dead pixels.
    defects : `numpy.ndarray`, (ny, nx), bool
    gains : `numpy.ndarray`, (n amplifiers,)
        True gains, e-/ADU; the camera's are the ones that everybody believes.
    levels : `numpy.ndarray`, (n amplifiers,)
        Bias levels, ADU.
    """

    bias: F4
    dark: F4
    flat: F4
    defects: NDArray[np.bool_]
    gains: NDArray[np.float64]
    levels: NDArray[np.float64]


@functools.lru_cache(maxsize=1)
def response(scenario: Scenario, detector_id: int) -> Response:
    """How one CCD responds, the same in every visit.

    The last one is kept, since a detector's visits are rendered one after another.
    """
    camera = scenario.load_camera()
    detector = camera.detector(detector_id)
    rng = generator(scenario, "ccd", detector_id)
    bias, dark, gain_ratio = (np.empty(detector.shape, np.float32) for _ in range(3))
    gains, levels = [], []
    for amp in detector.amplifiers:
        part = np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]
        rows, columns = np.arange(amp.ny)[:: -1 if amp.flip_y else 1], np.arange(amp.nx)[:: -1 if amp.flip_x else 1]
        near = rng.uniform(2, 8) * np.exp(-rows / 40.0)
        bias[part] = (near[:, None] + rng.normal(0, 0.8, amp.nx) + 2.0 * np.exp(-columns / 15.0)).astype(np.float32)
        dark[part] = np.float32(rng.uniform(0.02, 0.06)) + np.float32(0.1) * np.exp(-rows / 10.0)[:, None]
        gains.append(amp.gain * rng.uniform(0.985, 1.015))
        levels.append(rng.uniform(1500.0, 2500.0))
        gain_ratio[part] = amp.gain / gains[-1]
    flat = _flat(scenario, detector, rng)
    defects = _defects(detector, rng, dark, flat)
    return Response(bias, dark, flat, defects, np.array(gains), np.array(levels))


def _flat(scenario: Scenario, detector: Detector, rng: np.random.Generator) -> F4:
    """Vignetting towards the edge of the field, a smooth slope, and 0.4 % from pixel to pixel."""
    camera = scenario.load_camera()
    ny, nx = detector.shape
    x, y = np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9)
    x_mm, y_mm = camera.focal_plane(detector, *np.meshgrid(x, y))
    shade = 1.0 - 0.06 * (np.hypot(x_mm, y_mm) / edge_mm(camera)) ** 4
    shade *= 1 + 0.01 * rng.uniform(-1, 1) * (x / nx - 0.5) + 0.01 * rng.uniform(-1, 1) * (y / ny - 0.5)[:, None]
    across = np.stack([np.interp(np.arange(nx), x, row) for row in shade])
    weight = np.stack([np.interp(np.arange(ny), y, unit) for unit in np.eye(9)], -1)
    flat = weight.astype(np.float32) @ across.astype(np.float32)
    flat *= 1 + np.float32(0.004) * rng.standard_normal(detector.shape, np.float32)
    return np.asarray(flat)


def _defects(detector: Detector, rng: np.random.Generator, dark: F4, flat: F4) -> NDArray[np.bool_]:
    """Hot pixels, dead pixels and one bad column, written into `dark` and `flat`."""
    ny, nx = detector.shape
    defects = np.zeros(detector.shape, bool)
    n = max(4, round(2e-5 * nx * ny))
    hot, dead = ((rng.integers(0, ny, n), rng.integers(0, nx, n)) for _ in range(2))
    dark[hot] = rng.uniform(20, 500, n).astype(np.float32)
    flat[dead] *= np.float32(0.1)
    defects[hot] = defects[dead] = True
    column, row = int(rng.integers(0, nx)), int(rng.integers(0, ny))
    amp = next(a for a in detector.amplifiers if a.x0 <= column < a.x0 + a.nx and a.y0 <= row < a.y0 + a.ny)
    # A trap spoils what is read out after it, up to the row furthest from the register.
    bad = np.s_[amp.y0 : row + 1, column] if amp.flip_y else np.s_[row : amp.y0 + amp.ny, column]
    flat[bad] *= np.float32(0.3)
    defects[bad] = True
    return defects


def gain_ratio(scenario: Scenario, detector_id: int) -> F4:
    """Believed over true gain on the CCD's grid: what a flat in believed electrons holds besides sensitivity."""
    detector = scenario.load_camera().detector(detector_id)
    ratio = np.empty(detector.shape, np.float32)
    for amp, gain in zip(detector.amplifiers, response(scenario, detector_id).gains, strict=True):
        ratio[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx] = amp.gain / gain
    return ratio


def render_calibs(scenario: Scenario, detector_id: int) -> Calibs:
    """Master calibs of one detector, with the noise of their own making; `reference` is empty.

    `dark` and `flat` are as measured with the camera's believed gains, so that
    the true gains of the amplifiers come out of the flat.
    """
    truth, ratio = response(scenario, detector_id), gain_ratio(scenario, detector_id)
    rng = generator(scenario, "masters", detector_id)
    amp = scenario.load_camera().detector(detector_id).amplifiers[0]
    read_adu = amp.read_noise / amp.gain / np.sqrt(_FRAMES)

    def noise(sigma: float) -> F4:
        return rng.standard_normal(truth.bias.shape, np.float32) * np.float32(sigma)

    return Calibs(
        bias=truth.bias + noise(read_adu),
        dark=truth.dark * ratio + noise(read_adu * amp.gain / 300.0),  # frames of 300 s
        flat=truth.flat * ratio * (1 + noise(1 / np.sqrt(50_000.0 * _FRAMES))),
        defects=truth.defects.copy(),
        reference=pd.DataFrame({"ra": [], "dec": [], "mag": []}, dtype=float),
    )
