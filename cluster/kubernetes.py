"""A cluster in Kubernetes by the Dask operator: scheduler and workers are pods.

Only what is asked of the operator (`cluster_spec`, `gather_spec`) is tested:
no Kubernetes was at hand to run it on. The operator has to be installed there
(``helm install --generate-name dask-kubernetes-operator --repo https://helm.dask.org``),
and the Butler's and the night's folders to be mounted at the paths that they
have here (options ``volumes`` and ``mounts``).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
from dask.utils import parse_bytes

from apflow.errors import ServiceError

from .kinds import PRELOAD
from .request import ClusterRequest

_WORKER = ("dask", "worker", "--no-dashboard", "--preload", "apflow.cluster.preload")
_THREADS = {"compute": 1, "gather": 2}


@contextlib.contextmanager
def kubernetes_cluster(request: ClusterRequest, night_folder: Path | None) -> Iterator[tuple[str, str]]:
    """Have the operator make the cluster, or take that of a holder of this night which died.

    Yields the addresses of scheduler and dashboard, both forwarded to this
    machine; the cluster is deleted with the end of the block.

    Raises
    ------
    ServiceError
        dask-kubernetes is not installed, or Kubernetes or its operator do not
        answer.
    """
    try:
        from dask_kubernetes.operator import KubeCluster
    except ImportError as error:
        raise ServiceError(
            f"cluster kubernetes needs the package dask-kubernetes ({error}); install it by pip, or apflow[kubernetes]"
        ) from error
    spec = cluster_spec(request, night_folder)
    try:
        cluster = KubeCluster(
            custom_cluster_spec=spec,
            namespace=request.options.get("namespace"),
            shutdown_on_close=True,
            quiet=True,
        )
    except Exception as error:  # of the operator's, of kr8s', of httpx', and bare ones
        raise ServiceError(f"the cluster kubernetes did not start: {' '.join(str(error).split())}") from error
    with cluster:
        cluster.sync(_add_gather, cluster, gather_spec(request))
        yield cluster.scheduler_address, cluster.dashboard_link


def cluster_spec(request: ClusterRequest, night_folder: Path | None) -> dict[str, Any]:
    """The DaskCluster: the scheduler and the compute workers."""
    from dask_kubernetes.operator import make_cluster_spec

    name = re.sub("[^a-z0-9]+", "-", f"apflow-{request.place.name.lower()}").strip("-")[:40]
    spec: dict[str, Any] = make_cluster_spec(name, image=request.options["image"], env=_environment(request))
    spec["spec"]["worker"] = _worker(request, "compute", request.n_workers)
    pod = spec["spec"]["scheduler"]["spec"]
    container = pod["containers"][0]
    if night_folder is not None:
        container["args"] += ["--preload", PRELOAD]
        container["env"] += [{"name": "DASK_APFLOW__NIGHT_FOLDER", "value": str(night_folder.absolute())}]
    _mount(request, pod)
    return spec


def gather_spec(request: ClusterRequest) -> dict[str, Any]:
    """The worker group of the gather workers."""
    return _worker(request, "gather", request.gather_workers)


def _worker(request: ClusterRequest, role: str, n: int) -> dict[str, Any]:
    from dask_kubernetes.operator import make_worker_spec

    command = [*_WORKER, "--nthreads", str(_THREADS[role]), "--resources", f"{role}=1"]
    command += ["--memory-limit", request.memory_limit]
    for module in request.warm_up:
        command += ["--preload", module]
    asked = {"cpu": "1", "memory": str(parse_bytes(request.memory_limit))}
    spec: dict[str, Any] = make_worker_spec(
        image=request.options["image"],
        n_workers=n,
        resources={"requests": asked, "limits": {"memory": asked["memory"]}},
        env=_environment(request),
        worker_command=command,
    )
    _mount(request, spec["spec"])
    return spec


def _environment(request: ClusterRequest) -> list[dict[str, str]]:
    # The settings of this process, as Dask hands them to its own children.
    given = request.options.get("env", {}) | {
        "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(dask.config.global_config)
    }
    return [{"name": name, "value": str(value)} for name, value in given.items()]


def _mount(request: ClusterRequest, pod: dict[str, Any]) -> None:
    pod["volumes"] = list(request.options.get("volumes", ()))
    for container in pod["containers"]:
        container["volumeMounts"] = list(request.options.get("mounts", ()))


async def _add_gather(cluster: Any, spec: dict[str, Any]) -> None:
    from dask_kubernetes.operator._objects import DaskWorkerGroup

    there = await DaskWorkerGroup(f"{cluster.name}-gather", namespace=cluster.namespace)
    if not await there.exists():
        await cluster._add_worker_group("gather", custom_spec=spec)
