"""Made-up records of a night: what dashboard and report are tried on at full size, without a focal plane's machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from apflow.model.ap_metrics import STEPS
from apflow.model.camera import Camera
from apflow.model.ids import exposure_id, mid_night
from apflow.model.ledger import State
from apflow.model.record import Record

#: Wall seconds of each step on a full CCD, about, in the order of `STEPS`.
_STEP_S = (0.01, 0.1, 0.3, 2.0, 0.4, 0.9, 0.01, 0.3, 0.6, 0.5, 0.05, 0.2, 0.1, 0.1, 0.2)
#: Visits in one filter before it is changed.
_A_FILTER = 12
#: Seconds from the packets to the PPDB, and to the broker.
_STORED_S, _PUBLISHED_S = 1.0, 1.5


@dataclass(frozen=True)
class Troubles:
    """How much of it goes wrong.

    Attributes
    ----------
    missed : `float`
        Part of the detector-visits that are not done.
    retried : `float`
        Part of which a step runs twice.
    slow : `float`
        Part of the visits that take half a minute more.
    bad_detector : `int` or `None`
        One whose PSF is always too wide.
    """

    missed: float = 0.003
    retried: float = 0.01
    slow: float = 0.02
    bad_detector: int | None = None


def made_up_night(
    camera: Camera,
    detectors: Sequence[int],
    n_visits: int,
    day_obs: int,
    seed: int = 1,
    cadence_s: float = 37.0,
    troubles: Troubles | None = None,
) -> Iterator[Record]:
    """Records of visits in turn, in the filters of a camera, in the order in which a driver writes them.

    Everything follows from the seed. What goes wrong adds up: each detector-visit comes to one end.
    """
    troubles = troubles or Troubles()
    rng = np.random.default_rng(seed)
    begin_mjd = mid_night(exposure_id(day_obs, 0)) - 0.15
    begin = (begin_mjd - 40587.0) * 86400.0 - 37.0  # TAI is 37 s ahead of UTC
    yield Record(begin - 600, "night", outcome="start")
    for i in range(n_visits):
        visit, readout = exposure_id(day_obs, i + 1), begin + i * cadence_s
        kind = camera.filters[(i // _A_FILTER) % len(camera.filters)]
        numbers = {"n_detectors": float(len(detectors)), "ra_deg": (150 + 0.1 * i) % 360, "dec_deg": -30.0}
        yield Record(
            readout - 40, "visit", visit, numbers=numbers, instrument=camera.instrument, group=f"g{i}", band=kind.band
        )
        seeing = 0.75 + 0.15 * np.sin(i / 40) + 0.02 * rng.standard_normal()
        clouds = 0.15 * max(0.0, np.sin(i / 90)) ** 3
        late = 30.0 if rng.random() < troubles.slow else 0.0
        for d in detectors:
            broken = rng.random() < troubles.missed
            again = int(rng.integers(3, 10)) if rng.random() < troubles.retried else -1
            fwhm = float(seeing * (1 + 0.02 * rng.standard_normal())) + (1.4 if d == troubles.bad_detector else 0.0)
            yield from _detector(
                rng, visit, d, readout, late, again, broken, _metrics(rng, kind, fwhm, clouds, begin_mjd, i * cadence_s)
            )
        yield Record(readout + 20 + late, "visit_ended", visit)
    yield Record(begin + n_visits * cadence_s, "night", outcome="stop")


def _metrics(
    rng: np.random.Generator, kind: object, fwhm: float, clouds: float, begin_mjd: float, seconds: float
) -> dict[str, float]:
    zero_point, sky, nominal, depth = (float(getattr(kind, n)) for n in ("zero_point", "sky", "fwhm", "depth"))
    noise = rng.standard_normal(4)
    lost = clouds + 2.5 * np.log10(fwhm / nominal)
    injected = float(rng.poisson(20))
    return {
        "mjd_mid_tai": begin_mjd + seconds / 86400,
        "psf_fwhm_arcsec": fwhm,
        "psf_ellipticity_e1": float(0.02 * noise[0]),
        "zero_point_mag": float(zero_point - clouds + 0.01 * noise[1]),
        "sky_mag_arcsec2": float(sky - 0.3 + 0.05 * noise[2]),
        "depth_mag": float(depth - lost - 0.15 + 0.03 * noise[3]),
        "effective_time_ratio": float(10 ** (-0.8 * (lost + 0.15))),
        "wcs_scatter_arcsec": float(0.008 + 0.001 * abs(noise[0])),
        "template_coverage": 1.0,
        "residual_power": float(3e-4 * abs(noise[1])),
        "n_injected": injected,
        "n_injected_found": float(rng.binomial(int(injected), 0.8)),
        "n_injected_snr10": injected // 2,
        "n_injected_found_snr10": float(rng.binomial(int(injected // 2), 0.99)),
    }


def _detector(
    rng: np.random.Generator,
    visit: int,
    detector: int,
    readout: float,
    late: float,
    again: int,
    broken: bool,
    metrics: dict[str, float],
) -> Iterator[Record]:
    """The steps of one detector-visit and its end; the images come with the end of readout."""
    worker = f"worker-{detector}"
    clock = readout - 2.41
    last = 8 if broken else len(STEPS) - 1
    for i, (step, usual) in enumerate(zip(STEPS, _STEP_S, strict=True)):
        wall = float(usual * rng.uniform(0.8, 1.3)) + (late if step == "calibrate" else 0.0)
        if i == 3:
            wall = max(0.0, readout - clock)
        for attempt in (1, 2) if i == again and i != last else (1,):
            failed = (broken and i == last) or (i == again and i != last and attempt == 1)
            start, clock = clock, clock + wall
            yield Record(
                clock, "step", visit, detector, step, start, clock, 0.9 * wall, worker,
                "failed" if failed else "done", attempt=attempt,
            )  # fmt: skip
        if i == last:
            break
    if broken:
        cause = "no kernel fits: 3 stamps of 9"
        known = {"arrived_unix": readout, "mjd_mid_tai": metrics["mjd_mid_tai"]}
        yield Record(clock, "ended", visit, detector, STEPS[last], outcome=State.FAILED, cause=cause, numbers=known)
        return
    n = float(rng.poisson(40))
    times = {"arrived_unix": readout, "stored_unix": clock + _STORED_S, "published_unix": clock + _PUBLISHED_S}
    numbers = metrics | times | {"n_sources": n, "n_alerts": n}
    yield Record(clock + _PUBLISHED_S, "ended", visit, detector, worker=worker, outcome=State.DONE, numbers=numbers)
