"""The driver's way to the cluster of a night."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distributed import Client

from apflow.cluster.client import TidyClient
from apflow.cluster.holder import CLUSTER
from apflow.cluster.tls import security_of
from apflow.errors import ServiceError

#: Workers that a night cannot begin without, by role.
_NEEDED = {"compute": 1, "gather": 1}
_TRY_S = 5.0
_PAUSE_S = 0.2


@contextlib.contextmanager
def connect(
    night_folder: Path, *, deadline_s: float = 120.0, needed: Mapping[str, int] | None = None
) -> Iterator[Client]:
    """Connect to the cluster that `night_folder` tells of, and wait for its workers.

    ``cluster.json`` is read anew at each try: a holder that died leaves one
    behind, and the next one writes another.

    Parameters
    ----------
    night_folder : `pathlib.Path`
    deadline_s : `float`
        For all of it, seconds.
    needed : mapping, optional
        Workers to wait for, by role; default: one of each. Workers without a
        role (on a scheduler that is not apflow's) do for any.

    Raises
    ------
    ServiceError
        There is no cluster, its scheduler cannot be reached, or too few
        workers came.
    """
    until = time.monotonic() + deadline_s
    with _reached(night_folder / CLUSTER, until, deadline_s) as client:
        _wait(client, _NEEDED if needed is None else needed, until, deadline_s)
        yield client


def _reached(path: Path, until: float, deadline_s: float) -> TidyClient:
    cause = ""
    while True:
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            security = security_of(found["tls"]) if found["tls"] else None
            left = min(_TRY_S, max(0.1, until - time.monotonic()))
            return TidyClient(found["address"], security, left)
        except FileNotFoundError:
            cause = f"there is no {path}; accepted: the folder of a night whose cluster is up"
        except OSError as error:  # dask's timeouts are one
            cause = f"scheduler {found['address']} of {path} could not be reached: {error}"
        if time.monotonic() >= until:
            raise ServiceError(f"no cluster within {deadline_s:g} s: {cause}")
        time.sleep(_PAUSE_S)


def _wait(client: Client, needed: Mapping[str, int], until: float, deadline_s: float) -> None:
    address = client.scheduler_info()["address"]
    while True:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        count = {role: sum(not w["resources"] or role in w["resources"] for w in workers) for role in needed}
        if all(count[role] >= n for role, n in needed.items()):
            return
        if time.monotonic() >= until:
            assert client.scheduler is not None
            told = ", ".join(f"{count[role]} {role} (needed: {n})" for role, n in needed.items())
            raise ServiceError(f"too few workers at {address} within {deadline_s:g} s: {told}")
        time.sleep(_PAUSE_S)
