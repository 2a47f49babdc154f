"""What keeps a night going: two processes, each started again when it ends before its time.

The *holder* has the cluster (`apflow.cluster.holder`), the *driver* the service
behind ``apflow listen`` (`apflow.operate.night.drive`). Neither needs the other's
memory: the driver's journal, the PPDB's ledger and the outbox tell the next one
where to go on. ``python -m apflow.operate.night.supervise NIGHT_FOLDER``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from apflow.cluster.holder import CLUSTER
from apflow.errors import ApflowError, ServiceError
from apflow.io.records import Records
from apflow.logs import FOLDER, FORMAT
from apflow.model.record import Record
from apflow.operate.interrupts import interruptible
from apflow.operate.night.folder import DRIVER, LOGS, NIGHT, STOP, load_request, read_json, supervising, write_json
from apflow.operate.repository import repository_config

#: Exit codes of the driver that starting it again would not change, see `apflow.cli`.
_BAD_REQUEST, _SERVICE = 2, 69
_TURN_S = 0.1
#: Pauses before a process is started again; one that lived for long begins with the first again.
_FIRST_PAUSE_S, _LAST_PAUSE_S, _LONG_S = 0.5, 30.0, 60.0
#: What the driver and the holder may take to end in good order.
_DRIVER_END_S, _HOLDER_END_S = 60.0, 30.0
#: Processes of a supervisor that was killed see that themselves, and end.
_ORPHANS_S = 20.0


class _Child:
    """A process and how often it was started; it is up when its own file says so."""

    def __init__(self, name: str, module: str, folder: Path, word: str, environment: dict[str, str]) -> None:
        self.name, self.word, self._environment = name, folder / word, environment
        self._words = [sys.executable, "-m", module, str(folder)]
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.was_up = self.is_up = False
        self.lost_unix = 0.0
        self._started = self._due = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def start_when_due(self) -> bool:
        """Start it when it is not there and the pause is over."""
        if self.process is not None or time.monotonic() < self._due:
            return False
        # A session of its own: Ctrl-C in a terminal reaches the supervisor, which ends them in their order.
        self.process = subprocess.Popen(
            self._words, stdin=subprocess.DEVNULL, start_new_session=True, env=os.environ | self._environment
        )
        self._started = time.monotonic()
        self.starts += 1
        return True

    def came_up(self) -> bool:
        """Whether it came up since this was asked last."""
        if self.is_up or self.process is None or read_json(self.word).get("pid") != self.process.pid:
            return False
        self.is_up = self.was_up = True
        return True

    def ended(self) -> int | None:
        """Its exit code when it ended; negative for a signal."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process, self.is_up = None, False
        self.word.unlink(missing_ok=True)
        now = time.monotonic()
        if now - self._started > _LONG_S:
            self._pause_s = _FIRST_PAUSE_S
        self._due, self._pause_s = now + self._pause_s, min(2 * self._pause_s, _LAST_PAUSE_S)
        self.lost_unix = time.time()
        return code

    def end(self, patience_s: float) -> None:
        """End it by SIGTERM, or by SIGKILL with all its own when it does not."""
        if self.process is None:
            return
        if self.process.poll() is None:
            whole = _tree(self.process.pid)
            self.process.terminate()
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                _kill(whole)
                self.process.wait()
        self.process = None
        self.word.unlink(missing_ok=True)


class Supervisor:
    """Runs a night whose requests lie in its folder.

    Parameters
    ----------
    folder : `pathlib.Path`
    tell : callable
        Called with a line for whoever watches.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder, self._tell = folder, tell
        request = load_request(folder)
        where = {FOLDER: str(folder / LOGS), FORMAT: repository_config(request.butler).night.log_format}
        self._holder = _Child("holder", "apflow.cluster.holder", folder, CLUSTER, where)
        self._driver = _Child("driver", "apflow.operate.night.drive", folder, DRIVER, where)
        self._began = 0.0

    def run(self) -> int:
        """Go on until the driver has nothing more to do, or SIGTERM or SIGINT comes.

        Returns
        -------
        code : `int`
            0, or the exit code of a process that could not even be started.

        Raises
        ------
        BadRequest
            The night runs already.
        """
        with supervising(self._folder), Records(self._folder) as records, interruptible():
            self._records = records
            for name in (STOP, CLUSTER, DRIVER):
                (self._folder / name).unlink(missing_ok=True)
            _sweep(read_json(self._folder / NIGHT))
            (self._folder / LOGS).mkdir(exist_ok=True)
            self._began = time.time()
            self._note("night", "start")
            code: int | None = None
            try:
                while code is None:
                    code = self._turn()
                    time.sleep(_TURN_S)
            except KeyboardInterrupt:
                code = 0
                self._tell("ended as asked; visits under way go on when the night is started again")
            finally:
                self._driver.end(_DRIVER_END_S)
                self._holder.end(_HOLDER_END_S)
                (self._folder / STOP).unlink(missing_ok=True)
                self._note("night", "stop", "" if not code else f"exit code {code}")
                self._write(time.time())
            return code

    def _turn(self) -> int | None:
        """Look after both; gives the exit code of the night when it is over."""
        for child in (self._holder, self._driver):
            if (code := child.ended()) is not None:
                self._write()
                if child is self._driver and (code == 0 or code == _BAD_REQUEST):
                    return code
                if not child.was_up and code > 0:
                    return code
                why = f"signal {-code}" if code < 0 else f"exit code {code}"
                self._note("cluster" if child is self._holder else "night", "lost", f"{child.name}: {why}")
                self._tell(f"the {child.name} ended ({why}) and is started again")
            if child.start_when_due():
                self._write()
            if child.came_up():
                self._came_up(child)
        return None

    def _came_up(self, child: _Child) -> None:
        now = time.time()
        if child is self._holder:
            word = read_json(child.word)
            self._tell(f"cluster {word['kind']} at {word['address']}; dashboard {word['dashboard']}")
        what, again = ("cluster", "recovered") if child is self._holder else ("night", "resumed")
        if child.starts == 1:
            self._note(what, "up", numbers={"after_s": now - self._began})
        else:
            self._note(what, again, numbers={"after_s": now - child.lost_unix})
            self._tell(f"the {child.name} is back, {now - child.lost_unix:.1f} s after it was lost")
        self._write()

    def _note(self, kind: str, outcome: str, cause: str = "", numbers: dict[str, float] | None = None) -> None:
        self._records.append(Record(time.time(), kind, outcome=outcome, cause=cause, numbers=numbers or {}))

    def _write(self, ended_unix: float | None = None) -> None:
        """Tell of oneself in the folder."""
        me = psutil.Process()
        children: dict[str, Any] = {}
        for child in (self._holder, self._driver):
            pid = child.process.pid if child.process is not None else None
            children[child.name] = {"pid": pid, "starts": child.starts, "is_up": child.is_up}
        told = {"pid": me.pid, "started_unix": self._began, "ended_unix": ended_unix, "children": children}
        write_json(self._folder / NIGHT, told)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        if process.is_running():
            process.kill()


def _sweep(before: dict[str, Any]) -> None:
    """Wait for the processes of a supervisor that was killed, and end those that stay.

    A pid may be another's by now: only a process that began before that
    supervisor's end, and is apflow's, is meant.
    """
    if not before or before["ended_unix"] is not None:
        return
    left: list[psutil.Process] = []
    for child in before["children"].values():
        for process in _tree(child["pid"]) if child["pid"] else []:
            if any("apflow" in word for word in _words(process)) or process.ppid() == child["pid"]:
                left.append(process)
    _, stayed = psutil.wait_procs(left, timeout=_ORPHANS_S)
    _kill(stayed)


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def main(folder: Path) -> int:
    """Supervise, telling on standard output."""
    try:
        return Supervisor(folder, lambda line: print(line, flush=True)).run()
    except ApflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return _SERVICE if isinstance(error, ServiceError) else _BAD_REQUEST


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m apflow.operate.night.supervise NIGHT_FOLDER")
    sys.exit(main(Path(sys.argv[1])))
