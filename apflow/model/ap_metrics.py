"""What alert production measures: by stage on each detector, at delivery, and over a visit.

The names are those of `apflow.model.exposure.Exposure.summary` and of
`apflow.model.ledger.Outcome.metrics`, in which no two stages share one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from apflow.model.ledger import Outcome, State
from apflow.model.metrics import Metric, complete

Values = dict[str, dict[str, float | None]]

#: Fakes are counted above each of these predicted S/N, up to the next.
INJECTION_SNR = (3, 5, 7, 10, 20)
#: Metrics of a detector-visit by stage, which is an action of the dataset ``ap_metrics`` and a topic of Sasquatch.
STAGES: Mapping[str, tuple[Metric, ...]] = {
    "inputs": (
        Metric("n_snaps_missing", "ct", "Snaps of the visit that never came."),
        Metric("n_inputs_memory", "ct", "Calibs, templates and reference shards that were in memory."),
        Metric("n_inputs_fast", "ct", "Inputs read from the fast store."),
        Metric("n_inputs_main", "ct", "Inputs read from the main store."),
        Metric("n_inputs_failed_over", "ct", "Inputs that did not come from where they should have."),
        Metric("inputs_memory_bytes", "byte", "Size of the inputs that were in memory."),
        Metric("inputs_fast_bytes", "byte", "Size of the inputs read from the fast store."),
        Metric("inputs_main_bytes", "byte", "Size of the inputs read from the main store."),
    ),
    "isr": (
        Metric("mjd_mid_tai", "d", "Midpoint of the exposure, MJD TAI."),
        Metric("exposure_time_s", "s", "Open-shutter time, that of all snaps together."),
        Metric("shutter_offset_s", "s", "Measured open-shutter time of a snap less the planned one."),
        Metric("n_saturated_pixels", "ct", "Saturated pixels and those next to them."),
        Metric("n_bad_pixels", "ct", "Defects and pixels without sensitivity."),
        Metric("n_crosstalk_pixels", "ct", "Pixels with more than 3 read noises of crosstalk removed."),
        Metric("n_dead_amplifiers", "ct", "Amplifiers without a signal."),
    ),
    "calibrate": (
        Metric("psf_fwhm_arcsec", "arcsec", "FWHM of the PSF at the centre, from its effective area (LSE-30)."),
        Metric("psf_sigma_px", "pix", "Width of the PSF at the centre: the sigma of its adaptive Gaussian."),
        Metric("psf_sigma_arcsec", "arcsec", "The same on the sky."),
        Metric("psf_fwhm_spread_arcsec", "arcsec", "Standard deviation of the FWHM over the detector."),
        Metric("psf_ellipticity_e1", "", "(Ixx - Iyy) / (Ixx + Iyy) of the PSF at the centre."),
        Metric("psf_ellipticity_e2", "", "2 Ixy / (Ixx + Iyy) of the PSF at the centre."),
        Metric("n_psf_stars", "ct", "Stars that the PSF was made of."),
        Metric("psf_model_error", "", "Scatter of bright stars' PSF fluxes that the PSF's model makes, over the flux."),
        Metric("aperture_correction", "", "Total flux of a star over its PSF flux."),
        Metric("aperture_correction_error", "", "Error of aperture_correction."),
        Metric("n_cosmic_ray_pixels", "ct", "Pixels that cosmic rays hit."),
        Metric("wcs_offset_arcsec", "arcsec", "By how far the fit moved the announced pointing."),
        Metric("wcs_rotation_arcsec", "arcsec", "By how much the fit turned it, East of North."),
        Metric("wcs_scatter_arcsec", "arcsec", "Robust scatter of the stars about the WCS, per axis."),
        Metric("wcs_distortion_arcsec", "arcsec", "By how far the fit bends the camera's distortion at most."),
        Metric("n_reference_matched", "ct", "Stars matched to the reference catalogue."),
        Metric("zero_point_mag", "mag", "AB magnitude of 1 electron a second."),
        Metric("zero_point_error_mag", "mag", "Error of zero_point_mag, its aperture correction's included."),
        Metric("zero_point_scatter_mag", "mag", "Robust scatter of the zero point from star to star."),
        Metric("sky_electron", "electron", "Sky level of a pixel."),
        Metric("sky_noise_electron", "electron", "Noise of a pixel of blank sky."),
        Metric("sky_mag_arcsec2", "mag / arcsec2", "Surface brightness of the sky, AB."),
        Metric("depth_mag", "mag", "Magnitude of a point source of 5 sigma."),
        Metric("effective_time_s", "s", "Exposure time of the same depth under nominal conditions (SMTN-002)."),
        Metric("effective_time_ratio", "", "effective_time_s over the exposure time (Neilsen et al. 2016)."),
    ),
    "injection": (
        Metric("n_injected", "ct", "Fakes on good pixels."),
        Metric("n_injected_found", "ct", "Fakes that a DiaSource was found for."),
        *(
            metric
            for low, text in zip(
                INJECTION_SNR,
                (*(f"{a} to {b}" for a, b in itertools.pairwise(INJECTION_SNR)), f"above {INJECTION_SNR[-1]}"),
                strict=True,
            )
            for metric in (
                Metric(f"n_injected_snr{low}", "ct", f"Fakes of a predicted S/N {text}."),
                Metric(f"n_injected_found_snr{low}", "ct", f"Fakes found of a predicted S/N {text}."),
            )
        ),
    ),
    "template": (
        Metric("template_coverage", "", "Part of the detector's pixels that the template covers."),
        Metric("template_fwhm_arcsec", "arcsec", "FWHM of the template's PSF."),
    ),
    "subtract": (
        Metric("kernel_sum", "", "Sum of the matching kernel: science flux over template flux."),
        Metric("kernel_chi2", "", "Reduced chi squared of the kernel's stamps."),
        Metric("n_stamps", "ct", "Stamps that the kernel was fitted to."),
        Metric("bad_stamps", "", "Part of the chosen stamps that did not fit."),
        Metric("science_convolved", "", "1 where the science image was convolved, 0 where the template was."),
        Metric("residual_power", "", "Power of bright stars' residuals beyond noise, over that of their light."),
        Metric("variance_scale", "", "Factor by which the variance of the difference was scaled."),
        Metric("diff_mad_snr", "", "Robust scatter of S/N of blank sky in the difference, before scaling."),
        Metric("matching_error", "", "Part of a star's light that the subtraction leaves."),
    ),
    "detect": (
        Metric("n_sources", "ct", "DiaSources."),
        Metric("n_negative", "ct", "DiaSources that are fainter than in the template."),
        Metric("n_dipoles", "ct", "DiaSources that are dipoles."),
        Metric("median_reliability", "", "Median of the DiaSources' probability to be real."),
    ),
    "associate": (
        Metric("n_known_objects", "ct", "DiaObjects that were known in the region."),
        Metric("n_new_objects", "ct", "DiaObjects that this visit began."),
        Metric("n_ss_sources", "ct", "DiaSources of known Solar System objects."),
        Metric("n_ss_predicted", "ct", "Solar System objects that were predicted in the region."),
        Metric("is_ss_service_down", "", "1 where the service of ephemerides gave no answer that can be used, else 0."),
    ),
    "forced": (Metric("n_forced", "ct", "DiaObjects that were measured by forced photometry."),),
    "alerts": (
        Metric("n_packets", "ct", "Alert packets."),
        Metric("n_alerts_trimmed", "ct", "Packets with history left out, so that the broker takes them."),
        Metric("packets_bytes", "byte", "Size of the packets."),
    ),
}
#: Steps of a detector's chain, in the order of the graph; each has its times among the metrics of delivery.
STEPS = (
    "detector_region",
    "fetch_calibs",
    "fetch_template",
    "await_science_images",
    "remove_signature",
    "calibrate",
    "inject_fakes",
    "match_template",
    "subtract",
    "detect_and_measure",
    "rate_reliability",
    "read_history",
    "associate",
    "force_photometry",
    "package_alerts",
)
#: Action of the dataset ``ap_delivery_metrics``.
DELIVERY: Mapping[str, tuple[Metric, ...]] = {
    "delivery": (
        *(Metric(f"is_{state}", "", f"1 where the detector-visit ended as {state}, else 0.") for state in State),
        Metric("alert_latency_s", "s", "End of readout to the published alerts."),
        Metric("store_latency_s", "s", "End of readout to the end of the PPDB's transaction."),
        Metric("n_dia_sources", "ct", "DiaSources that were stored."),
        Metric("n_alerts", "ct", "Alerts that were stored to be published."),
        Metric("processing_core_s", "s", "CPU time of the detector's steps."),
        *(Metric(f"{step}_wall_s", "s", f"Wall time of the step {step}.") for step in STEPS),
        *(Metric(f"{step}_core_s", "s", f"CPU time of the step {step}.") for step in STEPS),
    )
}
#: What summit systems want of a visit (LSE-72): the minimum, median and maximum of each over the detectors.
SUMMIT = (
    "psf_fwhm_arcsec",
    "psf_ellipticity_e1",
    "psf_ellipticity_e2",
    "n_psf_stars",
    "wcs_offset_arcsec",
    "wcs_scatter_arcsec",
    "zero_point_mag",
    "sky_electron",
    "sky_noise_electron",
    "sky_mag_arcsec2",
    "depth_mag",
    "effective_time_s",
    "n_sources",
    "alert_latency_s",
)
_PERCENTILES = (50, 95, 98)
_BY_NAME = {m.name: m for table in (STAGES, DELIVERY) for metrics in table.values() for m in metrics}
_STATISTICS = {"min": "Minimum", "median": "Median", "max": "Maximum"}
#: Action of the dataset ``ap_visit_metrics``.
VISIT: Mapping[str, tuple[Metric, ...]] = {
    "visit": (
        Metric("n_detectors", "ct", "Detectors of the visit."),
        *(Metric(f"n_{state}", "ct", f"Detectors that ended as {state}.") for state in State),
        Metric("total_n_sources", "ct", "DiaSources of all detectors."),
        Metric("total_n_alerts", "ct", "Alerts of all detectors."),
        Metric("total_n_injected", "ct", "Fakes on good pixels of all detectors."),
        Metric("injected_completeness", "", "Part of these fakes that was found."),
        *(
            Metric(f"injected_completeness_snr{low}", "", f"The same from a predicted S/N of {low} to the next.")
            for low in INJECTION_SNR
        ),
        *(
            Metric(f"p{p}_alert_latency_s", "s", f"Within this {p} % of the detectors' alerts were published.")
            for p in _PERCENTILES
        ),
        *(
            Metric(f"{short}_{name}", _BY_NAME[name].unit, f"{long} over the detectors: {_BY_NAME[name].description}")
            for name in SUMMIT
            for short, long in _STATISTICS.items()
        ),
    )
}
#: Names of all metrics of a detector-visit, in order.
STAGE_METRICS = tuple(metric.name for metrics in STAGES.values() for metric in metrics)


def by_stage(values: Mapping[str, float | None]) -> Values:
    """Metrics of a detector-visit by stage, all of them; None for what is missing."""
    return {stage: complete(metrics, values) for stage, metrics in STAGES.items()}


def known_values(values: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Those metrics of any stages that have a value, in one mapping."""
    return {name: value for found in values.values() for name, value in found.items() if value is not None}


def delivery(outcome: Outcome) -> Values:
    """How a detector-visit came to its end, and when its alerts went out; None where they did not."""
    arrived, done = outcome.arrived_unix, outcome.state is State.DONE
    values: dict[str, float | None] = {f"is_{state}": float(outcome.state is state) for state in State}
    for name, end in (("alert_latency_s", outcome.published_unix), ("store_latency_s", outcome.stored_unix)):
        values[name] = end - arrived if end is not None and arrived is not None else None
    if done:
        values |= {"n_dia_sources": float(outcome.n_sources), "n_alerts": float(outcome.n_alerts)}
    ran = [record for record in outcome.steps if record.step in STEPS]
    for record in ran:
        for name, spent in (("wall", record.stop_unix - record.start_unix), ("core", record.core_s)):
            # A step that ran more than once took the time of all its runs.
            key = f"{record.step}_{name}_s"
            values[key] = (values.get(key) or 0.0) + spent
    if ran:
        values["processing_core_s"] = sum(record.core_s for record in ran)
    return {action: complete(metrics, values) for action, metrics in DELIVERY.items()}


def over_visit(detectors: Iterable[Mapping[str, float]]) -> Values:
    """Metrics of a visit from those of its detectors: minimum, median and maximum, and counts by state.

    Parameters
    ----------
    detectors : iterable of mapping
        What is known of each detector, of its stages and of its delivery, in
        one mapping; those without a value count in none of its statistics.
    """
    rows = list(detectors)
    values: dict[str, float | None] = {"n_detectors": float(len(rows))}
    values |= {f"n_{state}": float(sum(row.get(f"is_{state}", 0.0) for row in rows)) for state in State}
    for total, name in (("total_n_sources", "n_sources"), ("total_n_alerts", "n_alerts")):
        values[total] = sum(_known(rows, name))
    values |= _completeness(rows)
    for name in SUMMIT:
        if known := _known(rows, name):
            found = (min(known), float(np.median(known)), max(known))
            values |= {f"{short}_{name}": value for short, value in zip(_STATISTICS, found, strict=True)}
    if late := _known(rows, "alert_latency_s"):
        percentiles = np.percentile(late, _PERCENTILES).tolist()
        values |= {f"p{p}_alert_latency_s": value for p, value in zip(_PERCENTILES, percentiles, strict=True)}
    return {action: complete(metrics, values) for action, metrics in VISIT.items()}


def _known(rows: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def _completeness(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the fakes of a visit, nothing where there were none."""
    values = {}
    for end in ("", *(f"_snr{low}" for low in INJECTION_SNR)):
        if n := sum(_known(rows, f"n_injected{end}")):
            values[f"injected_completeness{end}"] = sum(_known(rows, f"n_injected_found{end}")) / n
    if known := _known(rows, "n_injected"):
        values["total_n_injected"] = sum(known)
    return values
