"""``apflow night`` from start to stop on a real cluster, with each of its processes killed in the middle of a visit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from apflow.config import load_config, to_toml
from apflow.config_tables import Calibrate, Night, Timing
from apflow.errors import BadRequest
from apflow.io.records import night_folder, read_records
from apflow.logs import parse
from apflow.model.ids import day_obs_of
from apflow.model.visit import Visit
from apflow.operate.listen.start import Request
from apflow.operate.night.begin import cluster_request, prepared_folder
from apflow.operate.night.end import end_night
from apflow.operate.night.folder import chosen_night, is_supervised, load_request, supervising
from apflow.operate.prepare import simulation_pool
from apflow.simulate.scenario import Scenario
from tests.field import Field, land, make_field
from tests.operate.command import apflow
from tests.operate.listening import next_visit, start_integration

SCENARIO = Scenario(camera="comcam", nvisits=6, detectors=(3, 4), cadence_s=0.0)
LISTENS_S = 120.0


@dataclasses.dataclass
class Running:
    """A night under way in the background."""

    field: Field
    events: Path

    @property
    def root(self) -> str:
        return str(self.field.root)

    @property
    def folder(self) -> Path:
        return night_folder(self.field.root, day_obs_of(self.field.visits[0].visit))

    def start(self, *more: str) -> subprocess.CompletedProcess[str]:
        words = ["night", "start", "--butler", self.root, "--detectors", "3,4", "--workers", "1"]
        return apflow(*words, "--file", str(self.events), "--night", self.folder.name, "--detach", *more)

    def tell(self, *records: tuple[str, dict[str, Any]]) -> None:
        with self.events.open("a") as file:
            file.writelines(json.dumps({"event": kind, **record}) + "\n" for kind, record in records)

    def announce(self, visit: Visit) -> None:
        self.tell(("nextVisit", next_visit(visit)), ("startIntegration", start_integration(visit)))

    def status(self) -> dict[str, Any]:
        told = apflow("night", "status", "--butler", self.root, "--json")
        assert told.returncode in (0, 3), told.stderr
        found: dict[str, Any] = json.loads(told.stdout)
        return found

    def pid(self, name: str) -> int:
        told = json.loads((self.folder / "night.json").read_text())
        return int(told["pid"] if name == "supervisor" else told["children"][name]["pid"])

    def kinds(self, kind: str, visit: int | None = None) -> list[str]:
        """Outcomes of the records of a kind."""
        return [r.outcome for r in read_records(self.folder)[0] if r.kind == kind and r.visit == visit]

    def started(self, visit: Visit) -> bool:
        return bool(self.kinds("visit", visit.visit))

    def until_ended(self, visit: Visit) -> None:
        wait(lambda: bool(self.kinds("visit_ended", visit.visit)), f"visit {visit.visit} ends")


def wait(is_so: Callable[[], bool], what: str, timeout_s: float = 150.0) -> None:
    until = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < until, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    with simulation_pool(2) as pool:
        return make_field(tmp_path_factory.mktemp("night") / "butler", SCENARIO, pool)


@contextlib.contextmanager
def running(field: Field, root: Path) -> Iterator[Running]:
    """A night in a copy of the field's repository; nothing of it is left afterwards."""
    shutil.copytree(field.root, root)
    config = dataclasses.replace(load_config(root / "apflow.toml"), night=Night(catch_up_after_s=0.5))
    (root / "apflow.toml").write_text(to_toml(config))
    player = dataclasses.replace(field.player, staging=root / "staged", landing=root / "landing")
    mine = dataclasses.replace(field, root=root, player=player, config=dataclasses.replace(config, butler=str(root)))
    night = Running(mine, root / "events.jsonl")
    night.events.touch()
    try:
        yield night
    finally:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(night.folder) in " ".join(process.cmdline()):
                    process.kill()


def test_a_night_loses_nothing_whatever_dies(field: Field, tmp_path: Path) -> None:
    with running(field, tmp_path / "butler") as night:
        begin = night.start()
        assert begin.returncode == 0, begin.stderr
        assert "listening for LSSTComCam" in begin.stdout
        assert night.status()["running"]
        again = night.start()
        assert again.returncode == 2
        assert "runs already" in again.stderr

        victims: dict[str, Callable[[], int]] = {
            "worker": lambda: worker_of(night.pid("holder")),
            "holder": lambda: night.pid("holder"),
            "driver": lambda: night.pid("driver"),
            "supervisor": lambda: night.pid("supervisor"),
        }
        calm, *visits = night.field.visits
        night.announce(calm)
        land(night.field, calm)
        night.until_ended(calm)
        said = apflow("night", "logs", "--butler", night.root, "--visit", str(calm.visit), "--detector", "R22_S10")
        lines = [parse(text) for text in said.stdout.splitlines()]
        assert lines, said.stderr
        assert {(line.visit, line.detector, line.process) for line in lines if line} == {(calm.visit, 3, "ccd-0")}
        for visit, (name, pid) in zip(visits, victims.items(), strict=False):
            night.announce(visit)
            wait(lambda visit=visit: night.started(visit), f"visit {visit.visit} starts")  # type: ignore[misc]
            os.kill(pid(), signal.SIGKILL)
            land(night.field, visit)
            if name == "supervisor":
                wait(lambda: not night.status()["running"], "the lock of a dead supervisor is free")
                assert night.start().returncode == 0
            night.until_ended(visit)

        last = visits[-1]
        night.announce(last)
        wait(lambda: night.started(last), "the last visit starts")
        land(night.field, last)
        stop = apflow("night", "stop", "--butler", night.root)  # drains: the visit that is under way ends
        assert stop.returncode == 0, stop.stderr
        assert not night.status()["running"]
        assert "12 detector-visits expected: 12 done" in stop.stdout
        assert (night.folder / "report").is_dir()

        ledger = night.field.table("ledger")
        assert set(ledger["state"]) == {"done"}
        assert len(ledger) == 12
        assert night.field.table("DiaSource")["diaSourceId"].is_unique
        assert night.kinds("cluster").count("lost") == 1
        assert "recovered" in night.kinds("cluster")
        assert {"lost", "resumed", "start", "stop"} <= set(night.kinds("night"))


def worker_of(holder: int) -> int:
    """The process that computes: the holder's child that Dask spawned for the first worker."""
    children = [c for c in psutil.Process(holder).children(recursive=True) if "spawn_main" in " ".join(c.cmdline())]
    return max(children, key=lambda c: c.cpu_times().user).pid


def test_what_was_missed_and_what_failed_is_processed_again(field: Field, tmp_path: Path) -> None:
    with running(field, tmp_path / "butler") as night:
        first, second = night.field.visits[:2]
        configure(night, Timing(image_timeout_s=5.0))
        assert night.start("--tls").returncode == 0
        assert json.loads((night.folder / "cluster.json").read_text())["address"].startswith("tls://")
        integration = start_integration(first) | {"exposureTime": 1.0}  # the wait for an image begins at its end
        night.tell(("nextVisit", next_visit(first)), ("startIntegration", integration))
        night.field.player.land(first, 4)
        night.until_ended(first)
        assert states(night) == {(first.visit, 3): "image_timeout", (first.visit, 4): "done"}
        night.field.player.land(first, 3)
        told = apflow("night", "catchup", "--butler", night.root)
        assert told.returncode == 0, told.stderr
        assert "1 detectors of 1 visits were given to the night" in told.stdout
        wait(lambda: set(states(night).values()) == {"done"}, "the detector is done")
        assert apflow("night", "stop", "--butler", night.root).returncode == 0
        assert not list((night.folder / "orders").glob("*"))

        configure(night, Calibrate(min_stars=100_000))
        assert night.start().returncode == 0
        night.announce(second)
        land(night.field, second)
        night.until_ended(second)
        assert apflow("night", "stop", "--butler", night.root).returncode == 0
        failed = {(second.visit, detector): "bad_data" for detector in (3, 4)}
        assert states(night).items() >= failed.items()
        configure(night, Calibrate())
        other = apflow("night", "reprocess", "--failed", "--cause", "no such cause", "--butler", night.root)
        assert other.returncode == 2
        assert "no such detectors" in other.stderr
        here = apflow("night", "reprocess", "--failed", "--cause", "stars", "--butler", night.root)
        assert here.returncode == 0, here.stderr
        assert f"visit {second.visit}: 2 done" in here.stdout
        assert set(states(night).values()) == {"done"}


def configure(night: Running, *tables: Any) -> None:
    """Change tables of the repository's configuration."""
    path = night.field.root / "apflow.toml"
    path.write_text(to_toml(dataclasses.replace(load_config(path), **{type(t).__name__.lower(): t for t in tables})))


def states(night: Running) -> dict[tuple[int, int], str]:
    """States of the ledger by visit and detector."""
    ledger = night.field.table("ledger")
    rows = zip(ledger["visit"].tolist(), ledger["detector"].tolist(), ledger["state"].tolist(), strict=True)
    return {(visit, detector): state for visit, detector, state in rows}


def test_bad_requests(field: Field, tmp_path: Path) -> None:
    root = str(field.root)
    folder = tmp_path / "nights" / "20200101"
    folder.mkdir(parents=True)

    def cluster(**change: Any) -> None:
        asked = {"kind": "local", "workers": 1, "gather_workers": 1, "memory": "1GiB", "tls": False}
        asked |= {"dashboard": "127.0.0.1:0", "options": {}}
        cluster_request(Request(root), folder, **(asked | change))

    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: prepared_folder(root, "", "decam"), "--camera decam"),
        (lambda: prepared_folder(root, "tonight", ""), "YYYYMMDD"),
        (lambda: prepared_folder(str(tmp_path), "", ""), "apflow init"),
        (lambda: cluster(kind="mesos"), "mesos"),
        (lambda: cluster(memory="much"), "much"),
        (lambda: cluster(options={"queue": "a"}), "queue"),
        (lambda: chosen_night(tmp_path, "19700101"), "one of 20200101"),
        (lambda: chosen_night(folder, ""), "no nights yet"),
        (lambda: load_request(folder), "request.json"),
        (lambda: end_night(folder, 1.0, print), "does not run"),
    ]
    for call, text in cases:
        with pytest.raises(BadRequest, match=text):
            call()


def test_only_one_supervises(tmp_path: Path) -> None:
    assert not is_supervised(tmp_path)
    with supervising(tmp_path):
        assert is_supervised(tmp_path)
        with pytest.raises(BadRequest, match="runs already"), supervising(tmp_path):
            pass
    assert not is_supervised(tmp_path)
