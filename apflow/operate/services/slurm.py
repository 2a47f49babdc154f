"""A private SLURM: one slurmctld, one or more slurmd, and a munged of their own."""

from __future__ import annotations

import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import string
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import ClassVar

from apflow.errors import BadRequest, ServiceError
from apflow.operate.services.server import PORTS, Server

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
#: Debian puts daemons where not every user's PATH leads.
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
#: The system's limit for the path of a Unix socket is 107 bytes.
_LONGEST_FOLDER = 90


@dataclass(frozen=True)
class Nodes:
    """What the cluster claims to have, which may be more than the machine has.

    Attributes
    ----------
    number : `int`
        Nodes, each a slurmd on this machine.
    cores, memory_mb : `int`
        Of each node.
    """

    number: int = 1
    cores: int = 2
    memory_mb: int = 8000


class SlurmCluster(Server):
    """SLURM in its folder, for whoever has `environment`; nothing of the system is touched.

    Runs as the user of this process, whose jobs alone it takes unless that is
    root.

    Parameters
    ----------
    folder : `pathlib.Path`, optional
        See `apflow.operate.services.server.Server`.
    nodes : `Nodes`, optional
    remember_s : `int`, optional
        How long ended jobs stay known, seconds (SLURM's MinJobAge).

    Examples
    --------
    >>> with SlurmCluster() as cluster:
    ...     subprocess.run(["sinfo"], env=cluster.environment)
    """

    name: ClassVar[str] = "slurm"
    quit_signal: ClassVar[signal.Signals] = signal.SIGTERM  # private.sh ends the daemons and their jobs at once
    start_timeout_s: ClassVar[float] = 30.0

    def __init__(self, folder: Path | None = None, *, nodes: Nodes | None = None, remember_s: int = 3600) -> None:
        super().__init__(folder)
        if len(str(self.folder)) > _LONGEST_FOLDER:
            raise BadRequest(f"folder {self.folder} is too long for a socket: at most {_LONGEST_FOLDER} characters")
        self.nodes = nodes or Nodes()
        self.remember_s = remember_s

    @property
    def configuration(self) -> Path:
        """The slurm.conf."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a command that is to reach this cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return kept | {"SLURM_CONF": str(self.configuration)}

    def run(self, *command: str) -> str:
        """Run a command of SLURM's and return what it prints.

        Raises
        ------
        ServiceError
            It failed; the message ends with what it said.
        """
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise ServiceError(f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _names(self) -> list[str]:
        return [f"node{index:02d}" for index in range(self.nodes.number)]

    def _prepare(self) -> None:
        if missing := [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]:
            raise ServiceError(
                f"{', '.join(missing)} not on the PATH: install Debian's slurmctld, slurmd, slurm-client and munge"
            )
        key = self.folder / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(128))
        (self.folder / "state").mkdir(exist_ok=True)
        template = string.Template((resources.files("apflow.cluster") / "slurm" / "slurm.conf").read_text())
        last, first = self.nodes.number - 1, self._first_node_port()
        self.configuration.write_text(
            template.substitute(
                folder=self.folder,
                host=socket.gethostname().partition(".")[0],
                user=pwd.getpwuid(os.geteuid()).pw_name,
                port=self._port(),
                nodes=f"node[00-{last:02d}]",
                node_ports=f"[{first}-{first + last}]",
                cores=self.nodes.cores,
                memory_mb=self.nodes.memory_mb,
                remember_s=self.remember_s,
            )
        )

    def _first_node_port(self) -> int:
        """The first of as many free ports in a row as there are nodes, the same at every start."""
        state = self._state()
        if "node_port" not in state:
            state["node_port"] = _free_ports(self.nodes.number)
            self._remember(**state)
        port: int = state["node_port"]
        return port

    def _environment(self) -> Mapping[str, str]:
        return self.environment

    def _command(self) -> Sequence[str]:
        script = str(resources.files("apflow.cluster") / "slurm" / "private.sh")
        return ["bash", script, str(self.folder), *self._names()]

    def _answers(self) -> bool:
        told = subprocess.run(
            ["sinfo", "--noheader", "--states=idle", "--format=%D"],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        return told.stdout.strip() == str(self.nodes.number)


def _free_ports(number: int) -> int:
    """The first of `number` ports in a row that nothing on this machine listens on."""
    for first in random.sample(PORTS, 100):
        if all(_is_free(port) for port in range(first, first + number)):
            return first
    raise ServiceError(f"no {number} free ports in a row from {PORTS.start} on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
