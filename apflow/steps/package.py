"""Alert packets and the files that a detector leaves behind."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from apflow.catalogs.diaobject import with_forced_fluxes
from apflow.catalogs.injected import injection_metrics, is_injected
from apflow.config import Config
from apflow.graph import node
from apflow.io.alerts.cutouts import cutout_fits
from apflow.io.alerts.packets import build_packets
from apflow.io.butler import output_path
from apflow.io.butler.paths import OUTPUTS
from apflow.io.fits import write_exposure
from apflow.io.input_cache import take_counts
from apflow.io.metrics import DataId, write_bundle
from apflow.io.ppdb import open_ppdb
from apflow.io.provenance import keywords, provenance, write_provenance
from apflow.io.tables import write_table
from apflow.model.ap_metrics import STAGE_METRICS, STAGES, by_stage
from apflow.model.exposure import Exposure
from apflow.model.ids import day_obs_of
from apflow.model.products import (
    Associated,
    DetectorResult,
    Difference,
    History,
    OutputFile,
    Packet,
    Plan,
    Snaps,
)
from apflow.pixels.cutouts import cut, cutout_size
from apflow.pixels.inject import difference_snr, without_fakes
from apflow.steps.shed import is_shed

_INJECTED, _IMAGE = "injected_sources", "difference_image"
#: Columns of DiaSource whose true values are counted.
_FLAGS = {"negative": "isNegative", "dipoles": "isDipole"}


@node
def package_alerts(
    plan: Plan,
    snaps: Snaps,
    associated: Associated,
    history: History,
    forced: pd.DataFrame,
    difference: Difference,
    science: Exposure,
    config: Config,
) -> DetectorResult:
    """Packets with stamps; difference image, DiaSources and metrics as files. No plane leaves the worker.

    No packet tells of a fake, nor shows one; see `apflow.catalogs.injected`.
    """
    info, visit = science.info, plan.visit
    assert info is not None
    associated = with_forced(associated, history, forced)
    stamps = _stamps(associated.sources, difference, science, config)
    packets = packets_of(associated, history, forced, stamps, config)
    metrics = {**science.summary, **difference.matched.summary, **difference.exposure.summary, **history.summary}
    metrics |= take_counts(visit.visit, info.detector) | {"n_snaps_missing": float(len(snaps.missing))}
    metrics |= {f"n_{kind}": float(associated.sources[flag].sum()) for kind, flag in _FLAGS.items()}
    metrics["median_reliability"] = float(associated.sources["reliability"].astype(float).median())
    metrics |= association_metrics(associated, history, forced, packets)
    injected = _injected(difference, science)
    metrics |= injection_metrics(injected, associated.sources) if injected is not None else {}
    shed = {_IMAGE} if is_shed(snaps, config, "the difference image") else set()
    paths = {
        name: output_path(config.butler, name, visit, info.detector, plan.run)
        for name in OUTPUTS
        if (name != _INJECTED or injected is not None) and name not in shed
    }
    result = DetectorResult(
        visit=visit,
        detector=info.detector,
        sources=associated.sources,
        objects=associated.objects,
        forced=forced,
        guard=associated.guard,
        packets=packets,
        outputs=tuple(OutputFile(name, path) for name, path in paths.items()),
        arrived_unix=max(raw.arrived_unix for raw in snaps.raws),
        mjd_mid_tai=info.mjd_mid_tai,
        day_obs=day_obs_of(visit.visit),
        metrics={name: metrics.get(name, float("nan")) for name in STAGE_METRICS},
        cutouts=stamps,
        matches=associated.matches,
        ss_sources=associated.ss_sources,
        ss_objects=history.ss_objects,
    )
    record = provenance(plan, info.detector, snaps, config)
    write_provenance(paths["ap_provenance"], record)
    if _IMAGE in paths:
        write_exposure(paths[_IMAGE], difference.exposure, keywords(record), difference.kernel)
    write_catalogues(result)
    if injected is not None:
        write_table(paths[_INJECTED], injected)
    return result


def _injected(difference: Difference, science: Exposure) -> pd.DataFrame | None:
    """The truth of the fakes, with the S/N at which they should be seen."""
    fakes, info = science.injected, science.info
    if fakes is None or info is None:
        return None
    return fakes.assign(
        visit=info.exposure, detector=info.detector, band=info.band, snr=difference_snr(fakes, difference.exposure)
    )


def association_metrics(
    associated: Associated, history: History, forced: pd.DataFrame, packets: Sequence[Packet]
) -> dict[str, float]:
    """Those metrics that the association decides, or may change."""
    known = associated.objects["diaObjectId"].isin(history.objects["diaObjectId"])
    return {
        "n_sources": float(len(associated.sources)),
        "n_known_objects": float(len(history.objects)),
        "n_new_objects": float((~known).sum()),
        "n_ss_sources": float(len(associated.ss_sources)),
        "n_forced": math.nan if forced.attrs.get("is_shed") else float(len(forced)),
        "n_packets": float(len(packets)),
        "n_alerts_trimmed": float(sum(p.trimmed > 0 for p in packets)),
        "packets_bytes": float(sum(len(p.datum) for p in packets)),
    }


def write_catalogues(result: DetectorResult) -> None:
    """Write DiaSources and metrics where the Butler will find them; a gather registers them.

    Whoever is associated again writes them again, registered already or not.
    """
    for output in result.outputs:
        if output.dataset_type == "dia_source_detector":
            write_table(output.path, result.sources)
        elif output.dataset_type == "ap_metrics":
            visit = result.visit
            data_id: DataId = {"instrument": visit.instrument, "visit": visit.visit, "detector": result.detector}
            write_bundle(output.path, STAGES, by_stage(result.metrics), data_id, result.mjd_mid_tai)


def with_forced(associated: Associated, history: History, forced: pd.DataFrame) -> Associated:
    """The new DiaObject versions with the mean of their forced fluxes, those of this visit included."""
    objects = with_forced_fluxes(associated.objects, history.forced, forced)
    return dataclasses.replace(associated, objects=objects)


def packets_of(
    associated: Associated,
    history: History,
    forced: pd.DataFrame,
    stamps: Mapping[int, tuple[bytes, bytes, bytes]],
    config: Config,
) -> tuple[Packet, ...]:
    """One alert packet for each DiaSource that is no fake; orbits of Solar System objects are read where need be."""
    names = associated.ss_sources["designation"].dropna()
    return build_packets(
        associated.sources[~is_injected(associated.sources)],
        associated.objects,
        history,
        forced,
        stamps,
        schema_version=config.packets.schema_version,
        history_days=config.associate.history_days,
        nan_for_null=config.packets.nan_for_null,
        max_message_bytes=config.kafka.max_message_bytes,
        ss_sources=associated.ss_sources,
        orbits=open_ppdb(config.ppdb_url).getOrbits(names.tolist()) if len(names) else None,
    )


def _stamps(
    sources: pd.DataFrame, difference: Difference, science: Exposure, config: Config
) -> dict[int, tuple[bytes, bytes, bytes]]:
    limits = config.packets.cutout_px, config.packets.cutout_max_px
    stamps = {}
    sources = sources[~is_injected(sources)]
    planes = (without_fakes(difference.exposure, science), without_fakes(science, science), difference.matched)
    boxes = sources["bboxSize"].fillna(0)
    for key, x, y, box in zip(sources["diaSourceId"], sources["x"], sources["y"], boxes, strict=True):
        size = cutout_size(box, *limits)
        cuts = [cut(plane, x, y, size) for plane in planes]
        # All three lie on the science grid: given one WCS, its tangent is worked out once.
        d, s, t = (cutout_fits(c._replace(wcs=cuts[1].wcs)) for c in cuts)
        stamps[int(key)] = (d, s, t)
    return stamps
