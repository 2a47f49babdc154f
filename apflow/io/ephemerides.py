"""Predicted positions of Solar System objects, from files and from a service.

A table has one row an object (of a visit, in a file of several): ``ssObjectId``
or ``designation``; ``ra`` and ``dec`` (degrees, ICRS) at ``midpointMjdTai`` (MJD
TAI); ``raErr`` and ``decErr`` (degrees) or ``Err(arcsec)``; where they are known
``ephRateRa`` and ``ephRateDec`` (deg/d on the sky: with the cosine of the
declination), ``ephVmag``, and any other column of SSSource in its units. An
object without ssObjectId has one that follows from its designation.

The names of IMCCE's SkyBoT (Berthier et al. 2006) are understood as well.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import requests
from astropy.coordinates import Angle
from astropy.table import Table
from astropy.time import Time
from astropy.units import UnitsWarning

from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.tables import read_table

_FORMATS = {".parquet": "", ".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".xml": "votable", ".vot": "votable"}
#: Columns by SkyBoT's names, in small letters and without units.
_SKYBOT = {"name": "designation", "_raj2000": "ra", "_dej2000": "dec", "_decj2000": "dec", "de": "dec"} | {
    **{"mv": "ephVmag", "vmag": "ephVmag", "err": "Err(arcsec)", "ra": "ra", "dec": "dec"},
    **{
        "dra": "rate_ra",
        "dracosdec": "rate_ra",
        "ra*cosdec_rate": "rate_ra",
        "ddec": "rate_dec",
        "dec_rate": "rate_dec",
    },
}
#: From SkyBoT's arcsec/h to deg/d.
_DEG_D = 24.0 / 3600.0
_RATES = ("ephRateRa", "ephRateDec")
_NUMBERS = ("ra", "dec", "raErr", "decErr", "Err(arcsec)", *_RATES, "midpointMjdTai", "ephVmag")
#: Answers that are longer than this are none: a field has some thousands of objects.
_MOST_BYTES = 100_000_000


def read_ephemerides(path: str | Path) -> pd.DataFrame:
    """Read a file of predictions: Parquet, ECSV, CSV or VOTable, by its ending.

    Raises
    ------
    BadRequest
        The ending is unknown, or the file is missing.
    DataError
        It cannot be read, or a column is missing or wrong; the message names it.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise BadRequest(f"{path} is not accepted: a file that ends in {', '.join(_FORMATS)}")
    if not path.is_file():
        raise BadRequest(f"there is no file {path}")
    if path.suffix == ".parquet":
        return predictions(read_table(path), str(path))
    return predictions(_astropy_table(path.read_bytes(), _FORMATS[path.suffix], str(path)), str(path))


def ask_service(
    url: str, *, visit: int, mjd_tai: float, ra_deg: float, dec_deg: float, radius_deg: float, timeout_s: float
) -> pd.DataFrame:
    """Ask a service what is in a circle at a time.

    Parameters
    ----------
    url : `str`
        What stands in braces is replaced: ``{visit}``, ``{mjd_tai}``,
        ``{jd_utc}``, ``{ra_deg}``, ``{dec_deg}``, ``{radius_deg}``. An address
        without any gets ``?visit=&mjd_tai=&ra=&dec=&radius=`` (degrees) added.
    timeout_s : `float`
        For the connection, and for each part of the answer.

    Returns
    -------
    `pandas.DataFrame`
        As `predictions` gives it. Positions without a time are of the time asked for.

    Raises
    ------
    ServiceError
        No answer in time, an answer that is not 200, or one that holds no
        predictions: JSON (a list of objects), ECSV or VOTable.
    """
    values = {"visit": visit, "mjd_tai": f"{mjd_tai:.8f}", "ra_deg": f"{ra_deg:.7f}", "dec_deg": f"{dec_deg:.7f}"}
    values |= {"radius_deg": f"{radius_deg:.7f}", "jd_utc": f"{Time(mjd_tai, format='mjd', scale='tai').utc.jd:.8f}"}
    if "{" in url:
        asked = url.format(**values)
    else:
        short = {name.removesuffix("_deg"): value for name, value in values.items() if name != "jd_utc"}
        asked = f"{url}{'&' if '?' in url else '?'}{urlencode(short)}"
    try:
        answer = requests.get(asked, timeout=timeout_s)
    except requests.RequestException as error:
        raise ServiceError(f"ephemerides of {_host(url)}: {type(error).__name__}") from error
    if answer.status_code != requests.codes.ok or len(answer.content) > _MOST_BYTES:
        raise ServiceError(
            f"ephemerides of {_host(url)}: status {answer.status_code}, {len(answer.content)} bytes; "
            f"accepted: 200, up to {_MOST_BYTES}"
        )
    try:
        table = _parsed(answer.content, _host(url))
        if len(table) and "midpointMjdTai" not in table:
            table = table.assign(midpointMjdTai=mjd_tai)
        return predictions(table, _host(url))
    except DataError as error:
        raise ServiceError(f"ephemerides of {_host(url)}: {error}") from error


def _host(url: str) -> str:
    """The address without its query, which may hold a key."""
    return url.partition("?")[0]


def _parsed(content: bytes, where: str) -> pd.DataFrame:
    """A table in the format that its first bytes tell."""
    start = content.lstrip()[:64]
    if not start:
        return pd.DataFrame()
    if start[:1] in (b"[", b"{"):
        try:
            rows = json.loads(content)
            rows = rows.get("data", rows) if isinstance(rows, dict) else rows
            return pd.DataFrame.from_records(rows)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{where} is no JSON list of objects: {error}") from error
    return _astropy_table(content, "votable" if start[:1] == b"<" else "ascii.ecsv", where)


def _astropy_table(content: bytes, kind: str, where: str) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnitsWarning)  # services write "h:m:s" and the like
            warnings.filterwarnings("ignore", module=r"astropy\.io\.votable")  # and bend the standard
            source = io.BytesIO(content) if kind == "votable" else content.decode()
            table = Table.read(source, format=kind)
    # What astropy's readers raise on files that are not theirs is a zoo: errors of expat, of YAML, of their own.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{where} cannot be read as {kind}: {type(error).__name__}: {reason}") from error
    frame: pd.DataFrame = table.to_pandas()
    return frame


def predictions(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """A table with the columns that the module tells of, checked; `where` names it in messages.

    Raises
    ------
    DataError
        A column is missing, or a value is none; the message names column, row and what is accepted.
    """
    if not len(table):
        return pd.DataFrame({name: np.empty(0) for name in ("ra", "dec", "raErr", "decErr")}).assign(
            ssObjectId=np.empty(0, np.int64)
        )
    table = _renamed(table.reset_index(drop=True))
    for name in ("ra", "dec"):
        if name not in table:
            raise DataError(f"{where} has no column {name!r}; accepted: ra and dec, degrees")
    table = table.assign(ra=_degrees(table["ra"], "hourangle"), dec=_degrees(table["dec"], "deg"))
    for name in _NUMBERS:
        if name in table:
            table[name] = _numbers(table[name], name, where)
    table = _with_ids(_with_errors(table, where), where)
    known = [name for name in _RATES if name in table]
    if known and len(known) < 2:
        raise DataError(
            f"{where} has column {known[0]!r} alone; accepted: both {_RATES[0]} and {_RATES[1]}, or neither"
        )
    if known and "midpointMjdTai" not in table:
        raise DataError(f"{where} has rates but no column 'midpointMjdTai'; accepted: the time of ra and dec, MJD TAI")
    if not table["dec"].between(-90.0, 90.0).all():
        row = int(np.argmin(table["dec"].between(-90.0, 90.0)))
        raise DataError(f"{where}: dec is {table['dec'][row]} in row {row}; accepted: -90 to 90 degrees")
    return table.assign(ra=table["ra"] % 360.0)


def _renamed(table: pd.DataFrame) -> pd.DataFrame:
    """Columns under our names; SkyBoT's rates become deg/d."""
    names: dict[str, str] = {}
    for column in table.columns:
        bare = re.sub(r"\s*\(.*\)", "", str(column)).strip().lower()
        new = _SKYBOT.get(bare, "")
        if new and new not in table.columns and new not in names.values():
            names[column] = new
    decimal = {c for c, new in names.items() if str(c).lower().startswith("_")}
    # Beside decimal degrees sexagesimal ones say nothing new.
    table = table.drop(columns=[c for c in ("ra", "dec", "RA", "DEC") if c in table and c not in names and decimal])
    table = table.rename(columns=names)
    for of, rate in (("rate_ra", "ephRateRa"), ("rate_dec", "ephRateDec")):
        if of in table:
            table[rate] = pd.to_numeric(table.pop(of), errors="coerce") * _DEG_D
    return table


def _degrees(values: pd.Series, unit: str) -> pd.Series:
    """Sexagesimal text (hours for right ascensions) as degrees; what is no text stays."""
    text = values.map(lambda v: isinstance(v, str) and bool(re.search(r"\d[\s:]+\d", v)))
    if not text.all() or not len(values):
        return values
    try:
        return pd.Series(Angle(values.to_list(), unit=unit).deg, values.index)
    except ValueError:
        return values


def _numbers(values: pd.Series, name: str, where: str) -> pd.Series:
    out = pd.to_numeric(values, errors="coerce").astype(float)
    needed = name not in ("ephVmag", *_RATES)
    wrong = out.isna() & (values.notna() if not needed else True) | np.isinf(out)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{where}: {name} is {values.tolist()[row]!r} in row {row}; accepted: a finite number")
    return out


def _with_errors(table: pd.DataFrame, where: str) -> pd.DataFrame:
    if "Err(arcsec)" in table and "raErr" not in table:
        error = table.pop("Err(arcsec)") / 3600.0
        table = table.assign(raErr=error, decErr=error)
    for name in ("raErr", "decErr"):
        if name not in table:
            raise DataError(f"{where} has no column {name!r}; accepted: raErr and decErr (degrees), or Err(arcsec)")
        if (table[name] < 0).any():
            row = int(np.argmax(table[name] < 0))
            raise DataError(f"{where}: {name} is {table[name][row]} in row {row}; accepted: 0 or more")
    return table


def _with_ids(table: pd.DataFrame, where: str) -> pd.DataFrame:
    if "designation" in table:
        table["designation"] = table["designation"].astype(str).str.strip()
    if "ssObjectId" not in table:
        if "designation" not in table:
            raise DataError(f"{where} has no column 'ssObjectId'; accepted: that, or designation")
        empty = table["designation"].isin(["", "None", "nan"])
        if empty.any():
            raise DataError(f"{where}: designation is empty in row {int(np.argmax(empty))}; accepted: a name")
        table["ssObjectId"] = [object_id(name) for name in table["designation"]]
    whole = pd.to_numeric(table["ssObjectId"], errors="coerce")
    wrong = whole.isna() | (whole % 1 != 0) | (whole <= 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        value = table["ssObjectId"].tolist()[row]
        raise DataError(f"{where}: ssObjectId is {value!r} in row {row}; accepted: a whole number above 0")
    return table.assign(ssObjectId=table["ssObjectId"].astype("int64"))


def object_id(designation: str) -> int:
    """The ssObjectId of an object that came without one: 62 bits of a digest of its designation."""
    return (int.from_bytes(hashlib.sha256(designation.encode()).digest()[:8]) >> 2) or 1
