"""Stamps for the report, taken from the alerts as they were archived."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits
from numpy.typing import NDArray

from apflow.io.alerts.archive import open_archive
from apflow.io.alerts.schema import load_schema
from apflow.model.products import OutboxRow
from apflow.operate.report_stamps import Stamp


def pick_stamps(
    alerts_url: str, schema_version: str, sources: pd.DataFrame, outbox: pd.DataFrame, per_visit: int = 8
) -> list[Stamp]:
    """A few alerts of each visit, from the brightest to the faintest, no detector twice.

    Parameters
    ----------
    sources : `pandas.DataFrame`
        DiaSources.
    outbox : `pandas.DataFrame`
        The outbox of the PPDB: where the alerts are.
    """
    by_id = outbox.set_index("alert_id")
    picked = []
    for _, rows in sources[sources["diaSourceId"].isin(by_id.index)].groupby("visit"):
        order = rows.assign(size=rows["snr"].abs()).sort_values("size", ascending=False)
        first = order.drop_duplicates("detector")
        places = np.linspace(0, len(first) - 1, min(per_visit, len(first))).astype(int)
        picked += first.iloc[places].to_dict("records")
    wanted = [_row(key, by_id.loc[key]) for key in (int(p["diaSourceId"]) for p in picked)]
    data, schema = open_archive(alerts_url).read_many(wanted), load_schema(schema_version)
    return [_stamp(p, schema.decode(d)) for p, d in zip(picked, data, strict=True)]


def _row(alert_id: int, row: Any) -> OutboxRow:
    return OutboxRow(
        alert_id,
        int(row["object_id"]),
        int(row["visit"]),
        int(row["detector"]),
        str(row["file"]),
        int(row["offset"]),
        int(row["length"]),
        int(row["checksum"]),
    )


def _stamp(source: Any, alert: dict[str, Any]) -> Stamp:
    planes = {name: _image(alert[f"cutout{name}"]) for name in ("Science", "Template", "Difference")}
    n_history = len(alert["prvDiaSources"] or ())
    return Stamp(
        dia_source_id=int(source["diaSourceId"]),
        visit=int(source["visit"]),
        detector=int(source["detector"]),
        snr=float(source["snr"]),
        label=f"{n_history} earlier sources" if n_history else "new",
        science=planes["Science"],
        template=planes["Template"],
        difference=planes["Difference"],
    )


def _image(data: bytes) -> NDArray[Any]:
    with fits.open(io.BytesIO(data)) as hdus:
        return np.array(hdus[0].data)
