"""Alerts of every kind that apflow sends."""

from __future__ import annotations

import numpy as np
import pandas as pd

from apflow.io.alerts.cutouts import cutout_fits
from apflow.io.alerts.packets import Cutouts, build_packets
from apflow.model.products import Packet
from apflow.model.wcs import Wcs
from tests.io.test_alerts_packets import NEW_IDS, NOW, forced, history, objects, orbits, solar, sources

_SCALE = 0.2 / 3600


def cutouts(rows: pd.DataFrame, size: int = 30) -> dict[int, Cutouts]:
    """Difference, science and template of each source, in the middle of a noisy stamp."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:size, :size] - size // 2
    star = np.exp(-(x**2 + y**2) / 8.0).astype(np.float32)
    variance, mask = np.full((size, size), 100.0, np.float32), np.zeros((size, size), np.int32)
    psf = (star / star.sum())[: size - 1, : size - 1]
    made = {}
    for key, ra, dec in zip(rows["diaSourceId"], rows["ra"], rows["dec"], strict=True):
        wcs = Wcs((float(ra), float(dec)), (size / 2, size / 2), np.diag([-_SCALE, _SCALE]))
        flux = (500.0, 800.0, 300.0)
        images = [f * star + rng.normal(0, 10, star.shape).astype(np.float32) for f in flux]
        d, s, t = (cutout_fits((image, variance, mask, psf, wcs)) for image in images)
        made[int(key)] = (d, s, t)
    return made


def example_alerts() -> tuple[Packet, ...]:
    """A known object with its history, a Solar System object with its orbit, a new one without stamps; NaN for null."""
    rows = sources(NEW_IDS, [7, None, 9], NOW, ssObjectId=[None, 5, None])
    stamps = cutouts(rows[:2])
    tables = rows, objects([7, 9]), history(), forced([31], [7], [NOW]), stamps
    sky = {"ss_sources": solar([NEW_IDS[1]], [5], ["2025 AB"]), "orbits": orbits(["2025 AB"])}
    first = build_packets(*tables, processed_mjd_tai=NOW + 0.001, **sky)
    again = build_packets(*tables, processed_mjd_tai=NOW + 0.001, nan_for_null=True, **sky)
    return first + again
