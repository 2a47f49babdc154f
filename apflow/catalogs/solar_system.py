"""Predicted positions of Solar System objects, and what comparing a DiaSource with one gives (SSSource).

Nothing here computes an orbit: positions come from whoever does, at the time
of the visit or as Chebyshev series about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.polynomial.chebyshev import chebder, chebval
from numpy.typing import NDArray

from apflow.catalogs.positions import Places, moved, neighbours, offsets_arcsec, unit_vectors
from apflow.errors import DataError
from apflow.model import schema

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

_ARCSEC = 3600.0
_KM_S = 149597870.7 / 86400.0  # of 1 AU a day
#: What `associate` has to know of a prediction.
POSITION = ("ssObjectId", "ra", "dec", "raErr", "decErr")
_OTHER_NAMES = {"MPCORB_unpacked_primary_provisional_designation": "designation", "trailedSourceMagTrue": "ephVmag"}
_RATES = ("ephRateRa", "ephRateDec")
_STATES = tuple(f"{of}_{v}{axis}" for of in ("helio", "topo") for v in ("", "v") for axis in "xyz")
_OBLIQUITY = np.radians(84381.448 / _ARCSEC)
#: From ICRS: the ecliptic of J2000 (IAU 1976), and the Galaxy (Hipparcos and Tycho Catalogues, vol. 1, eq. 1.5.11).
_ECLIPTIC = np.array(
    [
        [1.0, 0.0, 0.0],
        [0.0, np.cos(_OBLIQUITY), np.sin(_OBLIQUITY)],
        [0.0, -np.sin(_OBLIQUITY), np.cos(_OBLIQUITY)],
    ]
)
_GALACTIC = np.array(
    [
        [-0.0548755604, -0.8734370902, -0.4838350155],
        [+0.4941094279, -0.4448296300, +0.7469822445],
        [-0.8676661490, -0.1980763734, +0.4559837762],
    ]
)


def predicted(table: pd.DataFrame, mjd_tai: float) -> pd.DataFrame:
    """Where Solar System objects are at a time.

    Parameters
    ----------
    table : `pandas.DataFrame`
        One row an object: ssObjectId; ra and dec (degrees, ICRS); raErr and
        decErr (degrees) or, as mpSkyEphemerisQuery of Rubin's ap_association
        has it, ``Err(arcsec)``. Optional: any column of SSSource, in its units;
        with ephRateRa, ephRateDec (deg/d) and midpointMjdTai, the time of the
        position, this is carried on to `mjd_tai`. The series of
        mpSkyEphemerisQuery, ``obj_x_poly`` ... ``obs_z_poly`` (Chebyshev
        coefficients, AU, heliocentric equatorial, in days since ``tmin``) take
        the place of ra and dec where they are there.
    mjd_tai : `float`
        Mid-exposure.

    Returns
    -------
    `pandas.DataFrame`
        `POSITION` at that time and what is known of SSSource's columns. Series
        that do not reach the time are left out.

    Raises
    ------
    DataError
        A column is missing, an id or a position is unknown, or an object comes twice.
    """
    table = table.rename(columns={old: new for old, new in _OTHER_NAMES.items() if new not in table.columns})
    if "raErr" not in table.columns and "Err(arcsec)" in table.columns:
        error = table["Err(arcsec)"] / _ARCSEC
        table = table.assign(raErr=error, decErr=error)
    check_columns(table)
    table = _evaluated(table, mjd_tai) if "obj_x_poly" in table.columns else _carried_on(table, mjd_tai)
    known = [c.name for c in schema.table("SSSource").columns if c.name in table.columns and c.name not in POSITION]
    out = table[[*POSITION, *(c for c in known if c != "diaSourceId")]].reset_index(drop=True)
    for name in ("ssObjectId", "ra", "dec"):
        if out[name].isna().any():
            raise DataError(f"SSObject positions: {name} is unknown in row {int(np.argmax(out[name].isna()))}")
    if not out["ssObjectId"].is_unique:
        twice = out["ssObjectId"][out["ssObjectId"].duplicated()].iloc[0]
        raise DataError(f"SSObject positions: ssObjectId {twice} comes twice; accepted: one row for each")
    return out


def check_columns(table: pd.DataFrame) -> None:
    """Refuse predictions without the columns of `POSITION`."""
    for name in POSITION:
        if name not in table.columns:
            raise DataError(f"SSObject positions lack column {name!r}; needed: {', '.join(POSITION)}")


def _carried_on(table: pd.DataFrame, mjd_tai: float) -> pd.DataFrame:
    """Positions moved on along their rates, where these and the time are known."""
    columns = ("ra", "dec", *_RATES, "midpointMjdTai")
    if not set(columns) <= set(table.columns):
        return table
    ra, dec, east, north, when = (table[c].to_numpy(np.float64, na_value=np.nan) for c in columns)
    days = mjd_tai - when
    ra, dec = moved(ra, dec, np.nan_to_num(east * days) * _ARCSEC, np.nan_to_num(north * days) * _ARCSEC)
    return table.assign(ra=ra, dec=dec)


def _evaluated(table: pd.DataFrame, mjd_tai: float) -> pd.DataFrame:
    """Positions, velocities and rates of series."""
    table = table[(table["tmin"] <= mjd_tai) & (mjd_tai <= table["tmax"])]
    days = mjd_tai - table["tmin"].to_numpy(np.float64)
    (place, speed), (from_place, from_speed) = (_motion(table, of, days) for of in ("obj", "obs"))
    topo, rate = place - from_place, speed - from_speed
    distance = np.linalg.norm(topo, axis=1)
    ra, dec = np.arctan2(topo[:, 1], topo[:, 0]), np.arctan2(topo[:, 2], np.hypot(topo[:, 0], topo[:, 1]))
    east = -np.sin(ra) * rate[:, 0] + np.cos(ra) * rate[:, 1]
    radial = np.cos(ra) * rate[:, 0] + np.sin(ra) * rate[:, 1]
    north = -np.sin(dec) * radial + np.cos(dec) * rate[:, 2]
    states = np.concatenate([place, speed * _KM_S, topo, rate * _KM_S], axis=1)
    return table.assign(
        ra=np.degrees(ra) % 360.0,
        dec=np.degrees(dec),
        ephRateRa=np.degrees(east / distance),
        ephRateDec=np.degrees(north / distance),
        **dict(zip(_STATES, states.T, strict=True)),
    )


def _motion(table: pd.DataFrame, of: str, days: F8) -> tuple[F8, F8]:
    """Position (AU) and velocity (AU/d) that series give, each of shape (n, 3)."""
    if not len(table):
        return np.empty((0, 3)), np.empty((0, 3))
    try:
        series = np.stack([np.stack(table[f"{of}_{axis}_poly"].to_list(), -1) for axis in "xyz"], axis=1)
    except ValueError as error:
        raise DataError(f"SSObject positions: series {of}_x_poly to {of}_z_poly differ in length") from error
    place, speed = (np.asarray(chebval(days, c, tensor=False).T, np.float64) for c in (series, chebder(series)))
    return place, speed


def ss_sources(sources: pd.DataFrame, predictions: pd.DataFrame, radius_arcsec: float) -> pd.DataFrame:
    """Rows of SSSource for the DiaSources that have an ssObjectId.

    Offsets are observed minus predicted; along track is forwards, cross track
    is to the left of it where North is up and East to the right. What neither
    the prediction gives nor follows from what it gives is null.

    Parameters
    ----------
    sources : `pandas.DataFrame`
        DiaSources of a detector with ssObjectId set.
    predictions : `pandas.DataFrame`
        As `predicted` gives them, with a row for each ssObjectId.
    radius_arcsec : `float`
        That of the association: how far sources are counted for diaDistanceRank.
    """
    mine = sources["ssObjectId"].notna().to_numpy()
    if not mine.any():
        return schema.empty("SSSource")
    places = schema.bare(sources[["diaSourceId", "ssObjectId", "ra", "dec"]])
    attributed = places[mine]
    rows = predictions.set_index("ssObjectId").loc[attributed["ssObjectId"].to_numpy(np.int64)].reset_index()
    observed, foreseen = ([t[c].to_numpy(np.float64) for c in ("ra", "dec")] for t in (attributed, rows))
    given = [c for c in rows.columns if c not in ("designation", *POSITION)]
    values = {c: rows[c].to_numpy(np.float64, na_value=np.nan) for c in given}
    values |= _offsets(observed, foreseen, values)
    values |= {name: v for name, v in _geometry(values).items() if name not in given}
    values["eclLambda"], values["eclBeta"] = _turned(observed, _ECLIPTIC)
    values["galLon"], values["galLat"] = _turned(observed, _GALACTIC)
    values["diaDistanceRank"] = _ranks(places, foreseen, values["ephOffset"], radius_arcsec)
    named = {c: rows[c] for c in ("ssObjectId", "designation") if c in rows.columns}
    ids = attributed["diaSourceId"].to_numpy()
    return schema.conform(pd.DataFrame({"diaSourceId": ids, **named, **values}), "SSSource")


def _offsets(observed: Sequence[F8], foreseen: Sequence[F8], given: Mapping[str, F8]) -> dict[str, F8]:
    """Columns ``eph...`` of SSSource."""
    east, north = offsets_arcsec(*observed, *foreseen)
    out = {
        **{"ephRa": foreseen[0], "ephDec": foreseen[1]},
        **{"ephOffset": np.hypot(east, north), "ephOffsetRa": east, "ephOffsetDec": north},
    }
    if set(_RATES) <= given.keys():
        total = np.hypot(*(given[c] for c in _RATES))
        ahead = [np.divide(given[c], total, where=total > 0, out=np.full(len(total), np.nan)) for c in _RATES]
        out["ephRate"] = total
        out["ephOffsetAlongTrack"] = east * ahead[0] + north * ahead[1]
        out["ephOffsetCrossTrack"] = north * ahead[0] - east * ahead[1]
    return out


def _geometry(given: Mapping[str, F8]) -> dict[str, F8]:
    """Distances, velocities and angles that follow from the positions and velocities that are given."""
    out: dict[str, F8] = {}
    vectors = {
        name: np.stack([given[f"{name}{axis}"] for axis in "xyz"], -1)
        for name in ("helio_", "topo_", "helio_v", "topo_v")
        if all(f"{name}{axis}" in given for axis in "xyz")
    }
    for of in ("helio", "topo"):
        place, speed = vectors.get(f"{of}_"), vectors.get(f"{of}_v")
        if place is not None:
            out[f"{of}Range"] = np.linalg.norm(place, axis=1)
        if speed is not None:
            out[f"{of}_vtot"] = np.linalg.norm(speed, axis=1)
        if place is not None and speed is not None:
            out[f"{of}RangeRate"] = np.sum(place * speed, axis=1) / out[f"{of}Range"]
    if {"helio_", "topo_"} <= vectors.keys():
        out["phaseAngle"] = _angle(vectors["helio_"], vectors["topo_"])
        out["elongation"] = _angle(vectors["topo_"], vectors["topo_"] - vectors["helio_"])
    return out


def _angle(a: F8, b: F8) -> F8:
    """Angle between vectors, row by row, degrees."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), np.sum(a * b, axis=1)))


def _turned(position: Sequence[F8], matrix: F8) -> tuple[F8, F8]:
    """Longitude and latitude, degrees, in the frame that a matrix turns to."""
    x, y, z = (unit_vectors(*position) @ matrix.T).T
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y)))


def _ranks(sources: pd.DataFrame, foreseen: Sequence[F8], offset: F8, radius_arcsec: float) -> I8:
    """How many sources lie nearer to each prediction than the one it belongs to, and one more."""
    positions = foreseen, [sources[c].to_numpy(np.float64) for c in ("ra", "dec")]
    predictions, places = (Places(ra, dec, *(np.zeros(len(ra)),) * 3) for ra, dec in positions)
    i, j = neighbours(predictions, places, radius_arcsec)
    away = np.hypot(*offsets_arcsec(places.ra[j], places.dec[j], predictions.ra[i], predictions.dec[i]))
    return 1 + np.bincount(i[away < offset[i]], minlength=len(offset))
