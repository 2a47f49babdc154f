"""Calibration exposures of one CCD whose gains, noise, dark current and bad pixels are known."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from apflow.model.calibration import Masters
from apflow.model.camera import Amplifier, Detector, load_camera
from apflow.model.exposure import Raw
from apflow.simulate.raws import respond
from tests.pixels.night import info

F8 = NDArray[np.float64]

CCD = load_camera("lsstcam", 512).detector(94)
SHAPE = CCD.shape


def part(amp: Amplifier) -> tuple[slice, slice]:
    """An amplifier's pixels in the assembled CCD."""
    return np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]


@dataclass
class Ccd:
    """The truth; `gains` and `noises` are factors on the camera's."""

    detector: Detector = CCD
    bias: F8 = field(default_factory=lambda: np.zeros(SHAPE))
    dark: F8 = field(default_factory=lambda: np.full(SHAPE, 0.05))
    flat: F8 = field(default_factory=lambda: np.ones(SHAPE))
    gains: F8 = field(default_factory=lambda: np.ones(16))
    noises: F8 = field(default_factory=lambda: np.ones(16))
    defects: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(SHAPE, bool))

    def masters(self) -> Masters:
        """Masters without noise, by the camera's gains."""
        believed = np.ones(self.detector.shape)
        for amp, gain in zip(self.detector.amplifiers, self.gains, strict=False):
            believed[part(amp)] = 1 / gain
        planes = {"bias": self.bias, "dark": self.dark * believed, "flat": self.flat * believed}
        return Masters(**{k: v.astype(np.float32) for k, v in planes.items()}, defects=self.defects.copy())

    def expose(
        self, light: float | F8 = 0.0, time_s: float = 15.0, seed: int = 1, charge: F8 | float = 0.0, dark: bool = True
    ) -> Raw:
        """A raw with so many electrons of light a pixel (before the flat) and so much charge besides."""
        rng = np.random.default_rng(seed)
        electrons = rng.poisson(light * self.flat + (self.dark * time_s if dark else 0.0)) + charge
        segments, signals = {}, []
        for amp, gain in zip(self.detector.amplifiers, self.gains, strict=False):
            flip = np.s_[:: -1 if amp.flip_y else 1, :: -1 if amp.flip_x else 1]
            signals.append((electrons[part(amp)] / (amp.gain * gain) + self.bias[part(amp)])[flip])
        # The converter's end: what is not read leaves no ghost.
        signals = respond(np.minimum(signals, 64_000.0), self.detector)
        for amp, gain, noise, signal in zip(self.detector.amplifiers, self.gains, self.noises, signals, strict=False):
            adu = rng.normal(1000.0 + 20 * amp.x0 / amp.nx, noise * amp.read_noise / (amp.gain * gain), amp.raw_shape)
            adu += np.linspace(0, 3, amp.raw_shape[0])[:, None]
            adu[: amp.ny, amp.prescan : amp.prescan + amp.nx] += signal
            segments[amp.segment] = np.clip(np.rint(adu), 0, 65535).astype(np.uint16)
        return Raw(segments, info(self.detector.id, time_s))


def with_segments(raw: Raw, **changes: NDArray[np.generic]) -> Raw:
    """The same raw with other segments."""
    return dataclasses.replace(raw, segments={**raw.segments, **changes})
