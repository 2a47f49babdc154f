"""Alerts as files: for those who have no Kafka, and for looking at one of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

from apflow.config import Config
from apflow.errors import BadRequest
from apflow.io.alerts.container import block, header_of
from apflow.io.atomic import atomic
from apflow.io.ppdb import Ppdb
from apflow.io.tables import write_table
from apflow.operate.alert_checks import decode
from apflow.operate.alert_list import read_alerts
from apflow.operate.alert_stamps import STAMPS

#: What can be made.
KINDS = ("avro", "parquet", "fits")
_CHUNK = 256


def export_alerts(out: Path, alerts: pd.DataFrame, kinds: tuple[str, ...], ppdb: Ppdb, config: Config) -> list[str]:
    """Write alerts into a folder.

    Parameters
    ----------
    out : `~pathlib.Path`
        The folder; made where there is none.
    alerts : `pandas.DataFrame`
        As `~apflow.operate.alert_list.list_alerts` gives them.
    kinds : `tuple` [`str`, ...]
        ``avro`` (``<id>.avro``, a container of one alert), ``parquet``
        (``diasources.parquet``, as the PPDB has them now) and ``fits``
        (``<id>_science.fits`` and so on, byte for byte as they were sent).

    Returns
    -------
    told : `list` [`str`]
        What was written, in words.

    Raises
    ------
    BadRequest
        A kind is not known, or `out` is a file.
    DataError
        The archive is damaged.
    ServiceError
        A file cannot be written.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise BadRequest(f"--as {unknown[0]!r} is not accepted: {', '.join(KINDS)}")
    if out.exists() and not out.is_dir():
        raise BadRequest(f"--out {out} is not accepted: it is a file; give a folder")
    counts = {"avro": 0, "fits": 0}
    if "avro" in kinds or "fits" in kinds:
        for start in range(0, len(alerts), _CHUNK):
            part = alerts.iloc[start : start + _CHUNK]
            for alert_id, (datum, definition) in zip(part["alert_id"], read_alerts(config, part), strict=True):
                if "avro" in kinds:
                    counts["avro"] += _write_avro(out / f"{alert_id}.avro", datum, definition)
                if "fits" in kinds:
                    counts["fits"] += _write_stamps(out, int(alert_id), datum, definition)
    told = [f"{n} {kind} files" for kind, n in counts.items() if kind in kinds]
    if "parquet" in kinds:
        sources = ppdb.table("DiaSource", {"diaSourceId": alerts["alert_id"].to_list()})
        write_table(out / "diasources.parquet", sources)
        told.append(f"diasources.parquet with {len(sources)} rows")
    return told


def _write_avro(path: Path, datum: bytes, definition: Any) -> int:
    head, sync = header_of(definition)
    with atomic(path) as file:
        file.write(b"".join(itertools.chain([head], block(datum, sync))))
    return 1


def _write_stamps(out: Path, alert_id: int, datum: bytes, definition: Any) -> int:
    alert = decode(datum, definition)
    found = {name: alert[column] for name, column in STAMPS.items() if alert[column] is not None}
    for name, data in found.items():
        with atomic(out / f"{alert_id}_{name}.fits") as file:
            file.write(data)
    return len(found)
