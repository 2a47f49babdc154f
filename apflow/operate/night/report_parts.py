"""Pieces of the night report's page: verdicts, tables, galleries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from apflow.operate.night.ranges import BANDS
from apflow.operate.night.report_plots import against_time, band_legend
from apflow.operate.report_map import metric_label
from apflow.operate.report_parts import number, table

_PLOTS = {
    "psf_fwhm_arcsec": ("PSF FWHM, arcsec", False),
    "zero_point_mag": ("Zero point, mag of 1 e⁻/s", False),
    "sky_mag_arcsec2": ("Sky, mag/arcsec² (bright above)", True),
    "depth_mag": ("Depth, mag of 5 sigma", False),
}
_VISIT_COLUMNS = ("psf_fwhm_arcsec", "zero_point_mag", "sky_mag_arcsec2", "depth_mag", "alert_latency_s")
_NOTHING = '<p class="quiet">Nothing.</p>'
_SHARES = ("on_time_fraction", "late_visit_fraction", "lost_visit_fraction", "missed_detector_fraction")


def mark(verdict: str, text: str = "") -> str:
    """A verdict by colour, by shape, and in words for those who see neither."""
    if not verdict:
        return text
    return f'<span class="v v-{verdict}" title="{verdict.capitalize()}">{text or verdict.capitalize()}</span>'


def percent(value: float | None, digits: int = 1) -> str:
    """A part as a percentage; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def tiles(report: Mapping[str, Any]) -> str:
    """The figures that come first."""
    performance, quality = report["performance"], report["quality"]
    expected, states, alerts = performance["expected"], performance["states"], performance["alerts"]
    missed = performance["sum_of_states"] - states["done"]
    found = quality["completeness"].get("all")
    of = expected["detectors_a_visit"]
    live = number(of[0]) if len(of) == 1 else f"{number(of[0])} to {number(of[-1])}" if of else "–"
    on_time = performance["verdict"][0]
    shown = [
        ("Expected detector-visits", number(expected["detector_visits"]), f"{expected['visits']} visits × {live} CCDs"),
        (
            "Sum of terminal states",
            mark("acceptable" if performance["adds_up"] else "alert", number(performance["sum_of_states"])),
            "adds up" if performance["adds_up"] else "does not add up: see below",
        ),
        ("Done", number(states["done"]), f"{number(missed)} not, {number(len(performance['missed']))} causes"),
        ("Alerts published", number(alerts["published"]), f"{number(alerts['unsent'])} unsent"),
        ("Within the limit", mark(on_time["verdict"], percent(on_time["value"])), "of the alerts"),
        (
            "Latency, 98 %",
            f"{number(performance['latency_s']['p98_s'])} s",
            f"median {number(performance['latency_s']['p50_s'])} s",
        ),
        *(
            [("Completeness", percent(found["completeness"]), f"of {number(found['n'])} fakes, all S/N")]
            if found
            else []
        ),
        ("Metrics out of range", number(len(quality["out_of_range"])), "Warning or Alert somewhere"),
        ("Calibrations", number(len(report["calibration"]["exposures"])), _worst(report["calibration"])),
    ]
    return "".join(
        f'<div class="tile"><span>{escape(name)}</span><strong>{value}</strong><small>{escape(note)}</small></div>'
        for name, value, note in shown
    )


def _worst(calibration: Mapping[str, Any]) -> str:
    found = [e["verdict"] for e in calibration["exposures"] if e["verdict"]]
    order = ("alert", "warning", "acceptable")
    return ", ".join(f"{found.count(v)} {v.capitalize()}" for v in order if v in found) or "none checked"


def banner(performance: Mapping[str, Any]) -> str:
    """What does not add up, in red; nothing where all does."""
    if performance["adds_up"]:
        return ""
    rows = "".join(f"<li>{escape(text)}</li>" for text in performance["differences"][:30])
    more = len(performance["differences"]) - 30
    rows += f"<li>and {more} more in the JSON</li>" if more > 0 else ""
    return (
        '<section class="banner" role="alert"><h2>Detector-visits do not add up: '
        f"{number(performance['expected']['detector_visits'])} expected, "
        f"{number(performance['sum_of_states'])} came to an end</h2><ul>{rows}</ul></section>"
    )


def verdict_cards(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """The limits of LSE-61, one card each."""
    return "".join(
        f'<div class="card v-{v["verdict"] or "none"}"><strong>'
        f"{percent(v['value'], 2) if v['metric'] in _SHARES else number(v['value'])}</strong>"
        f"<span>{escape(v['text'])}</span>{mark(v['verdict'])}</div>"
        for v in verdicts
    )


def missed_table(rows: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> str:
    """Detector-visits that are not done, by cause."""
    if not rows:
        return '<p class="quiet">Every detector-visit is done.</p>'
    cells = [
        (
            f'<i class="dot s-{escape(r["state"])}"></i>{escape(r["state"])}',
            f"<code>{escape(r['step'])}</code>",
            escape(r["cause"]),
            escape(_some([names.get(d, str(d)) for d in r["detectors"]], 4)),
            number(r["visits"]),
            number(r["n"]),
        )
        for r in rows[:40]
    ]
    return table(("State", "Step", "Cause", "Detectors", "Visits", "Detector-visits"), cells, 4)


def recovered_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Failures that cost nothing, and how."""
    cells = [(escape(r["how"]), escape(r["what"]), number(r["n"])) for r in rows]
    return table(("How", "What", "Count"), cells, 2) if cells else '<p class="quiet">There was none to recover.</p>'


def left_out_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Optional work that gave way to the deadline."""
    what = {"shed": "left out", "late": "in a later batch"}
    cells = [(escape(what[r["kind"]]), escape(r["step"]), escape(r["cause"]), number(r["n"])) for r in rows]
    return table(("What", "Step", "Why", "Count"), cells, 3) if cells else _NOTHING


def alerts_table(alerts: Mapping[str, int]) -> str:
    """Alerts by what became of them."""
    return table(("Alerts", "Count"), [(escape(k.replace("_", " ")), number(v)) for k, v in alerts.items()])


def completeness_table(found: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """Fakes found of those injected, by predicted S/N, and what else they tell."""
    if not found:
        return '<p class="quiet">No fakes were injected (configuration injection.per_ccd).</p>'
    names = [n for n in found if n != "all"]
    edges = [n.removeprefix("snr") for n in names]
    labels = {n: f"S/N {a} to {b}" for n, a, b in zip(names, edges, edges[1:], strict=False)}
    labels |= {names[-1]: f"S/N above {edges[-1]}"} if names else {}
    cells = [
        (
            labels.get(name, "all"),
            f'<span class="bar"><b style="width:{100 * c["completeness"]:.1f}%"></b></span>',
            percent(c["completeness"]),
            number(c["found"]),
            number(c["n"]),
        )
        for name, c in found.items()
    ]
    more = [
        (escape(metric_label(k)[0]), number(v, 4)) for k, v in score.items() if isinstance(v, int | float) and k != "n"
    ]
    told = table(("Fakes", ""), more) if more else ""
    return table(("Predicted", "", "Found", "Fakes found", "Fakes"), cells, 2) + told


def plots(quality: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    """PSF, zero point, sky and depth against time, by band."""
    rows = quality["visits"]
    bands = sorted({r["band"] for r in rows}, key=lambda b: BANDS.index(b) if b in BANDS else 9)
    shown = [against_time(timed(rows), name, label, limits.get(name), up) for name, (label, up) in _PLOTS.items()]
    body = "".join(shown) or '<p class="quiet">Nothing was measured.</p>'
    return f'<div class="legend">{band_legend(bands)}</div><div class="plots">{body}</div>'


def timed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of visits with their hour: of the day they began on, so that it goes on rising past midnight."""
    days = [r["mjd_mid_tai"] for r in rows if r["mjd_mid_tai"] is not None]
    day = int(min(days)) if days else 0
    return [{**r, "time_h": None if r["mjd_mid_tai"] is None else (r["mjd_mid_tai"] - day) * 24} for r in rows]


def visits_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every visit with its medians, coloured by verdict."""
    names = [n for n in _VISIT_COLUMNS if any(n in r["median"] for r in rows)]
    cells = [
        (
            str(r["visit"]),
            escape(r["band"]),
            mark("" if r["n_done"] == r["n_detectors"] else "warning", f"{r['n_done']} / {r['n_detectors']}"),
            number(r["n_alerts"]),
            *(mark(r["verdict"].get(n, ""), number(r["median"].get(n), 4)) for n in names),
        )
        for r in rows
    ]
    labels = [", ".join(part for part in metric_label(n) if part) for n in names]
    return table(("Visit", "Band", "Done", "Alerts", *labels), cells, 2)


def metrics_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every metric that is stored, with its range and how many values are outside."""
    cells = [
        (
            f'<code title="{escape(r["text"])}">{escape(r["metric"])}</code> {escape(r["band"])}',
            escape(r["action"]),
            mark(r["verdict"]) or "–",
            number(r["n"]),
            *(number(r[k], 4) for k in ("min", "median", "max")),
            escape(r["unit"]),
            span(r["warning"]),
            number(r["n_warning"]),
            span(r["alert"]),
            number(r["n_alert"]),
        )
        for r in rows
    ]
    head = (
        "Metric",
        "Action",
        "Worst",
        "n",
        "min",
        "median",
        "max",
        "",
        "Acceptable",
        "Warnings",
        "No Alert",
        "Alerts",
    )
    return table(head, cells, 3)


def out_of_range_table(rows: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> str:
    """Metrics that are somewhere not Acceptable, and where they are worst."""
    if not rows:
        return '<p class="quiet">Every metric is Acceptable everywhere.</p>'
    cells = []
    for r in rows:
        places = ", ".join(
            f"{number(p['value'], 3)} ({escape(names.get(p['detector'], str(p['detector'])))}, {p['visit'] % 100_000})"
            for p in r["worst"][:3]
        )
        label, unit = metric_label(r["metric"])
        cells.append(
            (
                mark("alert" if r["n_alert"] else "warning", escape(f"{label} {r['band']}".strip())),
                escape(unit),
                places,
                number(r["n_warning"]),
                number(r["n_alert"]),
                number(r["n"]),
                number(r["median"], 4),
                span(r["warning"]),
                span(r["alert"]),
            )
        )
    head = (
        "Metric",
        "",
        "Worst (CCD, sequence number)",
        "Warnings",
        "Alerts",
        "of",
        "Median",
        "Acceptable",
        "No Alert",
    )
    return table(head, cells, 3)


def worst_detectors(rows: Sequence[Mapping[str, Any]], names: Mapping[int, str], stamps: Mapping[int, str]) -> str:
    """Detectors with most trouble, why, and some of what they found."""
    if not rows:
        return '<p class="quiet">No detector stands out.</p>'
    parts = []
    for r in rows:
        why = ", ".join(f"{escape(metric_label(k)[0])} ({n})" for k, n in r["metrics"].items())
        counts = [f"{r[k]} {k}" for k in ("missed", "alerts", "warnings") if r[k]]
        parts.append(
            f'<div class="worst"><h3>{escape(names.get(r["detector"], str(r["detector"])))} '
            f'<span class="quiet">detector {r["detector"]}, {r["visits"]} visits: {", ".join(counts)}</span></h3>'
            f"<p>{why}</p><div class='gallery'>{stamps.get(r['detector'], '')}</div></div>"
        )
    return "".join(parts)


def calibrations_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Calibration exposures of the night, their verdicts and what was wrong."""
    if not rows:
        return '<p class="quiet">No calibration exposure was checked this night.</p>'
    cells = [
        (
            escape(r["image"]),
            escape(r["intent"]),
            mark(r["verdict"]) or "not checked",
            escape("; ".join(r["remarks"][:4])),
            *(number(r["detectors"].get(v, 0)) for v in ("acceptable", "warning", "alert")),
            f"{number(r['n_done'])} / {number(r['n_detectors'])}",
        )
        for r in rows
    ]
    return table(("Exposure", "Intent", "Verdict", "Why", "Acceptable", "Warning", "Alert", "Checked"), cells, 4)


def span(pair: Sequence[float | None] | None) -> str:
    """A range, low to high, open where it has no end."""
    if pair is None:
        return "–"
    low, high = pair
    if low is None or high is None:
        return f"≥ {number(low)}" if high is None else f"≤ {number(high)}"
    return f"{number(low)} to {number(high)}"


def _some(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
