"""Worker specifications of each kind, for Dask's `SpecCluster`."""

from __future__ import annotations

import shlex
import shutil
import sys
from importlib import resources
from logging import WARNING
from typing import Any

from distributed import Nanny
from distributed.security import Security

from apflow.errors import ServiceError

from .request import ClusterRequest

_PRELOAD = "apflow.cluster.preload"
#: Compute workers run one step at a time; a gather worker's second thread takes what the chains deliver.
_THREADS = {"compute": 1, "gather": 2}
#: A worker that finds no scheduler for so long ends, and its job with it.
_DEATH_TIMEOUT_S = 60
#: A host that does not answer three of these is dead.
_KEEPALIVE_S = 10
#: Of a job: logs and what Dask keeps for itself.
_DISK = "1GB"
_COMMANDS = {"slurm": "sbatch", "htcondor": "condor_submit"}


def worker_spec(request: ClusterRequest, security: Security | None) -> dict[str, Any]:
    """Workers ``ccd-0``, ``ccd-1``, ... with the resource ``compute`` and ``gather-0``, ... with ``gather``."""
    make = {"local": _local, "ssh": _ssh, "slurm": _batch, "htcondor": _batch}[request.kind]
    names = [("compute", f"ccd-{i}") for i in range(request.n_workers)]
    names += [("gather", f"gather-{i}") for i in range(request.gather_workers)]
    return {name: make(request, security, role, name, i) for i, (role, name) in enumerate(names)}


def require_commands(kind: str) -> None:
    """Look for what submits jobs.

    Raises
    ------
    ServiceError
        It is not on the PATH.
    """
    if kind in _COMMANDS and shutil.which(_COMMANDS[kind]) is None:
        raise ServiceError(
            f"cluster {kind} needs the command {_COMMANDS[kind]}, which is not on the PATH; "
            "accepted: a machine from which jobs can be submitted"
        )


def _common(request: ClusterRequest, role: str) -> dict[str, Any]:
    return {
        "nthreads": _THREADS[role],
        "memory_limit": request.memory_limit,
        "resources": {role: 1},
        "dashboard": False,
        "preload": [_PRELOAD, *request.warm_up],
    }


def _local(request: ClusterRequest, security: Security | None, role: str, name: str, index: int) -> dict[str, Any]:
    options = _common(request, role) | {"host": request.host or "127.0.0.1", "silence_logs": WARNING}
    if security:
        options |= {"security": security, "protocol": "tls://"}
    return {"cls": Nanny, "options": options}


def _ssh(request: ClusterRequest, security: Security | None, role: str, name: str, index: int) -> dict[str, Any]:
    # Settings, and with them the paths of the certificates, reach the host with the command.
    from .ssh import SshWorker

    hosts = request.options["hosts"]
    options = _common(request, role) | {"name": name, "death_timeout": _DEATH_TIMEOUT_S}
    if security:
        options |= {"protocol": "tls://"}
    return {
        "cls": SshWorker,
        "options": {
            "address": hosts[index % len(hosts)],
            "connect_options": {"keepalive_interval": _KEEPALIVE_S} | dict(request.options.get("connect", {})),
            "kwargs": options,
            "remote_python": request.options.get("python", sys.executable),
        },
    }


def _batch(request: ClusterRequest, security: Security | None, role: str, name: str, index: int) -> dict[str, Any]:
    """A job with one worker in it; the certificates are read from their folder, which all nodes see."""
    settings_file = shlex.quote(str(resources.files(__package__) / "dask.yaml"))
    extra = ["--resources", f"{role}=1", "--no-dashboard", "--preload", _PRELOAD]
    for module in request.warm_up:
        extra += ["--preload", module]
    given = request.options
    options: dict[str, Any] = {
        "cores": _THREADS[role],
        "processes": 1,
        "memory": request.memory_limit,
        "security": security,
        "protocol": "tls://" if security else None,
        "python": given.get("python", sys.executable),
        "worker_extra_args": extra,
        "job_script_prologue": [f"export DASK_CONFIG={settings_file}", *given.get("prologue", ())],
        "death_timeout": _DEATH_TIMEOUT_S,
        "log_directory": str(request.place / "logs"),
        "job_name": "apflow",
    }
    if request.kind == "slurm":
        from dask_jobqueue.slurm import SLURMJob

        options |= {"queue": given.get("queue"), "account": given.get("account")}
        options |= {"walltime": given.get("walltime", "14:00:00")}  # the longest night
        options["job_extra_directives"] = list(given.get("directives", ()))
        return {"cls": SLURMJob, "options": options}
    from dask_jobqueue.htcondor import HTCondorJob

    options |= {"disk": given.get("disk", _DISK), "job_extra_directives": given.get("directives", {})}
    return {"cls": HTCondorJob, "options": options}
