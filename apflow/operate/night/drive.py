"""The driver of a night, the service behind ``apflow listen`` on the night's cluster.

``python -m apflow.operate.night.drive NIGHT_FOLDER``; its supervisor starts it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from distributed import Client

from apflow.cluster.holder import CLUSTER
from apflow.errors import ApflowError, ServiceError
from apflow.logs import logging_of
from apflow.operate.interrupts import interruptible
from apflow.operate.listen.journal import target_from
from apflow.operate.listen.service import Service
from apflow.operate.listen.start import Request, listen
from apflow.operate.night.connect import connect
from apflow.operate.night.folder import DRIVER, ORDERS, STOP, Order, load_request, read_json, write_json

_log = logging.getLogger(__name__)
_BAD_REQUEST, _SERVICE = 2, 69
#: A scheduler that is not connected for so long is lost. Nothing that it knew is needed.
_LOST_S = 2.0
#: What runs is given up in good order within this, s, when the cluster is lost; then as by a kill.
_GIVE_UP_S = 5.0
_LOOK_S = 0.25


class Driver:
    """What the service's loop looks at: supervisor, cluster, stop and orders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parent = os.getppid()
        self._client: Client | None = None
        self._address = ""
        self._connected = self._looked = 0.0
        self._taken: set[Path] = set()
        self._told = False

    def cluster(self, request: Request) -> Any:
        """The night's cluster, as `listen` wants it."""
        return _Connected(self, self._folder)

    def connected(self, client: Client) -> None:
        """The client of the cluster that this driver works with."""
        self._client, self._connected = client, time.monotonic()
        self._address = str(read_json(self._folder / CLUSTER).get("address", ""))

    def look(self, service: Service) -> None:
        """Look around, at most every quarter of a second.

        Raises
        ------
        ServiceError
            The supervisor or the cluster is gone.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        if not self._told:
            write_json(self._folder / DRIVER, {"pid": os.getpid(), "unix": time.time()})
            self._told = True
        if os.getppid() != self._parent:
            raise ServiceError("the supervisor of the night is gone; accepted: one that lives (apflow night start)")
        self._look_at_cluster(now)
        if (self._folder / STOP).exists():
            service.drain()
        else:
            self._take_orders(service)

    def _look_at_cluster(self, now: float) -> None:
        assert self._client is not None
        if self._client.status == "running":
            self._connected = now
        told = read_json(self._folder / CLUSTER).get("address", self._address)
        if now - self._connected > _LOST_S or told != self._address:
            raise ServiceError(f"the scheduler {self._address} is gone; the night goes on with the next one")

    def _take_orders(self, service: Service) -> None:
        """Take what is to be processed again; a file goes when all of it has begun, so that the next driver knows."""
        found = sorted((self._folder / ORDERS).glob("*.json"))
        for path in found:
            if path not in self._taken:
                self._taken.add(path)
                take(Order.load(path), service)
        if self._taken and not service.n_later():
            for path in self._taken:
                path.unlink(missing_ok=True)
            self._taken.clear()


class _Connected:
    """`connect`, told to the driver."""

    def __init__(self, driver: Driver, folder: Path) -> None:
        self._driver, self._inner = driver, connect(folder)

    def __enter__(self) -> Client:
        client = self._inner.__enter__()
        self._driver.connected(client)
        return client

    def __exit__(self, *about: Any) -> Any:
        return self._inner.__exit__(*about)


def take(order: Order, service: Service) -> None:
    """Hand an order to the service."""
    for entry in order.visits:
        service.again(target_from(entry), entry["graph"], tuple(entry["detectors"]), order.reason, idle=order.idle)


def drive(folder: Path) -> None:
    """Serve the night of a folder until it is over.

    Raises
    ------
    BadRequest
        What was asked for is not acceptable.
    ServiceError
        Something that is needed is gone: to be started again.
    """
    driver = Driver(folder)

    def look(service: Service) -> None:
        try:
            driver.look(service)
        except ServiceError:
            watchdog = threading.Timer(_GIVE_UP_S, os._exit, [_SERVICE])
            watchdog.daemon = True
            watchdog.start()
            raise

    def tell(line: str) -> None:
        print(line, flush=True)
        _log.info("%s", line)

    listen(load_request(folder), tell, cluster=driver.cluster, look=look)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m apflow.operate.night.drive NIGHT_FOLDER")
    try:
        with interruptible(), logging_of("driver"):
            drive(Path(sys.argv[1]))
    except KeyboardInterrupt:
        pass
    except ApflowError as problem:
        print(f"error: {problem}", file=sys.stderr, flush=True)
        sys.exit(_SERVICE if isinstance(problem, ServiceError) else _BAD_REQUEST)
