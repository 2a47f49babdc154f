"""DiaForcedSource rows from fluxes measured at the places of DiaObjects."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from apflow.errors import DataError
from apflow.model import schema
from apflow.model.ids import source_id


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
