"""What the dashboard of a night costs its scheduler: a focal plane with a visit every 37 s, one browser open.

python benchmarks/bench_dashboard.py [--visits 4] [--before 300] [--browser chromium] [--json]

A scheduler runs in a process of its own three times, each with the same records being written to its night: without the
dashboard, with it, and with it open in a browser. The night has a history already; its records are read before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from apflow.io.records import Records, night_folder
from apflow.model.camera import load_camera
from apflow.model.record import Record
from apflow.simulate.night_records import made_up_night

_DAY_OBS, _CADENCE_S, _LIMIT = 20260401, 37.0, 5.0
_PRELOAD = "apflow.operate.dashboard.preload"
#: A scheduler at rest takes 2 % of a core, one that reads a night from its begin half of one.
_SETTLE_S, _AT_REST = 4.0, 0.06


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--visits", type=int, default=4, help="while it is measured")
    parser.add_argument("--before", type=int, default=300, help="visits of the night before")
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    bare, _ = _cost(arguments, None, is_open=False)
    closed, _ = _cost(arguments, _PRELOAD, is_open=False)
    opened, memory = _cost(arguments, _PRELOAD, is_open=True)
    for name, value, unit, limit in (
        ("dashboard.scheduler_alone", bare, "% of a core", None),
        ("dashboard.no_browser", closed - bare, "% of a core", _LIMIT),
        ("dashboard.one_browser", opened - bare, "% of a core", _LIMIT),
        ("dashboard.scheduler_memory", memory, "MiB", None),
    ):
        figure = {"name": name, "value": round(value, 3), "unit": unit}
        if limit is not None:
            figure |= {"peer": "limit", "peer_value": limit, "ratio": round(value / limit, 3)}
        print(json.dumps(figure) if arguments.json else f"{name:<28} {value:>8.2f} {unit}")


def _cost(arguments: argparse.Namespace, preload: str | None, *, is_open: bool) -> tuple[float, float]:
    """CPU of the scheduler's process, % of a core, while visits come; and its memory, MiB."""
    with tempfile.TemporaryDirectory() as root:
        folder = night_folder(root, _DAY_OBS)
        camera = load_camera("lsstcam")
        made = made_up_night(camera, camera.select("science"), arguments.before + arguments.visits + 2, _DAY_OBS)
        records = sorted(made, key=lambda r: r.unix)
        first = [r.unix for r in records if r.kind == "visit"][arguments.before]
        with Records(folder) as file, _scheduler(folder, preload) as (process, url):
            past = next(i for i, r in enumerate(records) if r.unix > first)
            file.append(*records[:past])
            with _browser(arguments.browser, f"{url}/apflow") if is_open else contextlib.nullcontext():
                _settle(process)
                before, begun = sum(process.cpu_times()[:2]), time.monotonic()
                _write(file, records[past:], first, arguments.visits * _CADENCE_S)
                spent = sum(process.cpu_times()[:2]) - before
                cost = 100 * spent / (time.monotonic() - begun)
                # Nobody else is connected: there are neither workers nor clients.
                is_connected = any(c.status == psutil.CONN_ESTABLISHED for c in process.net_connections())
                assert is_connected == is_open, f"{is_connected = }"
            return cost, process.memory_info().rss / 2**20


def _settle(process: psutil.Process) -> None:
    """Wait until it has read what there is."""
    last = -1.0
    while (now := sum(process.cpu_times()[:2])) - last > _AT_REST * _SETTLE_S:
        last = now
        time.sleep(_SETTLE_S)


def _write(file: Records, records: Sequence[Record], first: float, seconds: float) -> None:
    """As a driver does, twice a second."""
    begun, done = time.monotonic(), 0
    while (at := time.monotonic() - begun) < seconds:
        upto = done
        while upto < len(records) and records[upto].unix - first <= at:
            upto += 1
        file.append(*records[done:upto])
        done = upto
        time.sleep(0.5)


@contextlib.contextmanager
def _scheduler(folder: Path, preload: str | None) -> Iterator[tuple[psutil.Process, str]]:
    told = folder / "scheduler.json"
    words = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(told)]
    words += ["--dashboard-address", "127.0.0.1:0", *(["--preload", preload] if preload else [])]
    environment = os.environ | {"DASK_APFLOW__NIGHT_FOLDER": str(folder)}
    with subprocess.Popen([sys.executable, "-m", *words], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            while not told.exists():
                time.sleep(0.1)
            port = json.loads(told.read_text())["services"]["dashboard"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                answer.read()
            yield psutil.Process(process.pid), f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextlib.contextmanager
def _browser(name: str, url: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [name, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", url]
        process = subprocess.Popen([*words, "--remote-debugging-port=0"], stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
