"""A scheduler that someone else runs: nothing is started, but looked at."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from distributed import Client
from distributed.versions import VersionMismatchWarning

from apflow.errors import ServiceError

from . import tls
from .client import TidyClient
from .kinds import Running
from .request import ClusterRequest

_TIMEOUT_S = 5.0
#: Packages that have to be of one release everywhere, and those where steps run.
_SAME = ("python", "dask", "distributed", "cloudpickle")
_SAME_IN_WORKERS = ("numpy", "apflow")


def existing(request: ClusterRequest) -> Running:
    """Connect once to `request.kind`, and compare versions and roles with what a night needs.

    Raises
    ------
    ServiceError
        It cannot be reached, versions differ, or gather workers are there and compute workers are not.
    """
    files = {name: str(path) for name, path in request.options.items()}
    security = tls.security_of(files) if files else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # told below, as an error where it matters
            client = TidyClient(request.kind, security, _TIMEOUT_S)
    except (OSError, TypeError, ValueError) as error:
        raise ServiceError(
            f"scheduler {request.kind} could not be reached within {_TIMEOUT_S:g} s ({error}); accepted: the address "
            "of a Dask scheduler that runs, for tls:// with the options ca_file, cert and key"
        ) from error
    with client:
        _check_versions(request.kind, client)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        roles = {role for worker in workers for role in worker["resources"]}
        if "gather" in roles and not any("gather" not in w["resources"] for w in workers):
            raise ServiceError(
                f"scheduler {request.kind} has {len(workers)} workers, all with the resource 'gather'; accepted: "
                "workers with the resource 'compute' too (dask worker --resources compute=1)"
            )
        return Running(request.kind, security, client.dashboard_link, files)


def _check_versions(address: str, client: Client) -> None:
    told: Any = client.get_versions(packages=["apflow"])
    mine = _releases(told["client"])
    for who, theirs in [("scheduler", told["scheduler"]), *told["workers"].items()]:
        found = _releases(theirs)
        for package in _SAME if who == "scheduler" else (*_SAME, *_SAME_IN_WORKERS):
            if found[package] != mine[package]:
                raise ServiceError(
                    f"{who} of {address} has {package} {found[package]}; accepted: {mine[package]}, as here"
                )


def _releases(told: Mapping[str, Any]) -> dict[str, str | None]:
    packages = told["packages"]
    found = {package: packages.get(package) for package in (*_SAME, *_SAME_IN_WORKERS)}
    return found | {"python": ".".join(packages["python"].split(".")[:2])}  # what is pickled is of a minor release
