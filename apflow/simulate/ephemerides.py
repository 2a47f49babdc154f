"""What is predicted of the simulated movers: most of them, a little wrong, and some that are too faint to be seen."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model.sky import deproject
from apflow.model.visit import Visit
from apflow.simulate.scenario import SECONDS, Scenario, generator, opened_s, visit_index
from apflow.simulate.sky import change_position, make_sky

I8 = NDArray[np.int64]

#: Part of the movers whose orbits are known.
_KNOWN = 0.7
#: One-sigma error of a prediction on either axis.
_ERROR_ARCSEC = 0.1
#: How far from each predicted mover another one is predicted that nobody can see.
_UNSEEN_ARCSEC = 6.0
#: Added to the id of a mover: that of its unseen companion.
_UNSEEN_ID = 1 << 52
#: arcsec/s to deg/d.
_DEG_D = SECONDS / 3600.0
_MOVING = ("mover", "trail")
#: Predictions reach this far beyond a detector.
_MARGIN_ARCSEC = 10.0


def ss_object_ids(scenario: Scenario, changes: pd.DataFrame) -> pd.arrays.IntegerArray:
    """ssObjectId of the changes that somebody predicts, which is their truth_id; null for the others."""
    moving = changes["kind"].isin(_MOVING).to_numpy()
    ids = changes["truth_id"].to_numpy(np.int64)
    known = np.array([m and _luck(scenario, i)[0] < _KNOWN for m, i in zip(moving, ids, strict=True)], bool)
    return pd.arrays.IntegerArray(np.where(known, ids, 0), ~known)


def _luck(scenario: Scenario, truth_id: int) -> NDArray[np.float64]:
    """Four numbers of an object, the same in every visit: uniform in 0 to 1, a direction (radians), two normal ones."""
    rng = generator(scenario, "ephemeris", truth_id >> 32, truth_id)
    return np.array([rng.uniform(), rng.uniform(0, 2 * np.pi), *rng.normal(size=2)])


def predict(scenario: Scenario, visit: Visit, detector: int) -> pd.DataFrame:
    """Positions when the shutter opens, and rates, as `apflow.catalogs.solar_system.predicted` takes them.

    Their errors are those of an orbit: the same in every visit.

    Returns
    -------
    `pandas.DataFrame`
        ssObjectId, designation, ra, dec, raErr, decErr (degrees), ephRateRa,
        ephRateDec (deg/d), midpointMjdTai, of objects in the detector's field.
    """
    camera = scenario.load_camera()
    region = camera.region(camera.detector(detector), visit.ra_deg, visit.dec_deg, visit.rotation_deg, _MARGIN_ARCSEC)
    changes = make_sky(scenario).changes_in_sight(region)
    changes = changes[~ss_object_ids(scenario, changes).isna()].reset_index(drop=True)
    ids = changes["truth_id"].to_numpy(np.int64)
    luck = np.array([_luck(scenario, i) for i in ids]).reshape(-1, 4)
    begin_s = opened_s(scenario, visit_index(scenario, visit))
    ra, dec = change_position(changes, begin_s)
    error = _ERROR_ARCSEC * luck[:, 2:].T
    away = _UNSEEN_ARCSEC * np.stack([np.sin(luck[:, 1]), np.cos(luck[:, 1])])
    east, north = np.concatenate([error, error + away], axis=1) / 3600.0
    ra, dec = deproject(east, north, np.tile(ra, 2), np.tile(dec, 2))
    table = pd.DataFrame(
        {
            "ssObjectId": np.concatenate([ids, ids + _UNSEEN_ID]),
            "designation": [*(f"S{i:x}" for i in ids), *(f"U{i:x}" for i in ids)],
            "ra": ra,
            "dec": dec,
            "raErr": _ERROR_ARCSEC / 3600.0,
            "decErr": _ERROR_ARCSEC / 3600.0,
            "ephRateRa": np.tile(changes["rate_ra"].to_numpy(float) * _DEG_D, 2),
            "ephRateDec": np.tile(changes["rate_dec"].to_numpy(float) * _DEG_D, 2),
            "midpointMjdTai": scenario.start_mjd_tai + begin_s / SECONDS,
        }
    )
    near = region.contains(table["ra"].to_numpy(), table["dec"].to_numpy())
    return table[near].reset_index(drop=True)
