"""Files in the folder of a night, ``REPO/nights/<day_obs>``, by which its processes know of one another."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apflow.errors import BadRequest, ServiceError
from apflow.io.records import night_folder
from apflow.operate.listen.start import Request

#: What ``apflow night start`` was asked for; the cluster is in `apflow.cluster.holder.REQUEST`.
REQUEST = "request.json"
#: The supervisor's word: pids, starts, since when.
NIGHT = "night.json"
#: The driver's: that it listens.
DRIVER = "driver.json"
#: There when the night is to end in good order.
STOP = "stop"
#: Visits that are to be processed again, a file a request.
ORDERS = "orders"
LOGS = "logs"
_LOCK = "supervisor.lock"
#: Who only looks whether a night runs holds the lock for a moment.
_LOCK_TRIES, _LOCK_PAUSE_S = 20, 0.05


def write_json(path: Path, values: Any) -> None:
    """Write a file that is there whole or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(json.dumps(values, indent=1) + "\n")
    new.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; empty where there is no such file."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ServiceError(f"{path} cannot be read: {error}") from error
    return found


@dataclass(frozen=True)
class Order:
    """Visits to be processed again: those of their detectors that are not done.

    `idle` ones wait until nothing came for a while, and step aside for a visit.
    """

    visits: tuple[dict[str, Any], ...]
    idle: bool = False
    reason: str = ""

    def leave(self, folder: Path) -> None:
        """Write it where the night's driver looks."""
        (folder / ORDERS).mkdir(parents=True, exist_ok=True)
        write_json(folder / ORDERS / f"{time.time_ns()}.json", dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> Order:
        """Read one."""
        found = read_json(path)
        return cls(tuple(found["visits"]), found["idle"], found["reason"])


def save_request(folder: Path, request: Request) -> None:
    """Write what the driver is to do."""
    write_json(folder / REQUEST, dataclasses.asdict(request))


def load_request(folder: Path) -> Request:
    """Read it.

    Raises
    ------
    BadRequest
        The folder is no night's.
    """
    found = read_json(folder / REQUEST)
    if not found:
        raise BadRequest(f"{folder} has no {REQUEST}; accepted: the folder of a night that was started")
    return Request(**found)


@contextlib.contextmanager
def supervising(folder: Path) -> Iterator[None]:
    """Be the only supervisor of a night.

    Raises
    ------
    BadRequest
        Another one is.
    """
    file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for last in [False] * (_LOCK_TRIES - 1) + [True]:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    pid = read_json(folder / NIGHT).get("pid", "?")
                    raise BadRequest(f"night {folder.name} runs already (pid {pid}); see apflow night status") from None
                time.sleep(_LOCK_PAUSE_S)
        yield
    finally:
        os.close(file)


def is_supervised(folder: Path) -> bool:
    """Whether a supervisor lives."""
    try:
        file = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def chosen_night(butler: str | Path, night: str) -> Path:
    """The folder of a night of a repository by its day of observation, or of the newest (``latest``, empty).

    Raises
    ------
    BadRequest
        There is no such night.
    """
    known = sorted(int(p.name) for p in (Path(butler) / "nights").glob("*") if p.name.isdigit() and p.is_dir())
    if night in ("", "latest"):
        if not known:
            raise BadRequest(f"{butler} has no nights yet; accepted: a repository that apflow night start was given")
        return night_folder(butler, known[-1])
    if not night.isdigit() or int(night) not in known:
        listed = ", ".join(map(str, known[-5:])) or "none yet"
        raise BadRequest(f"night {night!r} of {butler} is not accepted: latest, or one of {listed}")
    return night_folder(butler, int(night))
