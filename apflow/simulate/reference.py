"""The reference catalogue: the stars of the sky as a survey before ours measured them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from apflow.model.region import Region
from apflow.simulate.scenario import NJY_MAG, Scenario, generator
from apflow.simulate.sky import make_sky

_POSITION_ARCSEC = 0.004
_MAG = 0.004
#: Ids of stars and variables of one patch are below this, modulo 2**16.
_IN_PATCH = 1 << 11


def reference_catalog(scenario: Scenario, region: Region) -> pd.DataFrame:
    """Stars in a region: ra, dec (degrees ICRS), mag (AB, in the scenario's band).

    Variable stars are in it with their mean magnitude, as in real catalogues.
    Errors are 4 mas an axis and 4 mmag, and belong to the star: any region
    that holds it gives the same numbers.
    """
    sky = make_sky(scenario)
    variables = sky.changes(region)
    variables = variables[variables["kind"] == "variable"].assign(flux=lambda v: v["template_flux"])
    columns = ["truth_id", "ra", "dec", "flux"]
    stars = pd.concat([sky.stars(region)[columns], variables[columns]], ignore_index=True)
    errors = _errors(scenario, stars["truth_id"].to_numpy())
    dec = stars["dec"].to_numpy()
    return pd.DataFrame(
        {
            "ra": (stars["ra"] + _POSITION_ARCSEC / 3600.0 * errors[0] / np.cos(np.radians(dec))) % 360.0,
            "dec": dec + _POSITION_ARCSEC / 3600.0 * errors[1],
            "mag": NJY_MAG - 2.5 * np.log10(stars["flux"]) + _MAG * errors[2],
        }
    )


def _errors(scenario: Scenario, ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int, int]]:
    """Three standard normal errors (3, n) of each star, from its id: one generator a patch of sky."""
    out = np.empty((3, len(ids)))
    for patch in np.unique(ids >> 16):
        mine = ids >> 16 == patch
        table = generator(scenario, "reference", int(patch)).standard_normal((3, _IN_PATCH))
        out[:, mine] = table[:, ids[mine] % _IN_PATCH]
    return out
