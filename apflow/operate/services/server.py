"""A server process with a folder: started, found again, stopped, killed."""

from __future__ import annotations

import json
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import psutil

from apflow.errors import ServiceError

#: Below the ports that systems hand out to clients, so that a restarted server finds its own still free.
PORTS = range(20_000, 32_000)

#: Run beside a server: when the pipe from the owner closes, because it ended in whatever way, ends the server
#: and removes its folder. Arguments: signal, pid, folder or nothing.
GUARD = """read -r _
kill -s "$0" "$1" 2>/dev/null
for _ in $(seq 100); do grep -qs . "/proc/$1/cmdline" || break; sleep 0.1; done
[ -z "$2" ] || rm -rf -- "$2"
"""


class Server(ABC):
    """A server in a folder.

    The state is in the folder, so that another process finds the server that
    runs there by naming the same folder.

    Parameters
    ----------
    folder : `pathlib.Path`, optional
        Kept when the server ends. Default: a temporary one, which goes with
        the server and at the latest with this process.

    Notes
    -----
    As a context manager it starts the server and, at the end, stops it.
    """

    #: For messages and for names of folders.
    name: ClassVar[str]
    #: What makes it end in order, and at once.
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    quit_signal: ClassVar[signal.Signals] = signal.SIGKILL
    start_timeout_s: ClassVar[float] = 120.0
    stop_timeout_s: ClassVar[float] = 60.0

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = folder is None
        self.folder = folder.absolute() if folder else Path(tempfile.mkdtemp(prefix=f"apflow-{self.name}-"))
        self._child: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _prepare(self) -> None:
        """Make in the folder what the first start needs; called before every start."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Command line of the server in the foreground."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server takes requests."""

    def _environment(self) -> Mapping[str, str] | None:
        """Environment of the server; None for that of this process."""
        return None

    def _user(self) -> str | None:
        """Name of the user that the server runs as; None for that of this process."""
        return None

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.folder / "server.log"

    @property
    def pid(self) -> int | None:
        """Process id while the server runs."""
        process = self._process()
        return process.pid if process else None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process() is not None

    def start(self, *, detached: bool = False) -> None:
        """Start the server and wait until it answers; nothing happens where it runs.

        Parameters
        ----------
        detached : `bool`, optional
            Let it outlive this process.

        Raises
        ------
        ServiceError
            A package is missing (the message names it), or the server ended
            or did not answer in time (the message ends with its last words).
        """
        if self.running:
            return
        self._forget()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)  # whoever reaches a socket in it is let in
        self._prepare()
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,
                **as_user(self._user()),
            )
        self._remember(process={"pid": self._child.pid, "created": psutil.Process(self._child.pid).create_time()})
        if not detached:
            self._watch(self._child.pid)
        try:
            self._wait_for_answer(self._child)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the server in order; its data stay. Nothing happens where it does not run."""
        process = self._process()
        if process is not None:
            process.send_signal(self.stop_signal)
            try:
                wait_until_gone([process], self.stop_timeout_s)
            except ServiceError:
                self.kill()
                raise
        self._forget()

    def kill(self) -> None:
        """End the server and its children with SIGKILL, as a power cut would; its data stay."""
        process = self._process()
        if process is not None:
            doomed = [process, *process.children(recursive=True)]
            for one in doomed:
                try:
                    one.kill()
                except psutil.NoSuchProcess:
                    continue
            wait_until_gone(doomed, self.stop_timeout_s)
        self._forget()

    def restart(self) -> None:
        """Start again on the same data and address, after a stop where it runs."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop, and remove the folder if it is a temporary one."""
        try:
            self.stop()
        finally:
            if self._temporary:
                shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _wait_for_answer(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while not self._answers():
            if child.poll() is not None:
                raise ServiceError(f"{self.name} in {self.folder} ended with {child.returncode}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{self.name} in {self.folder} gave no answer within {self.start_timeout_s:.0f} s: "
                    f"{self._last_words()}"
                )
            time.sleep(0.05)

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n")
        return " | ".join(line.strip() for line in lines[-12:] if line.strip())

    def _watch(self, pid: int) -> None:
        folder = str(self.folder) if self._temporary else ""
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, self.quit_signal.name.removeprefix("SIG"), str(pid), folder],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _forget(self) -> None:
        """Reap what this process started; called when the server is gone."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        if self._child is not None:
            self._child.wait()
            self._child = None
        if self._state():
            self._remember(process=None)

    def _process(self) -> psutil.Process | None:
        state = self._state().get("process")
        if state is None:
            return None
        try:
            process = psutil.Process(state["pid"])
            # A process id is used again after a while.
            same = process.create_time() == state["created"] and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same else None

    def _port(self, key: str = "port") -> int:
        """A free port, the same at every start."""
        state = self._state()
        if key not in state:
            state[key] = free_port()
            self._remember(**state)
        port: int = state[key]
        return port

    def _state(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return state

    def _remember(self, **facts: object) -> None:
        path = self.folder / "state.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps({**self._state(), **facts}))
        new.replace(path)


def as_user(user: str | None) -> dict[str, Any]:
    """Arguments of `subprocess` that run a command as `user` and with no other groups."""
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}


def wait_until_gone(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    """Wait until none of them runs.

    Raises
    ------
    ServiceError
        One still runs after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while left := [p for p in processes if _runs(p)]:
        if time.monotonic() > deadline:
            raise ServiceError(f"process {left[0].pid} still runs {timeout_s:.0f} s after it was told to end")
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        # Where nobody reaps orphans, as in many containers, they stay as zombies.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A port that nothing on this machine listens on."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServiceError(f"no free port from {PORTS.start} to {PORTS.stop - 1} on 127.0.0.1")
