"""Any two images: subtract, detect, measure, and show."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.table import Table

from apflow.config import Config
from apflow.errors import BadRequest
from apflow.io.alerts.container import block, header
from apflow.io.alerts.cutouts import cutout_fits
from apflow.io.alerts.packets import build_packets
from apflow.io.alerts.schema import load_schema
from apflow.io.atomic import atomic
from apflow.io.fits import write_exposure
from apflow.io.tables import write_table
from apflow.model import schema
from apflow.model.exposure import Exposure, Mask
from apflow.model.products import Difference, History
from apflow.operate import any_fits
from apflow.operate.any_pair import on_one_grid
from apflow.operate.sheet import write_sheet
from apflow.pixels.cutouts import cut, cutout_size
from apflow.pixels.detect import detect, mark
from apflow.pixels.measure import measure
from apflow.pixels.streaks import mark_streaks
from apflow.pixels.subtract import subtract
from apflow.pixels.zogy import subtract_zogy

_THRESHOLD = 5.0
_MIN_COVERAGE = 0.02
#: How to subtract, by name as in the configuration.
METHODS: dict[str, Callable[..., Difference]] = {"alard-lupton": subtract, "zogy": subtract_zogy}
_FLUXES = ("psfFlux", "apFlux", "scienceFlux", "templateFlux")


def difference(
    science: Path,
    template: Path,
    out: Path,
    *,
    noises: tuple[Path | None, Path | None] = (None, None),
    masks: tuple[Path | None, Path | None] = (None, None),
    method: str = "alard-lupton",
) -> dict[str, Any]:
    """Subtract a template from a science image and write what changed.

    The template is brought to the science image's grid by the stars that both
    show; see `apflow.operate.any_pair.on_one_grid`. Sky, noise, gain, saturation and PSFs
    come from the images themselves where the files say nothing.

    Parameters
    ----------
    science, template : `pathlib.Path`
        FITS files; see `apflow.operate.any_fits.read`.
    out : `pathlib.Path`
        Folder, made when absent: difference.fits, diasources.parquet,
        diasources.ecsv, stamps.png, and alerts.avro where the science image has a WCS.
    noises, masks : `tuple` [`pathlib.Path`, `pathlib.Path`], optional
        Files of the noise and the masks of science image and template.
    method : `str`
        One of `METHODS`: the kernel that is fitted, or the proper difference of the two PSFs.

    Returns
    -------
    report : `dict`
        Paths by file name, numbers of sources and alerts, unit of the fluxes; of
        each image, beginning with science_ or template_, its FWHM, sky and
        noise, and what its header says of it or was measured: gain_in_header,
        gain_by_photon_transfer or gain_by_sky (electrons a unit),
        read_noise_electron, saturation_in_header and saturation_by_plateau;
        aligned_by, resampled and alignment_note, matched stars, scatter,
        shift, rotation, scale and parity; and the subtraction's summary.

    Raises
    ------
    BadRequest
        A file is missing or not FITS, the method is none, or the images cannot be aligned.
    DataError
        A file has no usable image, or the images do not overlap.
    """
    if method not in METHODS:
        raise BadRequest(f"the method is {method!r}; accepted: {', '.join(METHODS)}")
    paths = Path(science), Path(template)
    prepared, matched = (
        any_fits.prepare(any_fits.read(path, noise, mask))
        for path, noise, mask in zip(paths, noises, masks, strict=True)
    )
    prepared, matched, placement = on_one_grid(prepared, matched, paths)
    prepared, matched = any_fits.with_psf(prepared, matched), any_fits.with_psf(matched, prepared)
    prepared, matched = (
        any_fits.without_cosmic_rays(prepared, matched),
        any_fits.without_cosmic_rays(matched, prepared),
    )
    result = METHODS[method](prepared, matched, min_coverage=_MIN_COVERAGE)
    peaks = detect(result, _THRESHOLD)
    result = mark_streaks(mark(result, peaks))
    sources = measure(result, prepared, peaks)
    sources.insert(0, "diaSourceId", np.arange(1, len(sources) + 1))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_exposure(out / "difference.fits", result.exposure, kernel=result.kernel)
    _write_tables(out, sources, prepared.unit)
    write_sheet(out / "stamps.png", result, prepared, sources)
    names = ["difference.fits", "diasources.parquet", "diasources.ecsv", "stamps.png"]
    alerts = 0
    if prepared.wcs is not None:
        alerts = _write_alerts(out / "alerts.avro", result, prepared, sources)
        names.append("alerts.avro")
    report: dict[str, Any] = {name: str(out / name) for name in names}
    report |= {"sources": len(sources), "alerts": alerts, "flux_unit": prepared.unit}
    for name, exposure in (("science", prepared), ("template", matched)):
        facts = {"fwhm_px": exposure.summary["psf_fwhm_px"], **exposure.summary}
        report |= {f"{name}_{key}": value for key, value in facts.items() if key != "psf_fwhm_px"}
        report[f"{name}_saturated_pixels"] = int(((exposure.mask & Mask.SAT) != 0).sum())
        report[f"{name}_bad_pixels"] = int(((exposure.mask & Mask.BAD) != 0).sum())
    report |= {"aligned_by": placement.by, "resampled": placement.resampled, "alignment_note": placement.note}
    return report | placement.numbers | dict(result.exposure.summary)


def _write_tables(out: Path, sources: pd.DataFrame, unit: str) -> None:
    """DiaSources with units and descriptions of apdb.yaml, fluxes in the image's own unit."""
    columns = {c.name: c for c in schema.table("DiaSource").columns}
    units = {name: columns[name].unit for name in sources if name in columns and columns[name].unit}
    units |= {name + suffix: unit for name in _FLUXES for suffix in ("", "Err") if name + suffix in sources}
    notes = {name: columns[name].description for name in sources if name in columns}
    table = sources.copy()
    table.attrs = {"unit": units, "description": notes}
    write_table(out / "diasources.parquet", table)
    ecsv = Table.from_pandas(sources)
    for name in ecsv.colnames:
        ecsv[name].unit = {"pixel": "pix", "ADU": "adu"}.get(units.get(name, ""), units.get(name))
        ecsv[name].description = notes.get(name)
    text = io.StringIO()
    ecsv.write(text, format="ascii.ecsv")
    with atomic(out / "diasources.ecsv") as file:
        file.write(text.getvalue().encode())


def _write_alerts(path: Path, result: Difference, science: Exposure, sources: pd.DataFrame) -> int:
    """One packet for each source, each a new DiaObject, in an Avro file; fluxes in the image's own unit."""
    settings = Config().packets
    stamps = {}
    for key, x, y, box in zip(sources["diaSourceId"], sources["x"], sources["y"], sources["bboxSize"], strict=True):
        size = cutout_size(box, settings.cutout_px, settings.cutout_max_px)
        planes = (result.exposure, science, result.matched)
        d, s, t = (cutout_fits(cut(plane, x, y, size), science.unit) for plane in planes)
        stamps[int(key)] = (d, s, t)
    rows = schema.conform(sources.assign(diaObjectId=sources["diaSourceId"]), "DiaSource")
    objects = pd.DataFrame({"diaObjectId": rows["diaSourceId"], "ra": rows["ra"], "dec": rows["dec"]})
    objects["nDiaSources"], objects["validityStartMjdTai"] = 1, rows["midpointMjdTai"]
    objects["firstDiaSourceMjdTai"] = objects["lastDiaSourceMjdTai"] = rows["midpointMjdTai"]
    empty = History(*(schema.empty(name) for name in ("DiaObject", "DiaSource", "DiaForcedSource")))
    packets = build_packets(
        rows, schema.conform(objects, "DiaObject"), empty, empty.forced, stamps, settings.schema_version
    )
    head, sync = header(load_schema(settings.schema_version))
    with atomic(path) as file:
        file.write(head)
        for packet in packets:
            file.write(b"".join(block(packet.datum, sync)))
    return len(packets)
