"""DiaSources, DiaObjects and DRP Objects at offsets from a point, for the tests of catalogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from apflow.model import schema
from apflow.model.products import History, no_drp_objects
from apflow.model.sky import deproject

CENTRE = (10.0, -30.0)
ARCSEC = 1.0 / 3600.0
NOTHING = History(schema.empty("DiaObject"), schema.empty("DiaSource"), schema.empty("DiaForcedSource"))


def place(x: ArrayLike, y: ArrayLike, centre: tuple[float, float] = CENTRE) -> dict[str, np.ndarray]:
    """Positions at tangent-plane offsets, arcsec."""
    ra, dec = deproject(np.asarray(x, float) * ARCSEC, np.asarray(y, float) * ARCSEC, *centre)
    return {"ra": ra, "dec": dec}


def errors(east: ArrayLike, north: ArrayLike, correlation: ArrayLike = 0.0) -> dict[str, np.ndarray]:
    """Position errors from arcsec."""
    e, n = np.asarray(east) * ARCSEC, np.asarray(north) * ARCSEC
    return {"raErr": e, "decErr": n, "ra_dec_Cov": np.asarray(correlation) * e * n}


def table(name: str, x: ArrayLike, y: ArrayLike, centre: tuple[float, float] = CENTRE, **columns: Any) -> pd.DataFrame:
    """Rows of a table of apdb.yaml; errors of 0.05 arcsec if not given."""
    n = len(np.asarray(x))
    common: dict[str, Any] = place(x, y, centre) | errors(0.05, 0.05)
    if name == "DiaSource":
        common |= {"diaSourceId": 1000 + np.arange(n), "visit": 2025042000123, "detector": 1, "x": 0.0, "y": 0.0}
        common |= {"midpointMjdTai": 60000.5, "band": "r"}
    else:
        common |= {"diaObjectId": 1 + np.arange(n), "validityStartMjdTai": 59990.0 + np.arange(n), "nDiaSources": 3}
    return schema.conform(pd.DataFrame(common | columns), name)


def history(
    objects: pd.DataFrame, sources: pd.DataFrame | None = None, forced: pd.DataFrame | None = None, drp: Any = None
) -> History:
    """A history of some objects."""
    return History(
        objects,
        schema.empty("DiaSource") if sources is None else sources,
        schema.empty("DiaForcedSource") if forced is None else forced,
        no_drp_objects() if drp is None else drp,
    )
