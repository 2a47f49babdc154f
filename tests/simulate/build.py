"""Builders that the simulator's tests share."""

import numpy as np

from apflow.model.exposure import Raw
from apflow.simulate.calibs import render_calibs
from apflow.simulate.scenario import Scenario, conditions, visits


def reduce_raw(scenario: Scenario, raw: Raw, detector_id: int) -> np.ndarray:
    """Electrons of a raw image after the plainest signature removal, on the CCD's grid."""
    detector = scenario.load_camera().detector(detector_id)
    calibs = render_calibs(scenario, detector_id)
    image, read = np.empty(detector.shape, np.float32), []
    for amp in detector.amplifiers:
        segment = raw.segments[amp.segment].astype(np.float32)
        overscan = segment[: amp.ny, amp.prescan + amp.nx :].mean(1)
        read.append(segment[: amp.ny, amp.prescan : amp.prescan + amp.nx] - overscan[:, None])
    if detector.crosstalk is not None:
        read = np.tensordot(np.linalg.inv(np.eye(len(read)) + detector.crosstalk).astype(np.float32), read, 1)
    for amp, data in zip(detector.amplifiers, read, strict=True):
        data = data[:: -1 if amp.flip_y else 1, :: -1 if amp.flip_x else 1]
        part = np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]
        image[part] = (data - calibs.bias[part]) * amp.gain
    return (image - calibs.dark * np.float32(raw.info.exposure_time_s)) / calibs.flat


def njy_of_electron(scenario: Scenario, index: int = 0) -> float:
    """nJy of one electron in the first snap of a visit."""
    state = conditions(scenario, visits(scenario)[index])
    return 1.0 / (scenario.electrons_per_njy * state.transparency * state.shutter_s[0])


def psf_flux(image: np.ndarray, psf: np.ndarray, x: float, y: float) -> float:
    """Unweighted least-squares flux of a PSF stamp that was made for (x, y)."""
    half = psf.shape[0] // 2
    row, column = round(y), round(x)
    stamp = image[row - half : row + half + 1, column - half : column + half + 1].astype(float)
    return float((stamp * psf).sum() / (psf**2).sum())
