"""Which DiaObjects are forced in a visit, and the DiaForcedSource rows of their fluxes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from apflow.errors import DataError
from apflow.model import schema
from apflow.model.ids import source_id
from apflow.model.products import Associated, History


def to_be_forced(associated: Associated, history: History, *, min_sources: int, min_reliability: float) -> pd.DataFrame:
    """DiaObjects whose flux is measured in a visit, wherever it detected them or not.

    All that the visit detected, since their alerts tell the forced history up
    to now; and of the others those with at least `min_sources` DiaSources of
    which the best is not known to be less reliable than `min_reliability`. A
    DiaObject carries no reliability, and the history has sources only of those
    near a new one: of all others none is known, and the rule lets them pass.

    Returns
    -------
    `pandas.DataFrame`
        diaObjectId, ra, dec; the newest version's position.
    """
    columns = ["diaObjectId", "ra", "dec"]
    detected = schema.bare(associated.objects[columns])
    known = schema.bare(history.objects[[*columns, "nDiaSources"]])
    past = schema.bare(history.sources[["diaObjectId", "reliability"]]).dropna()
    best = past.groupby("diaObjectId")["reliability"].max()
    doubtful = best.index[best < min_reliability]
    left_out = known["diaObjectId"].isin(detected["diaObjectId"]) | known["diaObjectId"].isin(doubtful)
    rest = known.loc[~left_out & (known["nDiaSources"] >= min_sources), columns]
    return pd.concat([f for f in (rest, detected) if len(f)] or [detected], ignore_index=True)


def forced_rows(
    objects: pd.DataFrame,
    *,
    psf_flux: ArrayLike,
    psf_flux_err: ArrayLike,
    science_flux: ArrayLike,
    science_flux_err: ArrayLike,
    visit: int,
    detector: int,
    band: str,
    midpoint_mjd_tai: float,
) -> pd.DataFrame:
    """A DiaForcedSource for each object.

    Parameters
    ----------
    objects : `pandas.DataFrame`
        diaObjectId, ra, dec of the places that were measured.
    psf_flux, psf_flux_err, science_flux, science_flux_err : array
        PSF flux on the difference and on the science image, nJy, in the order
        of `objects`; NaN where there is none.

    Returns
    -------
    `pandas.DataFrame`
        Rows ordered by diaObjectId, with ids counted in that order.

    Raises
    ------
    DataError
        An array is not as long as `objects`, or an object is there twice.
    """
    columns = {
        "psfFlux": psf_flux,
        "psfFluxErr": psf_flux_err,
        "scienceFlux": science_flux,
        "scienceFluxErr": science_flux_err,
    }
    for name, values in columns.items():
        if np.shape(values) != (len(objects),):
            raise DataError(f"DiaForcedSource.{name} has shape {np.shape(values)}; accepted: ({len(objects)},)")
    if not objects["diaObjectId"].is_unique:
        twice = objects["diaObjectId"][objects["diaObjectId"].duplicated()].iloc[0]
        raise DataError(f"DiaForcedSource: object {twice} is to be forced twice")
    ids = objects["diaObjectId"].to_numpy(np.int64)
    order = np.argsort(ids)
    first = source_id(visit, detector, 1)
    frame = pd.DataFrame({n: np.asarray(v, np.float64)[order] for n, v in columns.items()})
    frame["diaForcedSourceId"] = first + np.arange(len(ids))
    frame["diaObjectId"] = ids[order]
    frame["ra"], frame["dec"] = objects["ra"].to_numpy()[order], objects["dec"].to_numpy()[order]
    frame["visit"], frame["detector"], frame["band"] = visit, detector, band
    frame["midpointMjdTai"] = midpoint_mjd_tai
    return schema.conform(frame, "DiaForcedSource")
