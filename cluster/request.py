"""What is asked of a cluster, checked before anything starts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask.utils import parse_bytes

from apflow.errors import BadRequest

#: Kinds that are started, and the options of each: of which type, and what it is.
OPTIONS: Mapping[str, Mapping[str, tuple[type, str]]] = {
    "local": {},
    "ssh": {
        "hosts": (list, "host names, one of each worker in turn"),
        "connect": (dict, "options of asyncssh.connect, such as username, port, client_keys, known_hosts"),
        "python": (str, "interpreter on the hosts; default: this one's path"),
    },
    "slurm": {
        "queue": (str, "partition"),
        "account": (str, "account"),
        "walltime": (str, "of a job, HH:MM:SS; a worker whose time is over is submitted anew"),
        "directives": (list, "further words of #SBATCH, such as --qos=prompt"),
        "prologue": (list, "further lines of shell before the worker"),
        "python": (str, "interpreter on the nodes; default: this one's path"),
    },
    "htcondor": {
        "directives": (dict, "further lines of the submit description"),
        "disk": (str, "of a job, such as 1GB"),
        "prologue": (list, "further commands of shell before the worker"),
        "python": (str, "interpreter on the nodes; default: this one's path"),
    },
    "kubernetes": {
        "image": (str, "container image with apflow in it"),
        "namespace": (str, "where the DaskCluster is made; default: that of the kubeconfig"),
        "volumes": (list, "volumes of the pods, as Kubernetes has them"),
        "mounts": (list, "volumeMounts of the containers, as Kubernetes has them"),
        "env": (dict, "environment"),
    },
}
_SCHEMES = ("tcp://", "tls://")
_TLS_FILES = {name: (str, "PEM file") for name in ("ca_file", "cert", "key")}
_NEEDED = {"ssh": ("hosts",), "kubernetes": ("image",)}
_WRITTEN: Mapping[type, str] = {list: "a list, in JSON [...]", dict: "names and values, in JSON {...}", str: "text"}


def check_kind(kind: str) -> None:
    """Refuse what is no kind of cluster.

    Raises
    ------
    BadRequest
        It is neither in `OPTIONS` nor the address of a scheduler.
    """
    if kind not in OPTIONS and not kind.startswith(_SCHEMES):
        accepted = ", ".join((*OPTIONS, "tcp://host:port", "tls://host:port"))
        raise BadRequest(f"cluster is {kind!r}; accepted: {accepted}")


@dataclass(frozen=True)
class ClusterRequest:
    """A cluster as it is asked for.

    Attributes
    ----------
    kind : `str`
        One of `OPTIONS`, or the address of a scheduler that runs already
        (``tcp://host:port``, ``tls://host:port``).
    n_workers : `int`
        Compute workers: one process, one thread, one CCD at a time each.
    memory_limit : `str`
        Of one worker, as Dask spells it; a worker beyond it is restarted.
    gather_workers : `int`
        Workers that run gather nodes only.
    tls : `bool`
        Whether everything that is sent is encrypted and every peer proves
        itself by the certificate of the night.
    dashboard_address : `str`
        ``host:port`` of the dashboard, which has no authentication: loopback
        unless someone chooses otherwise. Port 0 takes a free one.
    host : `str`
        Address that the scheduler listens on; empty: loopback for ``local``,
        else every interface of this machine.
    folder : `str`
        Where certificates and the logs of jobs go; for batch systems on a
        disk that all nodes see. Empty: the working directory.
    warm_up : tuple of `str`
        Modules that workers import while they start.
    options : mapping
        Those of the kind, see `OPTIONS`.
    """

    kind: str = "local"
    n_workers: int = 2
    memory_limit: str = "6GiB"
    gather_workers: int = 1
    tls: bool = False
    dashboard_address: str = "127.0.0.1:0"
    host: str = ""
    folder: str = ""
    warm_up: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kind(self.kind)
        self._check_options()
        if self.n_workers < 1:
            raise BadRequest(f"workers of the cluster: {self.n_workers}; accepted: 1 or more")
        if self.gather_workers < 0:
            raise BadRequest(f"gather workers of the cluster: {self.gather_workers}; accepted: 0 or more")
        try:
            memory = parse_bytes(self.memory_limit)
        except ValueError:
            memory = 0
        if memory <= 0:
            raise BadRequest(f"memory of a worker {self.memory_limit!r}; accepted: a size such as 6GiB")
        host, colon, port = self.dashboard_address.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise BadRequest(f"dashboard address {self.dashboard_address!r}; accepted: host:port, such as 127.0.0.1:0")
        if self.tls and (self.exists_already or self.kind == "kubernetes"):
            other = "what its pods' network has" if self.kind == "kubernetes" else "tls:// with ca_file, cert and key"
            raise BadRequest(f"TLS on request is not accepted for cluster {self.kind}: accepted is {other}")

    def _check_options(self) -> None:
        known = _TLS_FILES if self.exists_already else OPTIONS[self.kind]
        for name, value in self.options.items():
            if name not in known:
                accepted = ", ".join(f"{name} ({what})" for name, (_, what) in known.items()) or "none"
                raise BadRequest(f"cluster option {name!r} of {self.kind}; accepted: {accepted}")
            kind, what = known[name]
            if not isinstance(value, kind):
                raise BadRequest(
                    f"cluster option {name} of {self.kind} is {value!r}; accepted: {_WRITTEN[kind]}: {what}"
                )
        for needed in _NEEDED.get(self.kind, ()):
            if not self.options.get(needed):
                raise BadRequest(f"cluster {self.kind} has no {needed!r}; accepted: {OPTIONS[self.kind][needed][1]}")

    @property
    def exists_already(self) -> bool:
        """Whether the scheduler is someone else's, so that nothing is started."""
        return self.kind.startswith(_SCHEMES)

    @property
    def place(self) -> Path:
        """`folder`, as an absolute path: jobs run elsewhere."""
        return Path(self.folder).absolute()

    def save(self, path: Path) -> None:
        """Write it as JSON; the file is there whole or not at all."""
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> ClusterRequest:
        """Read what `save` wrote.

        Raises
        ------
        BadRequest
            There is no such file, or it is no request.
        """
        try:
            found = json.loads(path.read_text())
            return cls(**found | {"warm_up": tuple(found.get("warm_up", ()))})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            names = ", ".join(f.name for f in dataclasses.fields(cls))
            raise BadRequest(f"{path} is no request for a cluster ({error}); accepted: JSON with {names}") from error
