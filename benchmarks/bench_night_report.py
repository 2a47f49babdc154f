"""The report of a night of a whole focal plane: time, memory and size, on made-up records.

python benchmarks/bench_night_report.py [--visits 1000] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path

from apflow.config import Config
from apflow.io.records import RECORDS_FILE, Records, iterate_records
from apflow.model.camera import load_camera
from apflow.operate.night.ranges import load_ranges
from apflow.operate.night.report_figures import performance
from apflow.operate.night.report_page import page
from apflow.operate.night.report_quality import quality
from apflow.operate.night.report_tables import collect
from apflow.operate.summary import machine
from apflow.simulate.night_records import made_up_night

_DAY_OBS = 20260401
_LINES = 10_000


def main() -> None:
    """Write the records, read them, make the figures and the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--visits", type=int, default=1000)
    parser.add_argument("--page", type=Path, help="keep the page there")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    camera, ranges, limit_s = load_camera("lsstcam"), load_ranges(), Config().fleet.latency_s
    with tempfile.TemporaryDirectory() as folder:
        n, wait = 0, []
        with Records(folder) as records:
            for record in made_up_night(camera, camera.select("science"), arguments.visits, _DAY_OBS):
                wait.append(record)
                if len(wait) == _LINES:
                    n += len(wait)
                    records.append(*wait)
                    wait = []
            records.append(*wait)
            n += len(wait)
        size = (Path(folder) / RECORDS_FILE).stat().st_size
        marks = [time.monotonic()]
        tables = collect(record for record, _ in iterate_records(folder))
        marks.append(time.monotonic())
    ran = performance(tables, limit_s, ranges, {}, None)
    told = {**quality(tables, ranges), "score": {}}
    marks.append(time.monotonic())
    report = {
        "instrument": camera.instrument,
        "day_obs": _DAY_OBS,
        "performance": ran,
        "quality": told,
        "calibration": {"exposures": []},
        "sources": {},
        "versions": {},
        "machine": machine(),
    }
    html = page(report, tables, camera, ranges, {}, limit_s)
    marks.append(time.monotonic())
    if arguments.page:
        arguments.page.write_text(html, encoding="utf-8")
    read, figures, made = (b - a for a, b in itertools.pairwise(marks))
    for name, value, unit in (
        ("report.visits", arguments.visits, "visits"),
        ("report.detector_visits", ran["sum_of_states"], "detector-visits"),
        ("report.records", n, "records"),
        ("report.records_size", size / 1e6, "MB"),
        ("report.read", read, "s"),
        ("report.figures", figures, "s"),
        ("report.page", made, "s"),
        ("report.page_size", len(html.encode()) / 1e6, "MB"),
        ("report.peak_memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"),
    ):
        figure = {"name": name, "value": round(value, 3), "unit": unit}
        print(json.dumps(figure) if arguments.json else f"{name:<26} {value:>12.2f} {unit}")


if __name__ == "__main__":
    main()
