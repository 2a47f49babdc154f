"""What ``apflow listen`` puts together: doors, landing folder, cluster, service."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from astropy.time import Time
from distributed import Client

from apflow.config import Config
from apflow.errors import BadRequest, ServiceError
from apflow.io.arrivals import Ingestor
from apflow.io.kafka.embedded import embedded
from apflow.io.next_visit import Door, HttpDoor, KafkaDoor, LinesDoor
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.model.camera import Camera, load_camera
from apflow.model.visit import Visit
from apflow.operate.deliver import Delivery
from apflow.operate.detector import outcomes_of
from apflow.operate.listen.desk import Desk
from apflow.operate.listen.journal import Journal
from apflow.operate.listen.rules import load_rules
from apflow.operate.listen.runs import GRAPHS, Runs
from apflow.operate.listen.service import Service
from apflow.operate.local_run import CORES, MAX_WORKERS, runner_of, workers_here
from apflow.operate.night.recorder import Recorder
from apflow.operate.recover import recover
from apflow.operate.repository import repository_config

#: Modules that workers import while they start.
WARM_UP = tuple(graph.__module__ for graph in GRAPHS.values())
#: Beyond the wait for its images, a visit or calibration has this long, seconds, even on a machine that is small for
#: it: 25 calibrations of the focal plane in a row may take 1200 s (LSE-61, DMS-REQ-0131), and others go before them.
_DEADLINE_S = 1800.0


@dataclass(frozen=True)
class Request:
    """What ``apflow listen`` was asked for; see its help."""

    butler: str
    kafka: bool = False
    file: str = ""
    follow: bool = False
    stdin: bool = False
    http: str = ""
    landing: str = ""
    detectors: str = "science"
    workers: int = 0
    ppdb: str = ""
    alerts: str = ""
    rules: str = ""
    image_timeout_s: float | None = None
    day_obs: int = 0  # night to which belongs what is about no visit; 0: that of the clock


@contextlib.contextmanager
def cluster_here(request: Request) -> Iterator[Client]:
    """The cluster of ``apflow listen``: on this machine, as long as the service."""
    workers = request.workers or CORES
    with workers_here(workers, WARM_UP) as client:
        client.wait_for_workers(workers + 1, timeout=60)
        yield client


def listen(
    request: Request,
    tell: Callable[[str], None],
    cluster: Callable[[Request], contextlib.AbstractContextManager[Client]] = cluster_here,
    look: Callable[[Service], None] = lambda service: None,
) -> None:
    """Serve until interrupted, or until a file or standard input ended and all is done.

    Parameters
    ----------
    tell : callable
        Called with a line for whoever watches.
    cluster : callable
        Gives the client of a cluster whose workers are there.
    look : callable
        Called often with the service; raises what ends it.

    Raises
    ------
    BadRequest
        A value is not acceptable, or another service listens for the repository.
    ServiceError
        Something that is needed cannot be reached.
    """
    if not 0 <= request.workers <= MAX_WORKERS:
        raise BadRequest(f"--workers {request.workers} is not accepted: 0 (one a core) to {MAX_WORKERS}")
    config = _config(request)
    camera = load_camera(config.camera, config.size)
    detectors = camera.select(request.detectors)
    rules = load_rules(config.invocation.rules, GRAPHS)
    now = time.time()
    desk = Desk(camera, config, rules, tai_minus_utc_s=float(Time(now, format="unix").unix_tai) - now)
    with (
        Journal(config.butler) as journal,
        embedded(config.kafka) as kafka,
        open_ppdb(config.ppdb_url, create=True) as ppdb,
        _doors(request, dataclasses.replace(config, kafka=kafka), camera) as doors,
        cluster(request) as client,
        Recorder(config.butler) as recorder,
    ):
        recorder.day = request.day_obs
        config = dataclasses.replace(config, kafka=kafka)
        deadline_s = config.timing.image_timeout_s + _DEADLINE_S
        _recover(ppdb, journal, config)
        ingestor = Ingestor(config.butler, request.landing or Path(config.butler) / "landing")

        def check(service: Service) -> None:
            ingestor.check()
            look(service)

        service = Service(desk, doors, journal, config, camera, check, tell)
        with (
            Delivery(ppdb, config) if kafka.bootstrap else contextlib.nullcontext(),
            runner_of(client, camera, config, deadline_s, recorder.event) as runner,
            ingestor,
        ):
            tell(f"listening for {camera.instrument}: {_described(doors)}; dashboard {client.dashboard_link}")
            service.run(Runs(runner, ppdb, config, journal, detectors, recorder, service.post_ended))


def _config(request: Request) -> Config:
    config = repository_config(request.butler, request.ppdb, request.alerts, request.image_timeout_s)
    own = config.invocation
    if request.rules:
        own = dataclasses.replace(own, rules=str(Path(request.rules).absolute()))
    elif own.rules:
        own = dataclasses.replace(own, rules=str(Path(config.butler) / own.rules))
    return dataclasses.replace(config, invocation=own)


@contextlib.contextmanager
def _doors(request: Request, config: Config, camera: Camera) -> Iterator[list[Door]]:
    """The doors that were asked for; closed, and left, at the end."""
    doors: list[Door] = []
    try:
        if request.file:
            doors.append(LinesDoor(request.file, follow=request.follow))
        if request.stdin:
            doors.append(LinesDoor.stdin())
        if request.http:
            doors.append(HttpDoor(request.http))
        if request.kafka:
            doors.append(KafkaDoor(config, camera.instrument))
        yield doors
    finally:
        for door in doors:
            door.close()
            if isinstance(door, KafkaDoor):
                door.leave()


def _described(doors: list[Door]) -> str:
    names = {LinesDoor: "lines", KafkaDoor: "Kafka"}
    told = [door.url if isinstance(door, HttpDoor) else names[type(door)] for door in doors]
    return ", ".join(told) or "images alone"


def _recover(ppdb: Ppdb, journal: Journal, config: Config) -> None:
    """Publish and register what an earlier service stored but did not bring to its end."""
    begun: dict[int, Visit] = journal.unfinished(time.time())
    if begun:
        outcomes = outcomes_of(ppdb, list(begun))
        with contextlib.suppress(ServiceError):  # alerts go on waiting in the outbox
            recover(ppdb, list(begun.values()), outcomes, config)
