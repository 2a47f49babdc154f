"""History, association and forced photometry."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pandas as pd

from apflow.catalogs import associate as catalogs
from apflow.catalogs.forced import forced_rows, to_be_forced
from apflow.catalogs.solar_system import predicted
from apflow.config import Config
from apflow.errors import DataError, ServiceError
from apflow.graph import node
from apflow.io.ephemerides import ask_service
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.interface import Wanted
from apflow.model.exposure import Exposure
from apflow.model.ids import mid_night
from apflow.model.products import Associated, Difference, History, Plan, Snaps
from apflow.model.region import Region
from apflow.pixels.forced import forced_flux
from apflow.pixels.inject import touched
from apflow.steps.shed import is_shed

_log = logging.getLogger(__name__)


@node(waits=True)
def read_history(plan: Plan, detector: int, region: Region, sources: pd.DataFrame, config: Config) -> History:
    """What the PPDB holds of the region, once earlier visits on the same sky are settled.

    After measurement, immediately before association (DMTN-092 section 5):
    what is read depends on where the new sources are. With it come the Solar
    System objects predicted there at the time of the image.
    """
    ppdb, visit = open_ppdb(config.ppdb_url), plan.visit.visit
    # Without sources no rows are read whose time would matter: the middle of the night does.
    mjd = float(sources["midpointMjdTai"].iloc[0]) if len(sources) else mid_night(visit)
    moving, summary = _solar_system(plan, detector, region, mjd, config) if len(sources) else (None, {})
    ppdb.awaitTurn(visit, detector, config.timing.order_timeout_s)
    history = load_history(region, sources, mjd, config)
    return dataclasses.replace(history, ss_objects=moving, summary=summary)


def _solar_system(
    plan: Plan, detector: int, region: Region, mjd_tai: float, config: Config
) -> tuple[pd.DataFrame | None, dict[str, float]]:
    """Solar System objects predicted about a detector, by files and by the service; None where there are neither.

    Where both know an object the file is right. A service that is away, slow
    or wrong costs no detector its alerts: nothing is attributed by it.
    """
    path, settings = plan.inputs[detector].ss_objects, config.solar_system
    if path is None and not settings.service:
        return None, {}
    tables, summary = [] if path is None else [predicted(pd.read_parquet(path), mjd_tai)], {}
    if settings.service:
        ra, dec = region.centre
        where = {"ra_deg": ra, "dec_deg": dec, "radius_deg": region.radius_deg}
        try:
            told = ask_service(
                settings.service, visit=plan.visit.visit, mjd_tai=mjd_tai, timeout_s=settings.timeout_s, **where
            )
            tables.append(predicted(told, mjd_tai))
        except (ServiceError, DataError) as error:
            _log.warning("visit %s, detector %s: %s", plan.visit.visit, detector, error)
        summary["is_ss_service_down"] = float(len(tables) == (path is not None))
    if not tables:
        return None, summary
    moving = pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True).drop_duplicates("ssObjectId")
    near = region.grown(config.associate.margin_arcsec).contains(moving["ra"], moving["dec"])
    summary["n_ss_predicted"] = float(near.sum())
    return moving[near].reset_index(drop=True), summary


def load_history(region: Region, sources: pd.DataFrame, mjd_tai: float, config: Config) -> History:
    """Read the PPDB without waiting, by one request."""
    settings = config.associate
    wanted = Wanted(region, sources["ra"].to_numpy(), sources["dec"].to_numpy(), mjd_tai)
    (history,) = open_ppdb(config.ppdb_url).getHistory(
        [wanted],
        margin_arcsec=settings.margin_arcsec,
        radius_arcsec=settings.radius_arcsec,
        days=settings.history_days,
    )
    return history


@node
def associate(sources: pd.DataFrame, history: History, config: Config) -> Associated:
    """DiaSources to Solar System objects, then to DiaObjects by globally optimal matching; the rest make new ones."""
    settings = config.associate
    return catalogs.associate(
        sources,
        history,
        radius_arcsec=settings.radius_arcsec,
        position_floor_arcsec=settings.position_floor_arcsec,
        max_new_objects=settings.max_new_objects,
        history_days=settings.history_days,
        ss_objects=history.ss_objects,
    )


@node
def force_photometry(
    associated: Associated, history: History, difference: Difference, science: Exposure, snaps: Snaps, config: Config
) -> pd.DataFrame:
    """DiaForcedSources: PSF fluxes on the difference and science images at DiaObjects, detected or by rules.

    None of a detector that is so late that its alerts come first.
    """
    info, wcs = science.info, science.wcs
    assert info is not None and wcs is not None
    settings = config.associate
    objects = to_be_forced(
        associated,
        history,
        min_sources=settings.forced_min_sources,
        min_reliability=settings.forced_min_reliability,
    )
    shed = is_shed(snaps, config, "forced photometry")
    if shed:
        objects = objects.iloc[:0]
    x, y = wcs.sky_to_pixel(objects["ra"].to_numpy(float), objects["dec"].to_numpy(float))
    flux, flux_err = forced_flux(difference.exposure, x, y)
    science_flux, science_flux_err = forced_flux(science, x, y)
    # Nothing in a DiaForcedSource says that a fake's light is in it.
    measured = np.isfinite(flux) & np.isfinite(flux_err) & ~touched(science, x, y)
    rows = forced_rows(
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
    rows.attrs["is_shed"] = shed
    return rows
