"""``apflow listen`` under way, as a process of its own."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

import psutil

from apflow.model.visit import Visit
from apflow.operate.listen.desk import TAI_MINUS_UTC_S
from apflow.simulate.scenario import Scenario
from tests.operate.command import APFLOW


def next_visit(visit: Visit, **change: Any) -> dict[str, Any]:
    """nextVisit of a simulated visit; calibs are valid when it begins."""
    return {
        "groupId": visit.group,
        "coordinateSystem": 2,
        "position": [visit.ra_deg, visit.dec_deg],
        "startTime": (Scenario.start_mjd_tai - 40587.0) * 86_400.0,
        "rotationSystem": 2,
        "cameraAngle": visit.rotation_deg,
        "filters": visit.physical_filter,
        "dome": 2,
        "duration": 34.0,
        "nimages": visit.nsnaps,
        "instrument": visit.instrument,
        "survey": "BLOCK-365",
        "private_sndStamp": time.time() + TAI_MINUS_UTC_S,
    } | change


def start_integration(visit: Visit) -> dict[str, Any]:
    """startIntegration of a simulated visit of one snap."""
    return {
        "imageName": visit.images[0],
        "exposureTime": 30.0,
        "imagesInSequence": 1,
        "imageIndex": 1,
        "additionalKeys": "imageType:groupId",
        "additionalValues": f"OBJECT:{visit.group}",
    }


class Listening:
    """The command under way; ``with`` ends it by SIGTERM."""

    def __init__(self, root: Path, *options: str) -> None:
        words = [APFLOW, "listen", "--butler", str(root), "--detectors", "3,4", "--workers", "1", *options]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.told: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            line = self.until("listening for LSSTComCam")
        except BaseException:
            self.kill()
            raise
        self.url = line.partition(": ")[2].partition(";")[0].split(", ")[-1]  # of the last door

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip())
        self.lines.put(None)

    def until(self, text: str, timeout_s: float = 240.0) -> str:
        """The next line that holds a text."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self.lines.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"{text!r} was not told: {self.told}"
            self.told.append(line)
            if text in line:
                return line

    def post(self, kind: str, record: dict[str, Any]) -> int:
        """Status of a POST."""
        request = urllib.request.Request(f"{self.url}/{kind}", json.dumps(record).encode(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def kill(self) -> None:
        """kill -9 of all its processes, at once."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGKILL)
        for child in children:
            if child.is_running():
                child.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                assert self.process.wait(timeout=40) == 0, "SIGTERM ends it in good order"
            finally:
                if self.process.poll() is None:
                    self.kill()
        self._reader.join(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()


def journal(root: Path) -> list[dict[str, Any]]:
    """What a service wrote down."""
    return [json.loads(line) for f in (root / "invocations").glob("*.jsonl") for line in f.read_text().splitlines()]
