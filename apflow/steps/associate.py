"""History, association and forced photometry."""

from __future__ import annotations

import numpy as np
import pandas as pd

from apflow.catalogs import associate as catalogs
from apflow.catalogs.forced import forced_rows
from apflow.config import Config
from apflow.graph import node
from apflow.io.ppdb import open_ppdb
from apflow.model.exposure import Exposure
from apflow.model.products import Associated, Difference, History
from apflow.model.region import Region
from apflow.model.visit import Visit
from apflow.pixels.forced import forced_flux


@node(waits=True)
def read_history(visit: Visit, detector: int, region: Region, sources: pd.DataFrame, config: Config) -> History:
    """What the PPDB holds of the region, once earlier visits on the same sky are settled.

    ``sources`` is an input to say when: after measurement, immediately before
    association (DMTN-092 section 5).
    """
    ppdb = open_ppdb(config.ppdb_url)
    ppdb.awaitTurn(visit.visit, detector, config.timing.order_timeout_s)
    return load_history(region, sources, config)


def load_history(region: Region, sources: pd.DataFrame, config: Config) -> History:
    """Read the PPDB without waiting."""
    settings, ppdb = config.associate, open_ppdb(config.ppdb_url)
    objects = ppdb.getDiaObjects(region, settings.margin_arcsec)
    # Without sources there is nothing to associate and no alert to tell a history in: the objects alone are forced.
    known = [int(i) for i in objects["diaObjectId"]] if len(sources) else []
    mjd = float(sources["midpointMjdTai"].iloc[0]) if len(sources) else 0.0
    return History(
        objects=objects,
        sources=ppdb.getDiaSources(region, known, mjd, settings.history_days),
        forced=ppdb.getDiaForcedSources(region, known, mjd, settings.history_days),
    )


@node
def associate(sources: pd.DataFrame, history: History, region: Region, config: Config) -> Associated:
    """DiaSources to DiaObjects by globally optimal matching; the rest make new DiaObjects."""
    settings = config.associate
    return catalogs.associate(
        sources,
        history,
        radius_arcsec=settings.radius_arcsec,
        position_floor_arcsec=settings.position_floor_arcsec,
        max_new_objects=settings.max_new_objects,
        region=region,
    )


@node
def force_photometry(
    associated: Associated, history: History, difference: Difference, science: Exposure, config: Config
) -> pd.DataFrame:
    """DiaForcedSources: PSF fluxes on the difference and science images at every DiaObject on the detector."""
    info, wcs = science.info, science.wcs
    assert info is not None and wcs is not None
    columns = ["diaObjectId", "ra", "dec"]
    updated = history.objects["diaObjectId"].isin(associated.objects["diaObjectId"])
    objects = pd.concat([history.objects.loc[~updated, columns], associated.objects[columns]], ignore_index=True)
    x, y = wcs.sky_to_pixel(objects["ra"].to_numpy(float), objects["dec"].to_numpy(float))
    flux, flux_err = forced_flux(difference.exposure, x, y)
    science_flux, science_flux_err = forced_flux(science, x, y)
    measured = np.isfinite(flux) & np.isfinite(flux_err)
    return forced_rows(
        objects[measured],
        psf_flux=flux[measured],
        psf_flux_err=flux_err[measured],
        science_flux=science_flux[measured],
        science_flux_err=science_flux_err[measured],
        visit=info.exposure,
        detector=info.detector,
        band=info.band,
        midpoint_mjd_tai=info.mjd_mid_tai,
    )
